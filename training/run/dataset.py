"""The images of a run, and which of them each process takes at each step."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from modeling_decodepos.losses import Objective
from training.data.batches import RegionDataset, StepBatches
from training.data.cache import cache_folder, load_cached
from training.data.sources import ParquetImages, open_images
from training.data.streaming import RegionStream, open_stream
from training.recipe import Recipe
from training.run.log import count_things

Data = RegionDataset | RegionStream


def build_dataset(accelerator: Accelerator, recipe: Recipe, objective: Objective, output_dir: Path) -> Data:
    """The images that a recipe names, as they become batches: streamed, from a cache, or decoded each time."""
    data, seed = recipe.data, recipe.run.seed
    views, image_level = list(objective.views), objective.level == "image"
    if data.streaming:
        with accelerator.main_process_first():
            files = open_stream(data.data, data.split, data.region_source, seed)
        return RegionStream(files, recipe.views, views, block=data.stream_block, seed=seed, image_level=image_level)
    with accelerator.main_process_first():
        source = open_images(data.data, data.split, data.region_source, seed)
    if isinstance(source, ParquetImages) and source.unusable_boxes:
        accelerator.print(
            f"{count_things(source.unusable_boxes, 'box', 'es')} left out: a side below 1 pixel, or over half of it "
            "outside its image"
        )
    if data.cache_px:  # one process builds it; the others wait for a file lock, which unlike a collective has no limit
        folder = Path(data.cache_dir) if data.cache_dir else cache_folder(output_dir, source, data.cache_px)
        source = load_cached(source, data.cache_px, folder, data.num_workers)
        accelerator.print(f"pixels from the cache in {folder}")
    return RegionDataset(source, recipe.views, views, seed=seed, image_level=image_level)


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
