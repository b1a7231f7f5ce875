"""Pre-train a network with de-coupling and de-positioning: the one file to read.

    accelerate launch training/pretrain.py [RECIPE.yaml] [--key value …]

The step is `training_step`; everything else here is setup and bookkeeping around it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ResNetConfig
from transformers import logging as transformers_logging

from modeling_decodepos.configuration_decodepos import DecodePosConfig
from modeling_decodepos.losses import OBJECTIVES, Objective
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining
from modeling_decodepos.regions import View
from training.arguments import ModelArguments, Recipe, build_recipe, parse_command_line
from training.broken_images import BrokenImages
from training.cache import cache_folder, load_cached
from training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from training.export import export_backbone, export_pretraining
from training.images import ImageSource, describe_regions, open_images
from training.interruption import EXIT_INTERRUPTED, StopRequest, lock_folder
from training.loading import Broken, RegionBatch, RegionDataset, StepBatches, build_loader
from training.monitoring import Meter, RunLog, describe_data, describe_run, embedding_std, now, write_json
from training.optimisation import build_optimizer, learning_rate_at, set_learning_rate, teacher_momentum_at
from training.pixels import normalise
from training.probe import ProbeResult, draw_probe, probe_model
from training.report import write_report
from training.streaming import ImageStream, RegionStream, build_stream_loader, check_lanes, open_stream

BACKBONES: dict[str, dict[str, Any]] = {
    "resnet50": {},
    "resnet18": {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    # A ResNet-10 of width 32, for small scenes on two cores.
    "resnet_tiny": {
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 128, 256],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
}


@dataclass
class Run:
    """What a training step needs: the networks, their optimiser, and the schedules as functions of the step."""

    accelerator: Accelerator
    model: nn.Module  # wrapped for distributed training
    net: DecodePosForPreTraining  # the same, unwrapped
    optimizer: torch.optim.Optimizer
    objective: Objective
    recipe: Recipe
    total_steps: int
    peak_learning_rate: float
    step: int = 0

    def momentum(self) -> float:
        """The teacher's EMA coefficient at this step."""
        return teacher_momentum_at(self.step, self.total_steps, self.recipe.run.teacher_momentum)

    def learning_rate(self) -> float:
        """The learning rate at this step."""
        warmup = math.ceil(self.recipe.run.warmup_share * self.total_steps)
        floor = min(self.recipe.run.min_learning_rate, self.peak_learning_rate)
        return learning_rate_at(self.step, self.total_steps, warmup, self.peak_learning_rate, floor)


def training_step(run: Run, batches: list[RegionBatch]) -> dict[str, Tensor]:
    """One update of student and teacher from this process's micro-batches; returns detached values for the log."""
    run.net.update_teacher(run.momentum())  # once per step, before the teacher's forward pass, as in SoCo
    set_learning_rate(run.optimizer, run.learning_rate())
    num_pairs = count_pairs(run, batches)
    logged: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last else run.accelerator.no_sync(run.model):
            views = {name: prepare_view(view, run.accelerator.device) for name, view in batch.views.items()}
            output = run.model(views, objective=run.objective, num_pairs=num_pairs)
            # The loss divides by the pairs of all processes; distributed training would divide by their number again.
            run.accelerator.backward(output.loss * run.accelerator.num_processes)
        for name, value in {"loss": output.loss.detach(), **output.terms}.items():
            logged[name] = logged.get(name, 0.0) + value
    logged = {name: run.accelerator.reduce(value, "sum") for name, value in logged.items()}
    stop_if_not_finite(logged["loss"], run.step, batches)
    if run.recipe.run.gradient_clip > 0:
        logged["grad_norm"] = run.accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.run.gradient_clip)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    view = run.objective.teacher_views[-1]
    logged["embedding_std"] = torch.tensor(embedding_std(output.targets[view], views[view].valid_regions))
    return logged


def count_pairs(run: Run, batches: list[RegionBatch]) -> dict[tuple[str, str], Tensor]:
    """How many regions each pair of views matches, over all processes and micro-batches of a step."""
    pairs = sorted({pair for term in run.objective.terms for pair in term.pairs})
    counts = [sum(int(matched_regions(batch, *pair).sum()) for batch in batches) for pair in pairs]
    totals = run.accelerator.reduce(torch.tensor(counts, device=run.accelerator.device), "sum")
    return dict(zip(pairs, totals, strict=True))


def matched_regions(batch: RegionBatch, student: str, teacher: str) -> Tensor:
    """(B, R) flags of the regions that both views of a batch show."""
    flags = []
    for view in (batch.views[student], batch.views[teacher]):
        full = torch.zeros((len(batch.indices), view.valid_regions.shape[1]), dtype=torch.bool)
        rows = torch.arange(len(batch.indices)) if view.rows is None else view.rows
        full[rows] = view.valid_regions
        flags.append(full)
    return flags[0] & flags[1]


def prepare_view(view: View, device: torch.device) -> View:
    """The view on the device, its 8-bit pixels normalised there."""
    view = view.to(device)
    return dataclasses.replace(view, pixel_values=normalise(view.pixel_values))


def stop_if_not_finite(loss: Tensor, step: int, batches: list[RegionBatch]) -> None:
    """Stop before the update that would spoil the weights."""
    if not torch.isfinite(loss):
        indices = [index for batch in batches for index in batch.indices]
        raise FloatingPointError(
            f"the loss is {float(loss)} at step {step}; stopped before the update. Images (indices) of this batch: "
            f"{indices}. Lower base_learning_rate, or set gradient_clip."
        )


def train(
    run: Run,
    batches: Iterator[RegionBatch],
    log: RunLog | None,
    progress: tqdm,
    steps_per_epoch: int,
    broken: BrokenImages,
) -> None:
    """Train to the last step, or until asked to stop; log, save and show on the way."""
    settings = run.recipe.run
    stop = StopRequest()
    meter, moves = Meter(), torch.zeros(2, dtype=torch.int64)
    met: list[Broken] = []
    while run.step < run.total_steps:
        waiting = time.perf_counter()
        own = [next(batches) for _ in range(settings.accumulation_steps)]
        meter.waited += time.perf_counter() - waiting
        schedule = {"learning_rate": run.learning_rate(), "momentum": run.momentum()}
        logged = training_step(run, own)
        run.step += 1
        for batch in own:
            images = settings.global_batch_size // settings.accumulation_steps
            meter.add(images, batch.slack.tolist(), batch.can_move.tolist())
            met += batch.broken
        last, leave = run.step == run.total_steps, stop.agreed(run.accelerator)
        if run.step % settings.log_steps == 0 or last or leave:
            line: dict[str, Any] = {"step": run.step, "epoch": round(run.step / steps_per_epoch, 3)}
            line |= {name: float(value) for name, value in logged.items()} | schedule | meter.line()
            if log is not None:
                log.write(**line)
            show(progress, line, run.objective)
            if run.recipe.views.repositioning != "none":
                moves += count_moves(run.accelerator, meter.can_move)
                stop_if_immobile(int(moves[0]), int(moves[1]), settings.max_immobile_share)
            new = broken.add(gather_object(met))
            if new and run.accelerator.is_main_process:
                progress.write(f"{new} more images cannot be read, {len(broken)} in all: see {broken.path}")
            meter, met = Meter(), []
        progress.update(1)
        if last or leave or (settings.save_steps and run.step % settings.save_steps == 0):
            folder = Path(settings.output_dir) / "checkpoints"
            state = {"recipe": run.recipe.values()}
            save_checkpoint(
                folder, run.step, run.net, run.optimizer, run.accelerator, state, settings.keep_checkpoints
            )
        if leave and not last:
            run.accelerator.print(f"\nasked to stop: saved at step {run.step}; the same command continues from there.")
            sys.exit(EXIT_INTERRUPTED)


def show(progress: tqdm, line: dict[str, Any], objective: Objective) -> None:
    """Put the latest values beside the progress bar."""
    shown = {name: f"{line[name]:.3f}" for name in ("loss", *(term.name for term in objective.terms))}
    speed = {"img/s": f"{line['images_per_second']:.0f}", "wait": f"{line['data_wait']:.0%}"}
    progress.set_postfix(shown | speed, refresh=False)


def count_moves(accelerator: Accelerator, can_move: list[bool]) -> Tensor:
    """How many mixed samples could not move their regions, and how many there were, over all processes."""
    counts = torch.tensor([can_move.count(False), len(can_move)], device=accelerator.device)
    return accelerator.reduce(counts, "sum").cpu()


def stop_if_immobile(immobile: int, mixed: int, most: float) -> None:
    """Refuse to go on re-positioning regions that have nowhere to go: that teaches nothing and looks like success."""
    if mixed and immobile / mixed > most:
        raise RuntimeError(
            f"{immobile} of {mixed} mixed samples had no room to move their regions (allowed: {most:.0%}, "
            "max_immobile_share). Use --repositioning scaled, or fewer and smaller regions."
        )


def build_model(args: ModelArguments, seed: int) -> DecodePosForPreTraining:
    """A pre-training model around a named backbone, or around the weights of a Hub id or folder."""
    heads: dict[str, Any] = {
        "region_bins": args.region_bins,
        "projector_hidden_size": args.projector_hidden_size,
        "projection_size": args.projection_size,
        "use_predictor": args.use_predictor,
    }
    set_seed(seed)
    if args.backbone in BACKBONES:
        backbone_config = ResNetConfig(**BACKBONES[args.backbone])
        return DecodePosForPreTraining(DecodePosConfig(backbone_config=backbone_config, **heads))
    try:
        return DecodePosForPreTraining.from_backbone(args.backbone, **heads)
    except OSError as error:
        raise ValueError(
            f"backbone: {args.backbone!r} is none of {', '.join(BACKBONES)}, and no folder or reachable Hub id with a "
            f"config.json ({str(error).splitlines()[0]})"
        ) from error


def plan_batches(accelerator: Accelerator, recipe: Recipe, images: int) -> StepBatches:
    """Which part of every global batch this process takes."""
    per_process = recipe.run.accumulation_steps
    first = accelerator.process_index * per_process
    return StepBatches(
        length=images,
        global_batch_size=recipe.run.global_batch_size,
        slices=accelerator.num_processes * per_process,
        own_slices=tuple(range(first, first + per_process)),
        seed=recipe.run.seed,
    )


def describe_plan(run: Run, batches: StepBatches, source: ImageSource | ImageStream) -> str:
    """Batch size and learning rate with everything they were derived from, in one line each."""
    settings = run.recipe.run
    return (
        f"{run.recipe.name}: {run.total_steps} steps of {settings.global_batch_size} images = "
        f"{run.accelerator.num_processes} processes x {settings.accumulation_steps} micro-batches x "
        f"{settings.global_batch_size // batches.slices} images, from the {len(source)} of {run.recipe.data.data}, on "
        f"{run.accelerator.device}\n"
        f"regions: {describe_regions(source.region_source, run.recipe.data.region_source)}\n"
        f"peak learning rate {run.peak_learning_rate:.4g} = {settings.base_learning_rate:g} x "
        f"{settings.global_batch_size} / 256"
    )


def check_world(accelerator: Accelerator) -> None:
    """The launcher may silently start fewer processes, or several runs beside each other, than were asked for."""
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise ValueError(
            f"the launcher asked for {asked} processes but {accelerator.num_processes} work together. On CPUs launch "
            "with ACCELERATE_USE_CPU=true torchrun --nproc_per_node N training/pretrain.py --cpu."
        )


def refuse_other_recipe(place: Path, before: dict[str, Any], recipe: Recipe) -> None:
    """A run folder, and a checkpoint, belong to one recipe."""
    free = {
        "num_workers",
        "cache_dir",
        "max_broken_share",
        "log_steps",
        "save_steps",
        "keep_checkpoints",
        "resume",
        "output_dir",
        "cpu",
    }
    if recipe.data.streaming:  # the images are dealt out to the workers
        free -= {"num_workers"}
    defaults, after = build_recipe({}).values(), recipe.values()
    changed = [k for k in after if k not in free and before.get(k, defaults[k]) != after[k]]
    if changed:
        lines = "\n".join(f"  {k}: {before.get(k, defaults[k])!r} there, {after[k]!r} now" for k in changed)
        raise ValueError(
            f"{place} belongs to a run of another recipe:\n{lines}\n"
            "Give this run its own --output_dir, or delete the folder."
        )


def main() -> None:
    """Train, export, and write the report."""
    recipe = parse_command_line()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # Some backbones hold weights that no feature map depends on (Swin's last norm, DINO's mask token).
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=recipe.model.backbone not in BACKBONES)]
    # A 1x1 kernel's channels-last strides differ in name only from those of its gradient bucket.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    accelerator = Accelerator(cpu=recipe.run.cpu, mixed_precision=recipe.run.mixed_precision, kwargs_handlers=handlers)
    output_dir = Path(recipe.run.output_dir)
    try:
        check_world(accelerator)
        lock = lock_folder(output_dir) if accelerator.is_main_process else None
        run, dataset, batches = build_run(accelerator, recipe, output_dir)
    except (ValueError, OSError) as error:  # what a user can put right: the message says how
        sys.exit(f"{error}")
    if run.step < run.total_steps:
        run_training(run, dataset, batches, output_dir)
    else:
        accelerator.print("this run is complete; nothing is left to train.")
    if accelerator.is_main_process:
        if not is_finished(output_dir):
            finish(run, dataset, output_dir)
        print(how_to_load(output_dir))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if lock is not None:
        lock.close()


def build_run(
    accelerator: Accelerator, recipe: Recipe, output_dir: Path
) -> tuple[Run, RegionDataset | RegionStream, StepBatches]:
    """Data, networks and optimiser of a run, at the step of the checkpoint it continues from, if there is one."""
    known = output_dir / "run.json"
    if known.is_file() and any(output_dir.glob("checkpoints/step_*")):  # without one there is nothing to protect
        refuse_other_recipe(output_dir, json.loads(known.read_text(encoding="utf-8"))["recipe"], recipe)
    objective = OBJECTIVES[recipe.model.objective]
    if recipe.views.mixed_share == 0 and "repositioned" in objective.views:
        raise ValueError(
            f"mixed_share is 0, but objective {recipe.model.objective!r} compares the mixed view. Use --objective "
            "decoupling, or mix a share of the images."
        )
    if "depositioning" in {term.name for term in objective.terms}:
        objective = objective.weighted({"depositioning": recipe.model.depositioning_weight})
    dataset = build_dataset(accelerator, recipe, objective, output_dir)
    batches = plan_batches(accelerator, recipe, len(dataset.source))
    if isinstance(dataset, RegionStream):
        check_lanes(dataset.source, accelerator.num_processes, recipe.data.num_workers)
    net = build_model(recipe.model, recipe.run.seed).to(accelerator.device, memory_format=torch.channels_last)
    net.train()
    run = Run(
        accelerator=accelerator,
        model=accelerator.prepare_model(net),
        net=net,
        optimizer=build_optimizer(net, recipe.run.optimizer, recipe.run.weight_decay, recipe.run.sgd_momentum),
        objective=objective,
        recipe=recipe,
        total_steps=recipe.run.max_steps or recipe.run.epochs * batches.steps_per_epoch,
        peak_learning_rate=recipe.run.base_learning_rate * recipe.run.global_batch_size / 256,
    )
    accelerator.print(describe_plan(run, batches, dataset.source))
    checkpoint = find_checkpoint(output_dir / "checkpoints", recipe.run.resume)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, net, run.optimizer, accelerator)
        refuse_other_recipe(checkpoint, state["recipe"], recipe)
        run.step = state["step"]
        accelerator.print(f"continuing from {checkpoint} at step {run.step}")
    return run, dataset, batches


def build_dataset(
    accelerator: Accelerator, recipe: Recipe, objective: Objective, output_dir: Path
) -> RegionDataset | RegionStream:
    """The images that a recipe names, as they become batches: streamed, from a cache, or decoded each time."""
    data, seed = recipe.data, recipe.run.seed
    views, image_level = list(objective.views), objective.level == "image"
    if data.streaming:
        with accelerator.main_process_first():
            files = open_stream(data.data, data.split, data.region_source, seed)
        return RegionStream(files, recipe.views, views, block=data.stream_block, seed=seed, image_level=image_level)
    with accelerator.main_process_first():
        source = open_images(data.data, data.split, data.region_source, seed)
    if data.cache_px:  # one process builds it; the others wait for a file lock, which unlike a collective has no limit
        folder = Path(data.cache_dir) if data.cache_dir else cache_folder(output_dir, source, data.cache_px)
        source = load_cached(source, data.cache_px, folder, data.num_workers)
        accelerator.print(f"pixels from the cache in {folder}")
    return RegionDataset(source, recipe.views, views, seed=seed, image_level=image_level)


def run_training(run: Run, dataset: RegionDataset | RegionStream, batches: StepBatches, output_dir: Path) -> None:
    """Everything between a built model and its last checkpoint."""
    main_process = run.accelerator.is_main_process
    log = None
    if main_process:
        write_json(output_dir / "run.json", describe(run, dataset))
        log = RunLog(output_dir / "log.jsonl", run.step)
        if run.step == 0:
            (output_dir / "probe.json").unlink(missing_ok=True)  # of an earlier run that left no checkpoint
        if run.step == 0 and run.recipe.run.probe_count:
            write_json(output_dir / "probe.json", {"before": probe(run).to_dict()})
    batches = dataclasses.replace(batches, first_step=run.step, last_step=run.total_steps)
    workers, pin_memory = run.recipe.data.num_workers, run.accelerator.device.type == "cuda"
    if isinstance(dataset, RegionStream):
        loader = build_stream_loader(dataset, batches, workers, pin_memory)
    else:
        loader = build_loader(dataset, batches, workers, pin_memory)
    broken = BrokenImages(
        len(dataset.source),
        run.recipe.data.max_broken_share,
        output_dir / "broken_images.jsonl" if main_process else None,
        resume=run.step > 0,
    )
    with tqdm(
        total=run.total_steps, initial=run.step, disable=not main_process, unit="step", dynamic_ncols=True
    ) as bar:
        train(run, iter(loader), log, bar, batches.steps_per_epoch, broken)


def describe(run: Run, dataset: RegionDataset | RegionStream) -> dict[str, Any]:
    """What run.json holds."""
    data = describe_data(run.recipe.data.data, dataset.source)
    return describe_run(run.recipe, data) | {
        "terms": [term.name for term in run.objective.terms],
        "projection_size": run.recipe.model.projection_size,
        "steps": run.total_steps,
    }


def probe(run: Run) -> ProbeResult:
    """How much of a region's feature is the object, on exactly re-rendered scenes; see training/probe.py."""
    size = run.recipe.views.view_size_px
    return probe_model(run.net.decodepos, seed=run.recipe.run.seed, count=run.recipe.run.probe_count, size_px=size)


def compare_probes(run: Run, output_dir: Path) -> None:
    """Probe the trained network, and draw it beside the one the run began with."""
    path = output_dir / "probe.json"
    if not path.is_file():
        return
    results = json.loads(path.read_text(encoding="utf-8"))
    results["after"] = probe(run).to_dict()
    write_json(path, results)
    before, after = (ProbeResult.from_dict(results[name]) for name in ("before", "after"))
    draw_probe(before, after).save(output_dir / "probe.png")


def finish(run: Run, dataset: RegionDataset | RegionStream, output_dir: Path) -> None:
    """Export the weights, compare the probes, draw the views, and write the report."""
    size = run.recipe.views.view_size_px
    export = {
        "backbone": str(export_backbone(run.net, output_dir / "export" / "backbone", size)),
        "pretraining": str(export_pretraining(run.net, output_dir / "export" / "pretraining", size)),
    }
    dataset.draw(0, 0).save(output_dir / "views.png")
    compare_probes(run, output_dir)
    known = output_dir / "run.json"
    description = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else describe(run, dataset)
    write_json(known, description | {"status": "finished", "finished": now(), "export": export})
    write_report(output_dir)


def is_finished(output_dir: Path) -> bool:
    """Whether an earlier call already left everything that `finish` leaves."""
    known = output_dir / "run.json"
    if not known.is_file():
        return False
    description = json.loads(known.read_text(encoding="utf-8"))
    left = [*description.get("export", {}).values(), output_dir / "report.html"]
    return description["status"] == "finished" and all(Path(path).exists() for path in left)


def how_to_load(output_dir: Path) -> str:
    """Where everything is, and the three lines that load the result."""
    backbone = output_dir / "export" / "backbone"
    return (
        f"\ncheckpoint  {output_dir / 'checkpoints'}\nreport      {output_dir / 'report.html'}\n\n"
        "Load what came out (no code of ours needed):\n\n"
        "    from transformers import AutoImageProcessor, AutoModel\n"
        f'    processor = AutoImageProcessor.from_pretrained("{backbone}")\n'
        f'    model = AutoModel.from_pretrained("{backbone}")'
    )


if __name__ == "__main__":
    main()
