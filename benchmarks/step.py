"""The whole training step, tuned against plain: `python -m benchmarks.step`.

A step is the teacher's update, the forward pass of the objective `both` (three student views, two teacher views), the
backward pass and the optimiser. Ours runs as the trainer runs it: bf16 autocast where the CPU has it, channels-last
memory, our region pooling, the teacher updated by one foreach call. The peer is the same model with the same weights,
run the way such code is usually written: fp32, channels-first memory, the RoIAlign operator at hand, a loop over
parameters for the teacher. That both compute the same loss is checked first, in fp32.

Much of the ratio is bf16, so fp32 against fp32 stands beside it.
"""

from __future__ import annotations

import argparse
import copy
import functools
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetConfig

from benchmarks.roi_align import LOOP, Pool, has_torchvision_operators, loop_pool, random_boxes, torchvision_pool
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
from modeling_decodepos import (
    OBJECTIVES,
    DecodePosConfig,
    DecodePosForPreTraining,
    DecodePosModel,
    View,
    modeling_decodepos,
)
from modeling_decodepos.region_pooling import pool_regions
from modeling_decodepos.regions import Regions
from training.precision import has_fast_bf16
from training.run.model import compile_stages

OBJECTIVE = OBJECTIVES["both"]
REGIONS = 4
MOMENTUM = 0.99


@dataclass(frozen=True)
class Case:
    """A network, the size of a full view, and how many images a step takes."""

    name: str
    backbone: ResNetConfig
    size_px: int
    images: int


CASES = (
    Case("ResNet-50 at 224", ResNetConfig(), 224, 4),
    Case(
        "ResNet-18 at 96",
        ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
        96,
        16,
    ),
)


def random_views(case: Case, generator: torch.Generator) -> dict[str, View]:
    """The objective's views, of noise: what is in them does not change how long they take."""
    views = {}
    for name in OBJECTIVE.views:
        size = case.size_px // 2 if name.endswith("_small") else case.size_px
        views[name] = View(
            pixel_values=torch.randn(case.images, 3, size, size, generator=generator),
            boxes=random_boxes(case.images, REGIONS, generator),
            valid_regions=torch.ones(case.images, REGIONS, dtype=torch.bool),
        )
    return views


def tuned_step(model: DecodePosForPreTraining, views: dict[str, View], bf16: bool) -> Callable[[], Tensor]:
    """A call that trains `model` for one step in channels-last memory and returns its loss."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    views = {
        name: View(view.pixel_values.contiguous(memory_format=torch.channels_last), view.boxes, view.valid_regions)
        for name, view in views.items()
    }
    optimizer = _optimizer(model)

    def step() -> Tensor:
        model.update_teacher(MOMENTUM)
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
            loss = model(views, OBJECTIVE).loss
        return _descend(loss, optimizer)

    return step


def plain_step(model: DecodePosForPreTraining, views: dict[str, View], pool: Pool) -> Callable[[], Tensor]:
    """A call that does the same in fp32, channels-first memory, with `pool` and a loop to update the teacher."""
    optimizer = _optimizer(model)

    def step() -> Tensor:
        update_one_by_one(model.teacher, model.student, MOMENTUM)
        with regions_pooled_by(pool):
            loss = model(views, OBJECTIVE).loss
        return _descend(loss, optimizer)

    return step


@torch.no_grad()
def update_one_by_one(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """`ema_update`, one parameter after the other."""
    for target, source in zip(teacher.parameters(), student.parameters(), strict=True):
        target.mul_(momentum).add_(source, alpha=1 - momentum)


@contextmanager
def regions_pooled_by(pool: Pool) -> Iterator[None]:
    """Models embed regions with another operator, and keep them in channels-first memory, while this is open."""

    def embed_regions(self: DecodePosModel, feature_map: Tensor, regions: Regions, bins: int) -> Tensor:
        pooled = pool(feature_map, regions.boxes, bins, self.config.region_sampling_ratio)
        return self.apply_region_stage(pooled[regions.valid]).mean((2, 3))

    # Not `pool_regions` alone: the model picks its regions in channels-last memory, which would speed up the peer.
    with mock.patch.object(DecodePosModel, "embed_regions", embed_regions):
        yield


def pooling_of(step: Callable[[], Tensor]) -> Callable[[], None]:
    """A call that repeats only the region pooling of a step: forward, picking rows, backward where it was trained."""
    calls = []

    def record(feature_map: Tensor, boxes: Tensor, bins: int, sampling_ratio: int, offset: float) -> Tensor:
        calls.append((feature_map.detach().clone(), boxes, bins, sampling_ratio, torch.is_grad_enabled()))
        return pool_regions(feature_map, boxes, bins, sampling_ratio)

    with mock.patch.object(modeling_decodepos, "pool_regions", record):
        step()

    def embed(feature_map: Tensor, boxes: Tensor, bins: int, sampling_ratio: int) -> Tensor:
        valid = torch.ones(boxes.shape[:2], dtype=torch.bool)
        return pool_regions(feature_map, boxes, bins, sampling_ratio).permute(0, 1, 3, 4, 2)[valid]

    with torch.no_grad():
        upstream = [torch.randn_like(embed(*call[:4])) for call in calls]

    def repeat() -> None:
        for (feature_map, boxes, bins, sampling_ratio, trained), gradient in zip(calls, upstream, strict=True):
            with torch.set_grad_enabled(trained):
                rows = embed(feature_map.requires_grad_(trained), boxes, bins, sampling_ratio)
            if trained:
                torch.autograd.grad(rows, feature_map, gradient)

    return repeat


def _optimizer(model: DecodePosForPreTraining) -> torch.optim.Optimizer:
    # The same for both sides, and a cheap one: it is not what is compared.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def convolution_rate(dtype: torch.dtype) -> float:
    """GFLOP per second of a 3x3 convolution alone, best of ten: what the CPU gives a step at most."""
    features = torch.randn(8, 256, 28, 28).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3).to(dtype, memory_format=torch.channels_last)
    call = functools.partial(F.conv2d, features, weight, padding=1)
    seconds = time_interleaved({"": call}, rounds=10, clock=clock_for(torch.get_num_threads()))
    return 2 * features.numel() * weight[0].numel() / min(seconds[""]) / 1e9


def matmul_rate(dtype: torch.dtype, device: str = "cpu", side: int = 2048) -> float:
    """GFLOP per second of a product of two square matrices alone, best of ten."""
    left, right = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    on_cpu = device == "cpu"

    def multiply() -> None:
        product = left @ right
        if not on_cpu:
            torch.cuda.synchronize(product.device)

    clock = clock_for(torch.get_num_threads()) if on_cpu else time.perf_counter
    return 2 * side**3 / min(time_interleaved({"": multiply}, rounds=10, clock=clock)[""]) / 1e9


def count_flops(step: Callable[[], Tensor]) -> int:
    """Floating point operations of a step in convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Measured:
    """What `measure` found."""

    seconds: dict[str, list[float]]  # by style and round
    flops: int  # of our step


def measure(case: Case, pool: Pool, rounds: int, threads: int, compiled: bool) -> Measured:
    """The step in each style, and our pooling and our teacher's update alone."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(case)
    views = random_views(case, generator)
    ours = copy.deepcopy(model)
    steps = {
        "ours": tuned_step(ours, views, bf16=has_fast_bf16()),
        "ours fp32": tuned_step(copy.deepcopy(model), views, bf16=False),
        "theirs": plain_step(copy.deepcopy(model), views, pool),
    }
    if compiled:
        steps["ours compiled"] = tuned_step(compiled_copy(model), views, bf16=has_fast_bf16())
    # The first step is the warm-up. A second one starts from weights that both sides changed: equal losses mean equal
    # gradients as well.
    for _ in range(2):
        losses = {name: step() for name, step in steps.items()}
        torch.testing.assert_close(losses["ours fp32"], losses["theirs"], rtol=1e-3, atol=1e-3)
    alone = {"pooling": pooling_of(steps["ours"]), "ema": lambda: ours.update_teacher(MOMENTUM)}
    flops = count_flops(steps["ours"])
    return Measured(time_interleaved({**steps, **alone}, rounds, warmup=0, clock=clock_for(threads)), flops)


def build_model(case: Case) -> DecodePosForPreTraining:
    """The model that every style trains a copy of."""
    torch.manual_seed(0)
    return DecodePosForPreTraining(DecodePosConfig(backbone_config=case.backbone)).train()


def peak_megabytes(number: int, ours: bool, threads: int) -> float:
    """Most memory of this process, libraries included, after two steps; to be called in a process of its own."""
    torch.set_num_threads(threads)
    case = CASES[number]
    model, views = build_model(case), random_views(case, torch.Generator().manual_seed(0))
    pool = torchvision_pool if has_torchvision_operators() else loop_pool
    step = tuned_step(model, views, has_fast_bf16()) if ours else plain_step(model, views, pool)
    for _ in range(2):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def in_own_process(call: Callable[..., float], *arguments: Any) -> float:
    """What a call gives in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def compiled_copy(model: DecodePosForPreTraining) -> DecodePosForPreTraining:
    """The model as `--compile` trains it."""
    model = copy.deepcopy(model)
    compile_stages(model)
    return model


def main() -> None:
    """Measure, print the table and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads torch may use")
    parser.add_argument("--rounds", type=int, default=3, help="how often each style is timed")
    parser.add_argument("--compile", action="store_true", help="time the step with torch.compile too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_machine()
    print(f"measured in {clock_name(arguments.threads)}, median [min..max] of {arguments.rounds} rounds")

    pool, operator = loop_pool, LOOP
    if has_torchvision_operators():
        import torchvision

        pool, operator = torchvision_pool, f"torchvision {torchvision.__version__} C++ roi_align"
    style = "bf16" if has_fast_bf16() else "fp32"
    peer = f"same model, fp32, NCHW, per-parameter EMA, {operator}"
    print(f"ours: {style}, channels-last, foreach EMA. theirs: {peer}.", flush=True)

    peak_fp32, peak_bf16 = convolution_rate(torch.float32), convolution_rate(torch.bfloat16)
    print(f"a 3x3 convolution alone: {peak_fp32:.0f} GFLOP/s in fp32, {peak_bf16:.0f} in bf16", flush=True)
    peak = matmul_rate(torch.bfloat16 if has_fast_bf16() else torch.float32)
    print(f"a 2048 x 2048 matrix product alone: {peak:.0f} GFLOP/s in {style}", flush=True)

    rows: list[tuple[object, ...]] = []
    summary: dict[str, dict[str, Any]] = {}
    for number, case in enumerate(CASES):
        memory = [in_own_process(peak_megabytes, number, ours, arguments.threads) for ours in (True, False)]
        measured = measure(case, pool, arguments.rounds, arguments.threads, arguments.compile)
        seconds = measured.seconds
        share = measured.flops / spread(seconds["ours"]).median / 1e9 / peak
        compiled = ratio(seconds["ours"], seconds["ours compiled"]) if arguments.compile else None
        gain, gain_fp32 = (ratio(seconds["theirs"], seconds[name]) for name in ("ours", "ours fp32"))
        pooling, ema = (ratio(seconds[name], seconds["ours"]) for name in ("pooling", "ema"))
        rate = {name: case.images / spread(seconds[name]).median for name in ("ours", "ours fp32", "theirs")}
        rows.append(
            (
                f"{case.name}, batch {case.images}",
                *(f"{rate[name]:.2f}" for name in ("ours", "ours fp32", "theirs")),
                gain,
                gain_fp32,
                f"{pooling.median:.2%}",
                f"{ema.median:.2%}",
                f"{share:.0%}",
                compiled or "not run",
                f"{memory[0]:.0f}, {memory[1]:.0f} MB",
            )
        )
        summary[case.name] = {
            "ratio": gain.median,
            "ours": rate["ours"],
            "theirs": rate["theirs"],
            "ratio_fp32": gain_fp32.median,
            "pooling_and_ema_share": pooling.median + ema.median,
            "gflop_per_image": measured.flops / case.images / 1e9,
            "share_of_matmul_peak": share,
            "compiled_over_eager": compiled.median if compiled else None,
            "peak_megabytes": {"ours": memory[0], "theirs": memory[1]},
        }
    print_table(
        (
            "case",
            f"ours {style} img/s",
            "ours fp32",
            "theirs",
            "ratio",
            "fp32 ratio",
            "pooling",
            "EMA",
            "of peak",
            "compiled",
            "memory",
        ),
        rows,
    )
    first = summary[CASES[0].name]
    print_result(
        "step",
        peer,
        first["ratio"],
        first["ours"],
        first["theirs"],
        "images/s",
        threads=arguments.threads,
        clock=clock_name(arguments.threads),
        convolution_gflops={"fp32": peak_fp32, "bf16": peak_bf16},
        matmul_gflops=peak,
        cases=summary,
    )


if __name__ == "__main__":
    main()
