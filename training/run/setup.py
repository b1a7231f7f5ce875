"""A run, built from a recipe: data, networks, optimiser, and the step it continues from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.imagenet import mean_colour
from modeling_decodepos.losses import OBJECTIVES, Objective
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining, DecodePosModel
from modeling_decodepos.stored_models import load_whole
from training.data.batches import RegionDataset, StepBatches
from training.data.cache import cache_folder, load_cached
from training.data.kept_aside import LEAST, OtherImages, has_validation, kept_aside
from training.data.sources import ImageSource, ParquetImages, describe_regions, open_images
from training.data.streaming import ImageStream, RegionStream, check_lanes, open_stream
from training.recipe import Recipe
from training.run import batch_norms
from training.run.anchor import START_FOLDER, FeatureAnchor, save_start
from training.run.checkpoints import find_checkpoint, load_checkpoint, saved_steps
from training.run.log import count_things
from training.run.model import build_model, check_view_sizes, compile_stages, write_out_attention
from training.run.optimisation import build_optimizer, learning_rate_at, teacher_momentum_at, weight_decay_at
from training.run.resume import read_recipe, refuse_other_data, refuse_other_recipe

Data = RegionDataset | RegionStream
# How long processes wait for one another. The main process alone prepares a data set, measures, writes checkpoints and
# the report; GPUs would give up on it after ten minutes.
LONGEST_WAIT = timedelta(hours=1)


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
    anchor: FeatureAnchor | None = None
    clean_pictures: Callable[[], Iterator[Tensor]] | None = None  # that batch norms see in the end
    start_pictures: Callable[[], Iterator[Tensor]] | None = None  # that those of fresh weights see to be measured
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)  # what else a checkpoint keeps, as JSON

    def momentum(self) -> float:
        """The teacher's EMA coefficient at this step; 1 where it is frozen."""
        if self.recipe.model.teacher == "frozen":
            return 1.0
        return teacher_momentum_at(self.step, self.total_steps, self.recipe.run.teacher_momentum)

    def learning_rate(self) -> float:
        """The learning rate at this step."""
        floor = min(self.recipe.run.min_learning_rate, self.peak_learning_rate)
        return learning_rate_at(self.step, self.total_steps, self.warmup_steps, self.peak_learning_rate, floor)

    def weight_decay(self) -> float:
        """The weight decay at this step."""
        settings = self.recipe.run
        return weight_decay_at(self.step, self.total_steps, settings.weight_decay, settings.weight_decay_end)

    @contextmanager
    def as_it_leaves(self) -> Iterator[None]:
        """The student as it is measured and exported: its weights averaged with the start's, where the recipe says so.

        The start is the teacher that stayed as it was. Afterwards the student is what it was, bit for bit.
        """
        share = self.recipe.model.keep_start
        own, start = (list(part.parameters()) for part in (self.net.decodepos, self.net.teacher["decodepos"]))
        kept = [weight.detach().clone() for weight in own] if share else []
        with torch.no_grad():
            if kept:
                torch._foreach_lerp_(own, start, share)
            try:
                yield
            finally:
                if kept:
                    torch._foreach_copy_(own, kept)

    @contextmanager
    def as_it_starts(self) -> Iterator[None]:
        """The student as it is measured before the first step: fresh weights' batch norms fit the pictures."""
        if self.start_pictures is None:
            yield
            return
        with batch_norms.fitted(self.net.decodepos, self.start_pictures()):
            yield

    def is_logged(self) -> bool:
        """Whether the schedule wants a log line after this step."""
        return (self.step + 1) % self.recipe.run.log_steps == 0 or self.step + 1 == self.total_steps

    @property
    def warmup_steps(self) -> int:
        """First steps, in which the learning rate rises."""
        settings = self.recipe.run
        least = min(settings.warmup_steps, self.total_steps // 2)
        return max(math.ceil(settings.warmup_share * self.total_steps), least)

    @property
    def continues_weights(self) -> bool:
        """Whether the run began with weights that know something; fresh ones begin at chance and can lose nothing."""
        return self.recipe.model.backbone not in BACKBONES

    @property
    def embedding_size(self) -> int:
        """Numbers in an embedding whose spread is watched."""
        config = self.net.config
        return config.projection_size if config.use_heads else config.hidden_size

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every pair of views whose regions are compared; the anchor compares a view with itself."""
        pairs = {pair for term in self.objective.terms for pair in term.pairs}
        return sorted(pairs | ({(self.anchor.view, self.anchor.view)} if self.anchor else set()))


def build_accelerator(recipe: Recipe) -> Accelerator:
    """The processes and the device of a run, checked against what was asked for."""
    settings = recipe.run
    if settings.tracker != "none" and find_spec(settings.tracker) is None:
        raise ValueError(
            f"tracker is {settings.tracker!r}, which is not installed here: pip install {settings.tracker}."
        )
    if settings.space_id and settings.tracker != "trackio":
        raise ValueError(
            f"space_id is {settings.space_id!r}, but tracker is {settings.tracker!r}: give --tracker trackio."
        )
    # Some backbones hold weights that no feature map depends on (Swin's last norm, DINO's mask token).
    handlers = [
        DistributedDataParallelKwargs(find_unused_parameters=recipe.model.backbone not in BACKBONES),
        InitProcessGroupKwargs(timeout=LONGEST_WAIT),
    ]
    try:
        accelerator = Accelerator(
            cpu=settings.cpu,
            mixed_precision=settings.mixed_precision,
            kwargs_handlers=handlers,
            log_with=None if settings.tracker == "none" else settings.tracker,
            project_dir=settings.output_dir,
        )
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ValueError(
            f"the processes cannot meet at {place} ({str(error).splitlines()[0]}). If another run holds the port, "
            "give this one its own: --main_process_port (accelerate) or --master_port (torchrun)."
        ) from error
    check_world(accelerator, settings.processes)
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1:
        take_free_cores(recipe.data.num_workers)
    return accelerator


def take_free_cores(num_workers: int) -> None:
    """Torch takes every core but one, which is for the workers if there are any; OMP_NUM_THREADS decides otherwise."""
    said, launched = os.environ.get("OMP_NUM_THREADS"), "ACCELERATE_MIXED_PRECISION" in os.environ
    if said is None or (said == "1" and launched):  # which is what `accelerate launch` says by itself
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores - min(num_workers, 1)))


def check_world(accelerator: Accelerator, processes: int) -> None:
    """The launcher may silently start fewer processes, or several runs beside each other, than were asked for."""
    asked, by = processes or int(os.environ.get("WORLD_SIZE", "1")), "--processes" if processes else "the launcher"
    found = accelerator.num_processes
    # `accelerate launch --cpu --num_processes 2` sets a meeting place, then starts a single process.
    lonely = found == 1 and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ
    if found != asked or lonely:
        raise ValueError(
            f"{by} asked for {'several' if lonely else asked} processes but {found} work together. On CPUs "
            "launch with ACCELERATE_USE_CPU=true torchrun --nproc_per_node N training/pretrain.py --cpu; on GPUs see "
            "training/launchers/."
        )


def build_run(accelerator: Accelerator, recipe: Recipe, output_dir: Path) -> tuple[Run, Data, StepBatches]:
    """Data, networks and optimiser of a run, at the step of the checkpoint it continues from, if there is one."""
    known = output_dir / "run.json"
    if known.is_file() and saved_steps(output_dir / "checkpoints"):  # without one there is nothing to protect
        refuse_other_recipe(output_dir, read_recipe(known), recipe)
    checkpoint = find_checkpoint(output_dir / "checkpoints", recipe.run.resume)
    objective = build_objective(recipe)
    start = output_dir / START_FOLDER
    net = build_model(recipe.model, recipe.run.seed, start if checkpoint and start.is_dir() else None)
    check_view_sizes(net, recipe, objective)
    dataset = build_dataset(accelerator, recipe, objective, output_dir, mean_colour(net.config.image_mean))
    batches = plan_batches(accelerator, recipe, len(dataset.source))
    if isinstance(dataset, RegionStream):
        check_lanes(dataset.source, accelerator.num_processes, recipe.data.num_workers)
    net = net.to(accelerator.device, memory_format=torch.channels_last)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        write_out_attention(net)
    if recipe.model.backbone not in BACKBONES:
        save_start(net.decodepos, start, accelerator, resumed=checkpoint is not None)
    anchor = None
    if recipe.model.anchor_weight > 0:
        held = load_whole(DecodePosModel, start).to(accelerator.device)
        anchor = FeatureAnchor(held, objective, recipe.model.anchor_weight)
        if batch_norms.are_held(recipe.model):
            batch_norms.hold(held)
    if recipe.model.sync_batch_norm and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # it does not exist for CPUs
        if anchor is not None:
            anchor.synchronise()
    if recipe.model.compile:
        compile_stages(net)
    run = Run(
        accelerator=accelerator,
        model=accelerator.prepare_model(net),
        net=net,
        optimizer=build_optimizer(net, recipe.run.optimizer, recipe.run.weight_decay, recipe.run.sgd_momentum),
        objective=objective,
        recipe=recipe,
        total_steps=recipe.run.max_steps or recipe.run.epochs * batches.steps_per_epoch,
        peak_learning_rate=recipe.run.base_learning_rate * recipe.run.global_batch_size / 256,
        anchor=anchor,
    )
    if recipe.model.batch_norm == "recalibrated" and isinstance(dataset, RegionDataset):
        run.clean_pictures = partial(batch_norms.clean_pictures, dataset)
    if not run.continues_weights and not batch_norms.are_held(recipe.model) and isinstance(dataset, RegionDataset):
        run.start_pictures = partial(batch_norms.clean_pictures, dataset)
    if accelerator.process_index:  # what networks draw (dropout, stochastic depth) must differ between processes
        torch.manual_seed(recipe.run.seed + accelerator.process_index)
    accelerator.print(describe_plan(run, batches, dataset.source))
    if checkpoint is not None:
        run.state = load_checkpoint(checkpoint, net, run.optimizer, accelerator, "processes" in recipe.allowed_changes)
        refuse_other_recipe(checkpoint, run.state.get("recipe", {}), recipe)
        refuse_other_data(checkpoint, run.state.get("data"), dataset.source, recipe)
        run.step = run.state["step"]
        accelerator.print(f"continuing from {checkpoint} at step {run.step}")
    run.state["data"] = dataset.source.fingerprint
    steps = accelerator.gather(torch.tensor([run.step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes would continue from different steps ({sorted(set(steps))}): all machines must see "
            f"{output_dir} under the same path."
        )
    return run, dataset, batches


def build_dataset(
    accelerator: Accelerator, recipe: Recipe, objective: Objective, output_dir: Path, colour: tuple[int, ...]
) -> Data:
    """The images that a recipe names, as they become batches: streamed, from a cache, or decoded each time."""
    data, seed = recipe.data, recipe.run.seed
    views = list(objective.views)
    options: Any = {"seed": seed, "image_level": objective.level == "image", "mean_colour": colour}
    if data.streaming:
        with accelerator.main_process_first():
            files = open_stream(data.data, data.split, data.region_source, seed, data.strict_jpeg)
        return RegionStream(files, recipe.views, views, block=data.stream_block, **options)
    with accelerator.main_process_first():
        source = open_images(data.data, data.split, data.region_source, seed, data.strict_jpeg)
    if isinstance(source, ParquetImages) and source.unusable_boxes:
        accelerator.print(
            f"{count_things(source.unusable_boxes, 'box', 'es')} left out: a side below 1 pixel, or over half of it "
            "outside its image"
        )
    if data.cache_px:  # one process builds it; the others wait for a file lock, which unlike a collective has no limit
        folder = Path(data.cache_dir) if data.cache_dir else cache_folder(output_dir, source, data.cache_px)
        source = load_cached(source, data.cache_px, folder, data.num_workers)
        accelerator.print(f"pixels from the cache in {folder}")
    if data.hold_out:
        with accelerator.main_process_first():
            kept = kept_aside(data, seed, len(source))
            if len(kept) or not has_validation(data):
                accelerator.print(describe_kept(len(kept), len(source)))
        source = OtherImages(source, kept) if len(kept) else source
    return RegionDataset(source, recipe.views, views, **options)


def describe_kept(kept: int, pictures: int) -> str:
    """How many pictures training does not see."""
    if kept:
        return (
            f"kept aside to measure on: {kept:,} of {pictures:,} pictures; training sees the other {pictures - kept:,}"
        )
    found = count_things(pictures, "picture")
    return f"kept aside to measure on: none of {found}, for a tenth of them, or hold_out, is fewer than {LEAST}"


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


def build_objective(recipe: Recipe) -> Objective:
    """The recipe's table of pairs with its weights."""
    objective = OBJECTIVES[recipe.model.objective]
    if recipe.model.pair_loss == "contrast":
        if objective.contrasted() == objective:
            raise ValueError(
                f"pair_loss is contrast, but objective {recipe.model.objective!r} attracts nothing: its terms are "
                f"{', '.join(f'{term.name} ({term.kind})' for term in objective.terms)}. Leave pair_loss out."
            )
        objective = objective.contrasted()
    if recipe.views.mixed_share == 0 and "repositioned" in objective.views:
        raise ValueError(
            f"mixed_share is 0, but objective {recipe.model.objective!r} compares the mixed view. Use --objective "
            "decoupling, or mix a share of the images."
        )
    if "depositioning" in {term.name for term in objective.terms}:
        objective = objective.weighted({"depositioning": recipe.model.depositioning_weight})
    return objective


def describe_plan(run: Run, batches: StepBatches, source: ImageSource | ImageStream) -> str:
    """Batch size and learning rate with everything they were derived from, in one line each."""
    settings = run.recipe.run
    return (
        f"{run.recipe.name}: {count_things(run.total_steps, 'step')} of "
        f"{count_things(settings.global_batch_size, 'image')} = "
        f"{count_things(run.accelerator.num_processes, 'process', 'es')} x "
        f"{count_things(settings.accumulation_steps, 'micro-batch', 'es')} x "
        f"{count_things(settings.global_batch_size // batches.slices, 'image')}, from the {len(source)} of "
        f"{run.recipe.data.data}, on {run.accelerator.device}\n"
        f"regions: {describe_regions(source.region_source, run.recipe.data.region_source)}\n"
        f"peak learning rate {run.peak_learning_rate:.4g} = {settings.base_learning_rate:g} x "
        f"{settings.global_batch_size} / 256"
    )
