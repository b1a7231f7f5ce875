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
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ResNetConfig
from transformers import logging as transformers_logging

from modeling_decodepos.configuration_decodepos import DecodePosConfig
from modeling_decodepos.losses import OBJECTIVES, Objective
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining
from modeling_decodepos.regions import View
from training.arguments import ModelArguments, Recipe, parse_command_line
from training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from training.export import IMAGE_MEAN, IMAGE_STD, export_backbone, export_pretraining
from training.loading import RegionBatch, RegionDataset, StepBatches, build_loader
from training.monitoring import RunLog, Stopwatch, describe_data, describe_run, embedding_std, now, write_json
from training.optimisation import build_optimizer, learning_rate_at, set_learning_rate, teacher_momentum_at
from training.probe import ProbeResult, draw_probe, probe_model
from training.report import write_report

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
    mean = torch.tensor(IMAGE_MEAN, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGE_STD, device=device).view(1, 3, 1, 1) * 255
    return View((view.pixel_values - mean) / std, view.boxes, view.valid_regions, view.rows)


def stop_if_not_finite(loss: Tensor, step: int, batches: list[RegionBatch]) -> None:
    """Stop before the update that would spoil the weights."""
    if not torch.isfinite(loss):
        indices = [index for batch in batches for index in batch.indices]
        raise FloatingPointError(
            f"the loss is {float(loss)} at step {step}; stopped before the update. Images (indices) of this batch: "
            f"{indices}. Lower base_learning_rate, or set gradient_clip."
        )


def train(run: Run, batches: Iterator[RegionBatch], log: RunLog | None, progress: tqdm, steps_per_epoch: int) -> None:
    """Train to the last step; log, save and show on the way."""
    settings = run.recipe.run
    per_step = settings.accumulation_steps
    checkpoints = Path(settings.output_dir) / "checkpoints"
    watch, slack, can_move = Stopwatch(), [], []
    immobile, mixed = 0, 0
    while run.step < run.total_steps:
        waiting = time.perf_counter()
        own = [next(batches) for _ in range(per_step)]
        watch.waited += time.perf_counter() - waiting
        logged = training_step(run, own)
        run.step += 1
        slack += [batch.slack for batch in own]
        can_move += [batch.can_move for batch in own]
        if run.step % settings.log_steps == 0 or run.step == run.total_steps:
            steps = len(slack) // per_step
            moves = torch.cat(can_move)
            immobile, mixed = immobile + int((~moves).sum()), mixed + len(moves)
            line = {
                "step": run.step,
                "epoch": round(run.step / steps_per_epoch, 3),
                **{name: float(value) for name, value in logged.items()},
                "learning_rate": run.learning_rate(),
                "momentum": run.momentum(),
                "slack": float(torch.cat(slack).mean()) if len(moves) else None,
                "can_move": float(moves.float().mean()) if len(moves) else None,
                "images_per_second": steps * settings.global_batch_size / watch.seconds(),
                "data_wait": watch.wait_share(),
                "seconds": watch.seconds(),
            }
            if log is not None:
                log.write(**line)
            shown = {name: f"{line[name]:.3f}" for name in ("loss", *(t.name for t in run.objective.terms))}
            progress.set_postfix(
                shown | {"img/s": f"{line['images_per_second']:.0f}", "wait": f"{line['data_wait']:.0%}"},
                refresh=False,
            )
            stop_if_immobile(immobile, mixed, settings.max_immobile_share)
            watch, slack, can_move = Stopwatch(), [], []
        progress.update(1)
        last = run.step == run.total_steps
        if last or (settings.save_steps and run.step % settings.save_steps == 0):
            save_checkpoint(
                checkpoints, run.step, run.net, run.optimizer, run.accelerator, {"recipe": run.recipe.values()},
                settings.keep_checkpoints,
            )  # fmt: skip


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
    return DecodePosForPreTraining.from_backbone(args.backbone, **heads)


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


def describe_plan(run: Run, batches: StepBatches, images: int) -> str:
    """Batch size and learning rate with everything they were derived from, in one line each."""
    settings = run.recipe.run
    return (
        f"{run.recipe.name}: {run.total_steps} steps of {settings.global_batch_size} images = "
        f"{run.accelerator.num_processes} processes x {settings.accumulation_steps} micro-batches x "
        f"{settings.global_batch_size // batches.slices} images, from the {images} of {run.recipe.data.data}, on "
        f"{run.accelerator.device}\n"
        f"peak learning rate {run.peak_learning_rate:.4g} = {settings.base_learning_rate:g} x "
        f"{settings.global_batch_size} / 256"
    )


def check_world(accelerator: Accelerator) -> None:
    """The launcher may silently start fewer processes, or several runs beside each other, than were asked for."""
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise RuntimeError(
            f"the launcher asked for {asked} processes but {accelerator.num_processes} work together. On CPUs launch "
            "with ACCELERATE_USE_CPU=true torchrun --nproc_per_node N training/pretrain.py --cpu."
        )


def check_same_recipe(output_dir: Path, recipe: Recipe) -> None:
    """A run folder belongs to one recipe."""
    known = output_dir / "run.json"
    if not known.is_file():
        return
    before, after = json.loads(known.read_text(encoding="utf-8"))["recipe"], recipe.values()
    free = {"num_workers", "log_steps", "save_steps", "keep_checkpoints", "resume", "output_dir", "cpu"}
    changed = [k for k in after if k not in free and before.get(k) != after[k]]
    if changed:
        lines = "\n".join(f"  {key}: {before.get(key)!r} there, {after[key]!r} now" for key in changed)
        raise ValueError(
            f"{output_dir} holds a run of another recipe:\n{lines}\n"
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
    check_world(accelerator)
    output_dir = Path(recipe.run.output_dir)
    check_same_recipe(output_dir, recipe)
    objective = OBJECTIVES[recipe.model.objective]
    if "depositioning" in {term.name for term in objective.terms}:
        objective = objective.weighted({"depositioning": recipe.model.depositioning_weight})

    with accelerator.main_process_first():
        dataset = RegionDataset(
            recipe.data.data,
            recipe.data.split,
            recipe.views,
            list(objective.views),
            seed=recipe.run.seed,
            region_source=recipe.data.region_source,
            image_level=objective.level == "image",
        )
    batches = plan_batches(accelerator, recipe, len(dataset))
    total_steps = recipe.run.max_steps or recipe.run.epochs * batches.steps_per_epoch

    net = build_model(recipe.model, recipe.run.seed).to(accelerator.device, memory_format=torch.channels_last)
    net.train()
    peak = recipe.run.base_learning_rate * recipe.run.global_batch_size / 256
    optimizer = build_optimizer(net, recipe.run.optimizer, recipe.run.weight_decay, recipe.run.sgd_momentum)
    model = accelerator.prepare_model(net)
    run = Run(accelerator, model, net, optimizer, objective, recipe, total_steps, peak)
    checkpoint = find_checkpoint(output_dir / "checkpoints", recipe.run.resume)
    if checkpoint is not None:
        run.step = load_checkpoint(checkpoint, net, optimizer, accelerator)["step"]
    accelerator.print(describe_plan(run, batches, len(dataset)))
    if checkpoint is not None:
        accelerator.print(f"continuing from {checkpoint} at step {run.step}")
    if run.step < total_steps:
        run_training(run, dataset, batches, output_dir)
    else:
        accelerator.print("this run is complete; nothing is left to train.")
    if accelerator.is_main_process:
        if not is_finished(output_dir):
            finish(run, dataset, output_dir)
        print(how_to_load(output_dir))
    accelerator.wait_for_everyone()
    accelerator.end_training()


def run_training(run: Run, dataset: RegionDataset, batches: StepBatches, output_dir: Path) -> None:
    """Everything between a built model and its last checkpoint."""
    recipe, main_process = run.recipe, run.accelerator.is_main_process
    log = None
    if main_process:
        description = describe_run(recipe, describe_data(recipe.data.data, recipe.data.split, dataset.rows))
        description["terms"] = [term.name for term in run.objective.terms]
        description["projection_size"] = recipe.model.projection_size
        description["steps"] = run.total_steps
        write_json(output_dir / "run.json", description)
        log = RunLog(output_dir / "log.jsonl", run.step)
        if run.step == 0 and recipe.run.probe_count:
            write_json(output_dir / "probe.json", {"before": probe(run).to_dict()})
    batches = dataclasses.replace(batches, first_step=run.step, last_step=run.total_steps)
    loader = build_loader(dataset, batches, recipe.data.num_workers, run.accelerator.device.type == "cuda")
    with tqdm(
        total=run.total_steps, initial=run.step, disable=not main_process, unit="step", dynamic_ncols=True
    ) as bar:
        train(run, iter(loader), log, bar, batches.steps_per_epoch)


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


def finish(run: Run, dataset: RegionDataset, output_dir: Path) -> None:
    """Export the weights, compare the probes, draw the views, and write the report."""
    size = run.recipe.views.view_size_px
    export = {
        "backbone": str(export_backbone(run.net, output_dir / "export" / "backbone", size)),
        "pretraining": str(export_pretraining(run.net, output_dir / "export" / "pretraining", size)),
    }
    dataset.draw(0, 0).save(output_dir / "views.png")
    compare_probes(run, output_dir)
    description = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    write_json(output_dir / "run.json", description | {"status": "finished", "finished": now(), "export": export})
    write_report(output_dir)


def is_finished(output_dir: Path) -> bool:
    """Whether an earlier call already left everything that `finish` leaves."""
    description = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
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
