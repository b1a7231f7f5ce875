"""Region pooling against the RoIAlign operators people use: `python -m benchmarks.roi_align`.

The peers are torchvision's C++ operator, where its compiled operators really exist, and always a loop over boxes that
samples each with `grid_sample`. Forward and backward to the map, at the size of a ResNet-50-C4: 32 images, 1024
channels, a 14x14 map, 4 boxes each. Ours gets its maps in channels-last memory, the peers in the channels-first
memory they were written for. The peers get fp32 in every row: the C++ operator has no bf16 on a CPU, and autocast
would convert its input.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import (
    clock_for,
    clock_name,
    print_machine,
    print_result,
    print_table,
    ratio,
    spread,
    time_interleaved,
)
from modeling_decodepos.region_pooling import pool_regions
from training.precision import has_fast_bf16

# (B, R, C, P, P) = pool(feature_map, boxes, bins, sampling_ratio)
Pool = Callable[[Tensor, Tensor, int, int], Tensor]

IMAGES, CHANNELS, MAP_SIZE, REGIONS = 32, 1024, 14, 4
LOOP = "per-box grid_sample loop"
# bins, sampling_ratio; the first one is the setting of SoCo, and the one in the last line.
CASES = ((14, 0), (7, 0), (14, 2), (7, 2))


@functools.cache
def has_torchvision_operators() -> bool:
    """Whether torchvision's compiled operators exist here.

    The import is tried in a process of its own: a torchvision built for another torch fails half way, and its remains
    would break transformers' vision models in this one.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    probe = "import sys; from torchvision.extension import _has_ops; sys.exit(0 if _has_ops() else 1)"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


def torchvision_pool(feature_map: Tensor, boxes: Tensor, bins: int, sampling_ratio: int = 0) -> Tensor:
    """`pool_regions` by torchvision's C++ operator."""
    from torchvision.ops import roi_align

    batch, channels, height, width = feature_map.shape
    scale = boxes.new_tensor([width, height, width, height])
    image = torch.arange(batch, device=boxes.device, dtype=boxes.dtype).repeat_interleave(boxes.shape[1])
    rows = torch.cat([image[:, None], (boxes * scale).flatten(0, 1)], dim=1)
    pooled = roi_align(feature_map, rows, bins, sampling_ratio=sampling_ratio or -1, aligned=True)
    return pooled.view(batch, -1, channels, bins, bins)


def loop_pool(feature_map: Tensor, boxes: Tensor, bins: int, sampling_ratio: int = 0) -> Tensor:
    """`pool_regions` by one `grid_sample` per box: equal for boxes that lie inside the map."""
    size = feature_map.new_tensor(feature_map.shape[-2:], dtype=boxes.dtype)
    pooled = []
    # Taking the batch apart once keeps the backward pass from filling a whole batch of zeros for each box.
    for image, image_boxes in zip(feature_map.split(1), boxes, strict=True):
        for box in image_boxes:
            start, end = box[:2].flip(0), box[2:].flip(0)  # y, x
            extent = (end * size - 0.5) - (start * size - 0.5)
            counts = [sampling_ratio] * 2 if sampling_ratio else torch.ceil(extent / bins).clamp(min=1).int().tolist()
            y, x = (
                2 * (start[axis] + (end - start)[axis] * _sample_places(bins * counts[axis], box)) - 1
                for axis in (0, 1)
            )
            grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
            samples = F.grid_sample(
                image, grid[None].to(image.dtype), mode="bilinear", padding_mode="border", align_corners=False
            )
            pooled.append(F.avg_pool2d(samples, counts))
    return torch.cat(pooled).view(*boxes.shape[:2], feature_map.shape[1], bins, bins)


def _sample_places(count: int, like: Tensor) -> Tensor:
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def random_boxes(images: int, regions: int, generator: torch.Generator) -> Tensor:
    """(B, R, 4) boxes inside the image, sides 0.3 to 0.8 of it (the range of SoCo's proposals)."""
    sides = 0.3 + 0.5 * torch.rand(images, regions, 2, generator=generator)
    start = (1 - sides) * torch.rand(images, regions, 2, generator=generator)
    return torch.cat([start, start + sides], dim=-1)


def main() -> None:
    """Measure, print the table and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads torch may use")
    parser.add_argument("--rounds", type=int, default=7, help="how often each variant is timed")
    parser.add_argument("--images", type=int, default=IMAGES, help="batch size")
    parser.add_argument("--channels", type=int, default=CHANNELS, help="channels of the map")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_machine()
    print(f"measured in {clock_name(arguments.threads)}, median [min..max] of {arguments.rounds} rounds")

    peers: dict[str, Pool] = {LOOP: loop_pool}
    if has_torchvision_operators():
        import torchvision

        peers = {f"torchvision {torchvision.__version__} C++ roi_align": torchvision_pool, **peers}
    else:
        print("torchvision's compiled operators do not exist here: the peer is the per-box loop alone.")

    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(arguments.images, arguments.channels, MAP_SIZE, MAP_SIZE, generator=generator)
    boxes = random_boxes(arguments.images, REGIONS, generator)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if not has_fast_bf16():
        print("bf16 is emulated on this CPU: expect it to be slow.")

    rows, summary = [], {}
    for bins, sampling_ratio in CASES:
        variants = {
            f"ours {name}": _forward_backward(
                pool_regions, maps.to(dtype, memory_format=torch.channels_last), boxes, bins, sampling_ratio
            )
            for name, dtype in dtypes.items()
        }
        variants |= {name: _forward_backward(peer, maps, boxes, bins, sampling_ratio) for name, peer in peers.items()}
        outputs = {name: variant()[0] for name, variant in variants.items()}
        for peer in peers:
            torch.testing.assert_close(outputs["ours fp32"], outputs[peer], atol=2e-5, rtol=0)
        seconds = time_interleaved(variants, arguments.rounds, seed=bins, clock=clock_for(arguments.threads))
        case = f"{bins}x{bins} bins, {f'{sampling_ratio} samples' if sampling_ratio else 'adaptive'}"
        for peer in peers:
            for dtype in dtypes:
                gain = ratio(seconds[peer], seconds[f"ours {dtype}"])
                ours, theirs = (
                    boxes.shape[0] * boxes.shape[1] / spread(seconds[name]).median for name in (f"ours {dtype}", peer)
                )
                rows.append((case, dtype, peer, f"{ours:.0f}", f"{theirs:.0f}", gain))
                summary[f"{case}, {dtype}, {peer}"] = {"ratio": gain.median, "ours": ours, "theirs": theirs}
    print_table(("case", "ours in", "peer (fp32)", "ours box/s", "peer box/s", "ratio"), rows)
    first = next(iter(summary))
    print_result(
        "roi_align",
        next(iter(peers)),
        **summary[first],
        unit="boxes/s",
        case=first,
        threads=arguments.threads,
        clock=clock_name(arguments.threads),
        ratios={name: numbers["ratio"] for name, numbers in summary.items()},
    )


def _forward_backward(
    pool: Pool, feature_map: Tensor, boxes: Tensor, bins: int, sampling_ratio: int
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A call that pools and returns the output and the map's gradient."""
    feature_map = feature_map.detach().requires_grad_()
    # The gradient has the memory layout of the output, as it has in a network of that layout.
    upstream = torch.randn_like(pool(feature_map, boxes, bins, sampling_ratio))

    def call() -> tuple[Tensor, Tensor]:
        pooled = pool(feature_map, boxes, bins, sampling_ratio)
        (gradient,) = torch.autograd.grad(pooled, feature_map, upstream)
        return pooled.detach(), gradient

    return call


if __name__ == "__main__":
    main()
