"""The views of a batch on a device, against the CPU's: `python -m benchmarks.device_views --device cuda`.

A batch of images as a cache of short side 288 holds them becomes the views of the objective `both`. Ours makes all of
them at once on the device (`make_views`, compiled on a GPU); the peer makes one after the other on one CPU core
(`apply_view`), which is what one worker does. Both use the same drawn parameters, and that the results agree is
checked first. What remains for a worker (`pack_views`), and the upload, are timed on their own.

On a CPU ours is slow, far slower than the peer: dense matrix products pay where they are nearly free. Measure there
only that it runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import print_machine, print_result, print_table, ratio, spread, time_interleaved
from modeling_decodepos.losses import OBJECTIVES
from training.recipe import ViewArguments
from training.views.on_device import PackedViews, make_views, pack_views
from training.views.sampling import ViewParameters, apply_view, sample_views

NAMES = OBJECTIVES["both"].views
SHORT_SIDE_PX, LONG_SIDES_PX = 288, (288, 384, 384, 432, 512)
MOST_DIFFERENCE = 1.0  # mean over a view, in grey levels

Batch = tuple[list[np.ndarray], list[np.ndarray], list[dict[str, ViewParameters]]]


def draw_batch(count: int, args: ViewArguments, seed: int = 0) -> Batch:
    """Images, donors and parameters. What the images show changes no time."""
    rng = np.random.default_rng(seed)

    def image() -> np.ndarray:
        size = (SHORT_SIDE_PX, int(rng.choice(LONG_SIDES_PX)))
        width, height = size if rng.random() < 0.3 else size[::-1]  # most photos are landscape
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)

    images, donors = [image() for _ in range(count)], [image() for _ in range(count)]
    corners = rng.uniform(0, 0.6, (count, 8, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.2, 0.4, corners.shape)], axis=2)
    parameters = [
        sample_views(np.random.default_rng([seed, row]), own.shape[:2], donor.shape[:2], own_boxes, NAMES, args)
        for row, (own, donor, own_boxes) in enumerate(zip(images, donors, boxes, strict=True))
    ]
    return images, donors, parameters


def make_one_by_one(batch: Batch) -> dict[str, torch.Tensor]:
    """The peer: (B, 3, S, S) pixels of each view as a worker makes them."""
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
    for image, donor, views in zip(*batch, strict=True):
        for name, parameters in views.items():
            drawn[name].append(apply_view(parameters, image, donor))
    return {name: torch.stack(pixels) for name, pixels in drawn.items() if pixels}


def check(expected: dict[str, torch.Tensor], packed: PackedViews, compiled: bool) -> dict[str, float]:
    """Mean difference of every view in grey levels; an error if one is too great."""
    made = make_views(packed, compiled)
    differences = {
        name: float((made[name].pixel_values.cpu().int() - pixels.int()).abs().float().mean())
        for name, pixels in expected.items()
    }
    if max(differences.values()) > MOST_DIFFERENCE:
        raise RuntimeError(f"the two paths differ by {differences} grey levels; at most {MOST_DIFFERENCE} is allowed.")
    return differences


def main() -> None:
    """Measure, print the table and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where ours runs: cpu or cuda (default: cpu)")
    parser.add_argument("--images", type=int, help="images in a batch (default: 256 on a GPU, 8 on a CPU)")
    parser.add_argument("--view-size-px", type=int, default=224, help="side of a full-size view")
    parser.add_argument("--mixed-share", type=float, default=1.0, help="share of the images with a moved view")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    compiled = device.type == "cuda"
    count = arguments.images or (256 if compiled else 8)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print_machine()
    if compiled:
        print(torch.cuda.get_device_name(device), flush=True)

    args = ViewArguments(view_size_px=arguments.view_size_px, mixed_share=arguments.mixed_share)
    batch = draw_batch(count, args)
    on_host = pack_views(*batch, NAMES, args)
    on_host = on_host.pin_memory() if compiled else on_host
    packed = on_host.to(device)
    expected = make_one_by_one(batch)
    start = time.perf_counter()
    differences = check(expected, packed, compiled)
    print(f"first call, with {'compilation' if compiled else 'no compilation'}: {time.perf_counter() - start:.1f} s")
    with FlopCounterMode(display=False) as counter:
        made = make_views(packed)
    views = sum(len(view.pixel_values) for view in made.values())
    gflop = counter.get_total_flops() / views / 1e9

    def awaited(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            call()
            if compiled:
                torch.cuda.synchronize(device)

        return run

    seconds = time_interleaved(
        {
            "views, ours": awaited(lambda: make_views(packed, compiled)),
            "views, ours not compiled": awaited(lambda: make_views(packed)),
            "upload, ours": awaited(lambda: on_host.to(device)),
            "packing by a worker": lambda: pack_views(*batch, NAMES, args),
            "views, one CPU core": lambda: make_one_by_one(batch),
        },
        arguments.rounds,
    )
    gain = ratio(seconds["views, one CPU core"], seconds["views, ours"])
    per_image = {name: spread([value / count * 1e3 for value in values]) for name, values in seconds.items()}
    print_table(("what", "ms per image"), list(per_image.items()))
    boxes = sum(view.boxes.nbytes + view.valid_regions.nbytes for view in made.values())
    kilobytes = {
        "ours": on_host.nbytes / count / 1e3,
        "finished views": (sum(pixels.nbytes for pixels in expected.values()) + boxes) / count / 1e3,
    }
    print(
        f"uploaded per image: {kilobytes['ours']:.0f} kB, against {kilobytes['finished views']:.0f} kB finished views"
    )
    print(f"{gflop:.2f} GFLOP of matrix products per view, {views / count:.2f} views per image")
    levels = ", ".join(f"{name} {value:.3f}" for name, value in differences.items())
    print(f"mean difference in grey levels: {levels}")
    rates = {name: 1e3 / value.median for name, value in per_image.items()}
    print_result(
        "device_views",
        "the same views by apply_view, uint8, one CPU core",
        gain.median,
        rates["views, ours"],
        rates["views, one CPU core"],
        "images/s",
        device=torch.cuda.get_device_name(device) if compiled else "cpu",
        images=count,
        ms_per_image={name: value.median for name, value in per_image.items()},
        kilobytes_uploaded=kilobytes,
        gflop_per_view=gflop,
        gpu_memory_gb=torch.cuda.max_memory_allocated(device) / 1e9 if compiled else 0.0,
        mean_difference=differences,
    )


if __name__ == "__main__":
    main()
