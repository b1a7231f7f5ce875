"""Batches from worker processes, ours against PIL and torchvision: `python -m benchmarks.loader`.

Ours is the trainer's loader: batches of 8-bit views made inside `__getitems__`, from JPEG files in memory and from
images that were decoded once. The peer is a DataLoader with default collation over a data set that returns the float
tensors of `benchmarks.pil_views`. Both sides shuffle and take the same number of images per
batch, and nothing is done with the batches when they arrive.

Processor time counts the workers and the process that they feed; wall time is what a training step waits for, and
means little on a machine that is busy with other work.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Iterator
from ctypes import c_long
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.photos import Photo, add_photo_options, decode_each_time, decode_once, load_photos
from benchmarks.pil_views import PilViews, Sample, peer_name
from benchmarks.timing import print_machine, print_result, print_table, ratio, spread, time_interleaved
from modeling_decodepos.losses import OBJECTIVES
from training.data.batches import RegionBatch, RegionDataset, StepBatches, build_loader
from training.recipe import ViewArguments

VIEWS = list(OBJECTIVES["both"].views)
ARGS = ViewArguments()
BATCH_SIZE = 32
# Wanted ratios to the peer.
TARGETS = {"JPEG": 2.8, "cache": 4.5}


class PilDataset(Dataset):
    """The peer's data set: one sample of float tensors at a time."""

    def __init__(self, photos: list[Photo]):
        self.photos, self.make_views = photos, PilViews(ARGS)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Sample:
        """The views of one image."""
        photo, donor = self.photos[index], self.photos[(index + 1) % len(self.photos)]
        return self.make_views(photo.open(), donor.open(), photo.boxes.tolist())


class Measured(Dataset):
    """A data set, gone through as often as wanted, that notes how much memory its workers hold at most (in KB)."""

    def __init__(self, dataset: RegionDataset | PilDataset, length: int):
        self.dataset, self.length = dataset, length
        self.peak: Synchronized[int] = get_context().Value(c_long, 0)

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, keys: list[Any]) -> RegionBatch | list[Sample]:
        """What the data set itself gives to a loader."""
        if isinstance(self.dataset, RegionDataset):
            batch: RegionBatch | list[Sample] = self.dataset.__getitems__(keys)
        else:
            batch = [self.dataset[key % len(self.dataset)] for key in keys]
        with self.peak.get_lock():
            self.peak.value = max(self.peak.value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return batch


class Pass:
    """Takes all batches of one side; remembers the time on the wall of every call, and the bytes of a batch."""

    def __init__(self, dataset: RegionDataset | PilDataset, batches: int, batch_size: int, workers: int):
        self.dataset = Measured(dataset, batches * batch_size)
        self.batches, self.batch_size, self.workers = batches, batch_size, workers
        self.wall_seconds: list[float] = []
        self.batch_bytes = 0

    def __call__(self) -> None:
        """One round."""
        start = time.perf_counter()
        for batch in self._loader():
            self.batch_bytes = sum(tensor.nbytes for tensor in tensors_of(batch))
        self.wall_seconds.append(time.perf_counter() - start)

    def _loader(self) -> DataLoader:
        if isinstance(self.dataset.dataset, PilDataset):  # as torch's own examples have it
            return DataLoader(self.dataset, self.batch_size, shuffle=True, num_workers=self.workers)
        keys = StepBatches(len(self.dataset.dataset), self.batch_size, last_step=self.batches)
        return build_loader(self.dataset, keys, self.workers, pin_memory=False)  # type: ignore[arg-type]


def tensors_of(batch: RegionBatch | dict[str, tuple[torch.Tensor, ...]]) -> Iterator[torch.Tensor]:
    """Every tensor of a batch of either side."""
    if isinstance(batch, RegionBatch):
        for view in batch.views.values():
            yield from (view.pixel_values, view.boxes, view.valid_regions)
    else:
        for parts in batch.values():
            yield from parts


def processor_seconds() -> float:
    """Processor time of this process and of its workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Measure, print the table and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_photo_options(parser)
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant is timed")
    parser.add_argument("--batches", type=int, default=16, help="batches per round")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print_machine()
    print(f"{arguments.workers} workers, median [min..max] of {arguments.rounds} rounds")
    print(f"theirs: {peer_name()}, float tensors, default collation")
    photos = load_photos(arguments.images, arguments.images_count)
    if len(photos) < arguments.batch_size:
        raise SystemExit(f"{len(photos)} photos do not fill a batch of {arguments.batch_size}; lower --batch-size.")

    sides: dict[str, RegionDataset | PilDataset] = {
        "JPEG": decode_each_time(photos, ARGS, VIEWS),
        "cache": decode_once(photos, ARGS, VIEWS),
        "theirs": PilDataset(photos),
    }
    passes = {
        name: Pass(dataset, arguments.batches, arguments.batch_size, arguments.workers)
        for name, dataset in sides.items()
    }
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    processor = time_interleaved(passes, arguments.rounds, warmup=0, clock=processor_seconds)

    images = arguments.batches * arguments.batch_size
    rows, summary = [], {}
    for name, one in passes.items():
        wall, cpu = one.wall_seconds, processor[name]
        gain, gain_wall = ratio(processor["theirs"], cpu), ratio(passes["theirs"].wall_seconds, wall)
        summary[name] = {
            "ratio": gain.median,
            "ratio_wall": gain_wall.median,
            "images_per_processor_second": images / spread(cpu).median,
            "images_per_second": images / spread(wall).median,
            "kilobytes_per_image": one.batch_bytes / arguments.batch_size / 1000,
            "worker_peak_mb": one.dataset.peak.value / 1000,
        }
        facts = summary[name]
        rows.append(
            (
                f"ours, {name}" if name in TARGETS else name,
                f"{facts['images_per_processor_second']:.0f}",
                f"{facts['images_per_second']:.0f}",
                gain if name in TARGETS else "",
                gain_wall if name in TARGETS else "",
                TARGETS.get(name, ""),
                f"{facts['kilobytes_per_image']:.0f}",
                f"{facts['worker_peak_mb']:.0f}",
            )
        )
    print_table(
        (
            "loader",
            "img per processor s",
            "img/s on the wall",
            "ratio",
            "ratio on the wall",
            "wanted",
            "KB moved per image",
            "peak memory per worker, MB",
        ),
        rows,
    )
    print(f"of a worker's memory, {inherited / 1000:.0f} MB at most are inherited from, and shared with, its parent")
    print_result(
        "loader",
        peer_name(),
        summary["JPEG"]["ratio"],
        summary["JPEG"]["images_per_processor_second"],
        summary["theirs"]["images_per_processor_second"],
        "images per processor second",
        workers=arguments.workers,
        inherited_mb=inherited / 1000,
        cases=summary,
    )


if __name__ == "__main__":
    main()
