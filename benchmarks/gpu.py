"""A day with a GPU in eight minutes: `python -m benchmarks.gpu --output DIR --data DIR`.

The parts, one after the other, each in a process of its own and with its own share of the time:

    machine     device, driver, versions, whether bf16 is multiplied in hardware
    parity      CPU against GPU in fp32: region pooling, every pair loss, one `training_step`
    throughput  `training_step` of ResNet-18 at 160 px and ResNet-50 at 224 px in bf16, with and without `compile`
    data_wait   the share of the time that training waits for views, by the number of workers
    seeds       `byol_region` and `both` on the data, seed after seed, for as long as there is time

A part that fails, hangs or dies costs that part only. gpu.json is written after every finding, so that a kill loses
none; gpu.html shows it, and PART.log has what a part printed. Without a GPU the CPU takes its place, and parity
compares it with itself. Views made on the device were taken out of the code (CHANGELOG.md): no part compares them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial, partialmethod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from markupsafe import Markup
from torch import Tensor

from dataset_scripts.files import read_json_lines, write_json, write_text
from modeling_decodepos.drawing.page import code_block, format_number, message, page, table

if TYPE_CHECKING:  # each part imports what it needs: what is not installed costs no other
    from training.data.batches import RegionBatch, RegionDataset, StepBatches
    from training.run.setup import Run

Finding = dict[str, Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CORES = os.cpu_count() or 1
RECIPES = Path(__file__).parents[1] / "training" / "recipes"
PACKAGES = ("numpy", "transformers", "accelerate", "datasets", "opencv-contrib-python-headless", "pillow", "triton")
PICTURES = 160
TOLERANCE = 1e-5  # of values and gradients, relative to the greatest on the CPU
STEP_TOLERANCE = (1e-4, 1e-3)  # of a step's loss and gradient norm: every layer adds up in another order
CASES = (
    ("ResNet-18 at 160 px", "coco_r18_small", {"view_size_px": 160, "region_bins": 10, "global_batch_size": 128}),
    ("ResNet-50 at 224 px", "coco_r50_200ep", {"global_batch_size": 128}),
)
TINY = {"backbone": "resnet_tiny", "view_size_px": 64, "region_bins": 4, "global_batch_size": 4, "cache_px": 0}
TINY |= {"projector_hidden_size": 64, "projection_size": 32}


def attempt(name: str, call: Callable[..., Finding], *given: Any) -> Finding:
    """What a call finds, or how it failed."""
    try:
        return {"name": name, **call(*given)}
    except (Exception, SystemExit) as error:  # a run says with SystemExit what a user can put right
        traceback.print_exc()
        return {"name": name, "error": traceback.format_exception_only(error)[-1].strip()}


def machine(options: argparse.Namespace) -> Iterator[Finding]:
    """What every number depends on."""
    from benchmarks.timing import machine as facts

    def packages() -> Finding:
        found = {one.name: one.version for one in importlib.metadata.distributions()}
        return {name: found.get(name, "not installed") for name in PACKAGES}

    def code() -> Finding:
        from training.provenance import commit

        return {"commit": commit()}

    def device() -> Finding:
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()[0]
        about, bf16 = torch.cuda.get_device_properties(0), torch.cuda.is_bf16_supported(including_emulation=False)
        return {"device": about.name, "driver": driver, "cuda": torch.version.cuda, "bf16_in_hardware": bf16}

    yield {"name": "machine", **facts()}
    yield attempt("packages", packages)
    yield attempt("code", code)
    if DEVICE == "cuda":
        yield attempt("device", device)


def parity(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether the GPU computes what the CPU does."""
    from modeling_decodepos.losses import PAIR_LOSSES
    from modeling_decodepos.region_pooling import pool_regions

    torch.backends.cudnn.allow_tf32 = False  # fp32 is compared with fp32
    generator = torch.Generator().manual_seed(0)
    corners, sides = torch.rand(2, 8, 4, 2, generator=generator) / 2
    boxes = torch.cat([corners, corners + 0.1 + 0.8 * sides], -1)
    feature_map = torch.randn(8, 64, 14, 14, generator=generator)
    yield attempt("region pooling", compare, partial(pool_regions, bins=7, offset=0.25), feature_map, boxes)
    prediction, other = torch.randn(2, 64, 4, 128, generator=generator)
    for name, loss in PAIR_LOSSES.items():
        yield attempt(f"loss {name}", compare, loss, prediction, prediction + other)
    yield attempt("training step", compare_steps, Path(options.work))


def compare(call: Callable[..., Tensor], trained: Tensor, *given: Tensor, device: str = DEVICE) -> Finding:
    """A call's values, and its gradient with respect to the first tensor, on the CPU and on a device."""
    sides = []
    for place in ("cpu", device):
        leaf = trained.to(place, copy=True).requires_grad_()
        values = call(leaf, *(tensor.to(place) for tensor in given))
        weights = torch.linspace(0.5, 1.5, values.numel()).reshape(values.shape).to(place)
        sides.append((values.detach().cpu(), torch.autograd.grad((values * weights).sum(), leaf)[0].cpu()))
    apart = [float((one - other).abs().max() / one.abs().max()) for one, other in zip(*sides, strict=True)]
    agrees = all(value <= TOLERANCE for value in apart)
    return {"values": apart[0], "gradient": apart[1], "tolerance": TOLERANCE, "agrees": agrees}


def compare_steps(work: Path) -> Finding:
    """Loss and gradient norm of one step of `resnet_tiny` on both, from the same weights and the same batch."""
    from accelerate.state import AcceleratorState

    from training.pretrain import training_step

    found = []
    for side in (DEVICE, "cpu"):
        AcceleratorState._reset_state(True)  # it means to know one device a process
        keys = {"global_batch_size": 8, "gradient_clip": 1e6, "cpu": side == "cpu"}  # a clip that only measures
        run, dataset, order = build("ablation_both", work, keys)
        logged = training_step(run, [dataset.__getitems__(next(iter(order)))])
        found.append([float(logged[name]) for name in ("loss", "grad_norm")])
    loss, norm = (abs(one / other - 1) for one, other in zip(*found, strict=True))
    agrees = loss <= STEP_TOLERANCE[0] and norm <= STEP_TOLERANCE[1]
    return {"values": loss, "gradient": norm, "tolerance": STEP_TOLERANCE, "agrees": agrees, "loss": found[1][0]}


def build(recipe: str, work: Path, keys: dict[str, Any]) -> tuple[Run, RegionDataset, StepBatches]:
    """A run of a recipe on synthetic pictures as the trainer sets it up, its data, and a long order of batches."""
    from benchmarks.photos import synthetic_jpeg
    from training.recipe import load_recipe
    from training.run.setup import build_accelerator, build_run

    pictures, steps = work / "pictures", 10_000
    if not pictures.is_dir():
        pictures.mkdir()
        jpegs = [synthetic_jpeg(seed) for seed in range(4)]
        for number in range(PICTURES):  # repeated: one costs what another costs
            (pictures / f"{number}.jpg").write_bytes(jpegs[number % len(jpegs)])
    fixed = {"data": str(pictures), "output_dir": str(work / "run"), "max_steps": steps, "log_steps": steps}
    made = load_recipe(RECIPES / f"{recipe}.yaml", {**fixed, "measure_steps": 0, "probe_count": 0, **keys})
    run, dataset, order = build_run(build_accelerator(made), made, work / "run")
    return run, cast("RegionDataset", dataset), dataclasses.replace(order, last_step=steps)


def throughput(options: argparse.Namespace) -> Iterator[Finding]:
    """How fast a step is whose batch waits in memory, and how much of the device that uses."""
    from benchmarks.step import matmul_rate

    if options.small:  # kernels of a CPU take minutes to compile: the small form traces them only
        traced = partialmethod(torch.nn.Module.compile, backend="eager")
        setattr(torch.nn.Module, "compile", traced)  # noqa: B010
    peak = matmul_rate(torch.bfloat16, DEVICE, 256 if options.small else 8192)
    yield {"name": "matrix product alone", "gflops": peak}
    for compiled, case in itertools.product((False, True), CASES[: 1 if options.small else None]):
        name = case[0] + (", traced" if options.small else ", compiled") * compiled
        yield attempt(name, time_steps, options, case, {"compile": compiled}, None, peak)
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def data_wait(options: argparse.Namespace) -> Iterator[Finding]:
    """How long ResNet-18 at 160 px waits for its views, which workers make from the recipe's cache."""
    for workers in (0, 2) if options.small else sorted({0, 2, 8, CORES}):
        yield attempt(f"{workers} workers", time_steps, options, CASES[0], {}, workers)


def time_steps(
    options: argparse.Namespace, case: Any, keys: dict[str, Any], workers: int | None, peak: float | None = None
) -> Finding:
    """Steps in bf16, on one batch over and over or from a loader; the first, which choose kernels, are told apart."""
    from benchmarks.step import count_flops
    from training.data.batches import build_loader
    from training.pretrain import training_step
    from training.run.log import peak_memory_gb

    keys = {**case[2], **(TINY if options.small else {}), **keys, "mixed_precision": "bf16"}
    run, dataset, order = build(case[1], Path(options.work), keys)
    batches: Iterator[RegionBatch] = itertools.repeat(dataset.__getitems__(next(iter(order))))
    if workers is not None:
        batches = iter(build_loader(dataset, order, workers, pin_memory=DEVICE == "cuda"))
    clock, waited, steps, first, most = time.perf_counter, 0.0, 0, 3, 2 if options.small else 8
    began = clock()
    while True:
        asked = clock()
        batch = next(batches)
        waited += clock() - asked
        float(training_step(run, [batch])["loss"])
        run.step, steps = run.step + 1, steps + 1
        if steps == first:
            first_seconds, began, waited = clock() - began, clock(), 0.0
        elif steps > first and (clock() - began > most or steps == first + (2 if options.small else 1000)):
            break
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds, images = clock() - began, len(batch.indices) * (steps - first)
    found = {"images_per_s": images / seconds, "batch": len(batch.indices), "steps": steps - first}
    if workers is not None:
        return {**found, "data_wait": waited / seconds}
    found |= {"first_steps_s": first_seconds, "peak_memory_gb": peak_memory_gb()}
    if peak and not keys["compile"]:  # what is compiled does the same work, but cannot be counted
        flops = count_flops(lambda: training_step(run, [batch])["loss"]) / len(batch.indices)
        found |= {"gflop_per_image": flops / 1e9, "share_of_peak": flops * images / seconds / 1e9 / peak}
    return found


def seeds(options: argparse.Namespace) -> Iterator[Finding]:
    """Both arms, seed by seed, for as long as a run as slow as the slowest would still fit."""
    ends, slowest = time.monotonic() + options.limit, 0.0
    if not options.data:
        from dataset_scripts.build.parquet import build_dataset
        from dataset_scripts.sources.scenes import scenes_source

        options.data = str(Path(options.work) / "scenes")
        build_dataset(Path(options.data), scenes_source(*((16, 8, 64) if options.small else (1000, 300))))
    for seed, arm in itertools.product(range(1 if options.small else 100), ("byol_region", "both")):
        began = time.monotonic()
        if began + 1.1 * slowest > ends:
            return
        found = attempt(f"{arm}, seed {seed}", train, options, arm, seed)
        slowest = max(slowest, time.monotonic() - began)
        yield {**found, "seconds": time.monotonic() - began}
        if "error" in found:  # the next one would end so too
            return


def train(options: argparse.Namespace, arm: str, seed: int) -> Finding:
    """A run, and what it measured of itself in the end, on pictures that it did not train on."""
    from training.pretrain import main as pretrain

    output = Path(options.work) / f"{arm}_{seed}"
    keys = {"data": options.data, "output_dir": output, "seed": seed, "max_steps": 400, "measure_steps": 400}
    keys |= {"measure_images": 800, "hold_out": 400, "probe_count": 0, "cache_px": 128, "num_workers": min(8, CORES)}
    if options.small:
        keys |= {**TINY, "max_steps": 2, "measure_steps": 2, "measure_images": 16, "num_workers": 0}
    flags = [f"--{name}={value}" for name, value in keys.items()]
    pretrain([str(RECIPES / f"ablation_{arm}.yaml"), *flags, *shlex.split(options.train)])
    lines = read_json_lines(output / "log.jsonl")
    trained, measured = ([line for line in lines if key in line][-1] for key in ("images_per_second", "position_r2"))
    return {**measured, "images_per_s": trained["images_per_second"], "data_wait": trained["data_wait"]}


# The most of the time that a part may take; the last one gets what is left.
PARTS: dict[str, tuple[Callable[[argparse.Namespace], Iterator[Finding]], float]] = {
    "machine": (machine, 0.1),
    "parity": (parity, 0.12),
    "throughput": (throughput, 0.4),
    "data_wait": (data_wait, 0.2),
    "seeds": (seeds, 1.0),
}


def run_here(options: argparse.Namespace) -> None:
    """A part in this process: every finding a line of JSON on what was standard output; all else goes to the log."""
    findings = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    part = PARTS[options.part][0](options)
    while (found := attempt(options.part, lambda: next(part, {}))) != {"name": options.part}:
        print(json.dumps(found, default=str), file=findings, flush=True)


def run_apart(options: argparse.Namespace, name: str, limit: float, part: Finding, save: Callable[[], None]) -> None:
    """A part in a process of its own, which is ended at its limit; `part` grows with what it finds."""
    began, log = time.monotonic(), options.output / f"{name}.log"
    part |= {"status": "running", "limit_s": limit, "findings": []}
    given = [f"--work={options.work}", f"--limit={limit}", f"--data={options.data}", f"--train={options.train}"]
    command = [sys.executable, "-m", "benchmarks.gpu", f"--part={name}", *given, *["--small"] * options.small]
    late = threading.Event()

    def end_late() -> None:
        late.set()
        end_group(child.pid)

    with (
        log.open("w") as printed,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=printed, text=True, start_new_session=True) as child,
    ):
        timer = threading.Timer(limit, end_late)
        timer.start()
        try:
            for line in cast("IO[str]", child.stdout):
                part["findings"].append(json.loads(line))
                save()
            code = child.wait()
        finally:
            timer.cancel()
            end_group(child.pid)  # what it may have left, and itself where this process is stopped
    errors_found = [f"{found['name']}: {found['error']}" for found in part["findings"] if "error" in found]
    errors_found += [
        f"{found['name']}: CPU and GPU differ" for found in part["findings"] if not found.get("agrees", 1)
    ]
    if late.is_set():
        errors_found.append(f"ended at its limit of {limit:.3g} s")
    elif code:
        errors_found.append(f"ended with code {code}: {log.read_text().strip().splitlines()[-1:]}")
    part |= {"status": "failed" if errors_found else "done", "errors": errors_found}
    part["seconds"] = time.monotonic() - began


def end_group(leader: int) -> None:
    """End a part with its workers; they may have ended by themselves."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def write_page(path: Path, report: Finding) -> None:
    """A section for every part: how it ended, and a table of what it found."""

    def shown(value: object) -> str:
        return format_number(value) if isinstance(value, float) else "" if value is None else str(value)

    sections = []
    for name, part in report["parts"].items():
        how = f"{'; '.join(part['errors']) or 'done'} ({part['seconds']:.0f} of {part['limit_s']:.0f} s)"
        columns = list(dict.fromkeys(column for found in part["findings"] for column in found))
        rows = [[shown(found.get(column)) for column in columns] for found in part["findings"]]
        tone = "bad" if part["errors"] else "good"
        sections.append((name, Markup("{}{}").format(message(how, tone), table(columns, rows))))
    write_text(path, page("A GPU day", sections, lead=code_block(report["command"])))


def parser() -> argparse.ArgumentParser:
    """Of the command line; the last three options are for a part in a process of its own."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=Path("gpu_day"), help="folder for the results")
    made.add_argument("--data", default="", help="what the seeds train on (default: 1,000 scenes, drawn first)")
    made.add_argument("--minutes", type=float, default=8, help="for everything together")
    made.add_argument("--train", default="", help="more keys for the seeds, such as '--backbone resnet18'")
    made.add_argument("--small", action="store_true", help="tiny networks and few steps: whether it runs at all")
    made.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    made.add_argument("--work", help=argparse.SUPPRESS)
    made.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every part, or, in a process of its own, one of them."""
    options = parser().parse_args(arguments)
    if options.part:
        run_here(options)
        return
    if not options.minutes > 0:
        parser().error(f"--minutes is {options.minutes:g}; expected more than 0.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a part ends with this process
    ends = time.monotonic() + 60 * options.minutes
    options.output.mkdir(parents=True, exist_ok=True)
    report: Finding = {"command": shlex.join(["python", *sys.orig_argv[1:]]), "device": DEVICE, "parts": {}}
    save = partial(write_json, options.output / "gpu.json", report)
    with tempfile.TemporaryDirectory(prefix="decodepos-gpu-") as options.work:
        for name, (_, share) in PARTS.items():
            left = max(ends - time.monotonic() - 3, 1)  # the last seconds are the page's
            report["parts"][name] = part = cast("Finding", {})
            run_apart(options, name, min(left, 60 * options.minutes * share), part, save)
            save()
            write_page(options.output / "gpu.html", report)
            print(f"{name}: {'; '.join(part['errors']) or 'done'} ({part['seconds']:.0f} s)", flush=True)
    sys.exit(any(part["errors"] for part in report["parts"].values()))


if __name__ == "__main__":
    main()
