"""Batches of views from data that is larger than the disk: Parquet files read in turn, from a folder or from the Hub.

Every worker process of every training process is a *lane*. An epoch shuffles the files by (seed, epoch) and deals them
out: lane l of L takes files l, l + L, … . A lane reads its files in blocks of `stream_block` images, visits each block
in an order of its own, and takes donors from the same block. So every image is seen once per epoch, by one lane; lanes
with less to read begin their next epoch earlier.

What a sample looks like depends on (seed, epoch, lane, block, place in the block) only. With the same numbers of
processes and workers a run continues exactly where it stopped: the files' footers say how many images to skip, and
only the current block, and what comes before it in its Parquet row group, is read again. With other numbers it goes
on with other samples, and may show images again that this epoch has already shown.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils.file_utils import xopen
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from modeling_decodepos.imagenet import MEAN_COLOUR
from training.data.batches import RegionBatch, RegionDataset, Sample, StepBatches, build_batch
from training.data.randomness import Purpose, stream
from training.data.sources import (
    COLUMNS,
    ParquetImages,
    check_columns,
    choose_region_source,
    manifest_fingerprint,
)
from training.data.workers import load_in_workers
from training.recipe import ViewArguments

_ROWS_AT_ONCE = 100
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class Shard:
    """A Parquet file and how many images it holds."""

    url: str
    rows: int


class ImageStream:
    """A split as a list of Parquet files that are read from front to back; what run.json says of it."""

    def __init__(
        self, path: str, split: str, shards: list[Shard], region_source: str, seed: int, strict_jpeg: bool = True
    ):
        self.path, self.split, self.shards, self.seed, self._strict_jpeg = path, split, shards, seed, strict_jpeg
        self.name = f"{path} [{split}]"
        first = datasets.Dataset(next(self.read(shards, 0, None)), fingerprint="first rows")
        check_columns(first.data.schema, self.name)
        self.region_source = choose_region_source(first, region_source, f"{self.name} (its first {len(first)} rows)")
        self.images(first.data.table, ()).check_boxes()  # of the first rows

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """The data set's own manifest hash where it has one."""
        if (known := manifest_fingerprint(self.path)) is not None:
            return known
        local = os.path.isdir(self.path)
        names = (os.path.relpath(shard.url, self.path) if local else shard.url for shard in self.shards)
        lines = (f"{name} {shard.rows}\n" for name, shard in zip(names, self.shards, strict=True))
        return f"sha256 of file names and their numbers of rows {hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    def columns(self) -> list[str]:
        """What has to be read."""
        regions = [self.region_source] if self.region_source in COLUMNS else []
        return ["image", "image_id", "width", "height", *regions]

    def read(self, shards: list[Shard], start: int, columns: list[str] | None) -> Iterator[pa.Table]:
        """The rows of files in a row, in small tables, from one on; what comes before it is skipped unread."""
        for shard in shards:
            if start >= shard.rows:
                start -= shard.rows
                continue
            with xopen(shard.url, "rb") as file, pq.ParquetFile(file) as parquet:
                groups = list(range(parquet.num_row_groups))
                while start >= (rows := parquet.metadata.row_group(groups[0]).num_rows):
                    start -= rows
                    del groups[0]
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=columns):
                    if start < len(batch):
                        yield pa.Table.from_batches([batch.slice(start)]).replace_schema_metadata(None)
                    start = max(0, start - len(batch))

    def images(self, table: pa.Table, place: tuple[int, ...]) -> ParquetImages:
        """A block of rows as a source of its own, its random boxes drawn at this place."""
        rows = datasets.Dataset(table, fingerprint="a block of a stream")
        options = (self.path, self.split, self.region_source, self.seed, place, self._strict_jpeg)
        return ParquetImages(rows, *options)


def open_stream(path: str, split: str, region_source: str, seed: int, strict_jpeg: bool = True) -> ImageStream:
    """The files of a split, their lengths known from their footers."""
    files = datasets.load_dataset_builder(path).config.data_files or {}
    if split not in files:
        raise ValueError(f"{path} has no split {split!r} to stream; it has {', '.join(map(str, files)) or 'none'}.")
    if other := [url for url in files[split] if not url.endswith(".parquet")]:
        raise ValueError(f"{path} [{split}]: {other[0]} is no Parquet file; only those can be streamed.")
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        shards = [shard for shard in pool.map(_read_footer, files[split]) if shard.rows]
    if not shards:
        raise ValueError(f"{path} [{split}] holds no image.")
    return ImageStream(path, split, shards, region_source, seed, strict_jpeg)


def _read_footer(url: str) -> Shard:
    try:
        with xopen(url, "rb") as file, pq.ParquetFile(file) as parquet:
            if parquet.metadata.num_rows:
                check_columns(parquet.schema_arrow, url)
            return Shard(url, parquet.metadata.num_rows)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{url} cannot be read as Parquet: {error}") from None


@dataclass(frozen=True)
class Lane:
    """The share of the data that one worker process reads."""

    shards: list[Shard]  # of the whole split
    number: int
    lanes: int
    block: int
    seed: int

    def own_shards(self, epoch: int) -> list[Shard]:
        """This lane's files of an epoch, in the order of reading."""
        order = stream(self.seed, Purpose.SHARDS, epoch).permutation(len(self.shards))
        return [self.shards[n] for n in order[self.number :: self.lanes]]

    def block_sizes(self, epoch: int) -> list[int]:
        """Images per block; a block of one would have no donor, so the one before takes it along."""
        images = sum(shard.rows for shard in self.own_shards(epoch))
        sizes = [self.block] * (images // self.block) + [images % self.block] * (images % self.block > 0)
        if sizes[-1] == 1 and len(sizes) > 1:
            sizes[-2:] = [sizes[-2] + 1]
        return sizes


class RegionStream(IterableDataset):
    """Batches of views of a stream; `build_stream_loader` makes the loader that belongs to it."""

    def __init__(
        self,
        source: ImageStream,
        args: ViewArguments,
        view_names: list[str],
        *,
        block: int,
        seed: int = 0,
        image_level: bool = False,
        mean_colour: tuple[int, ...] = MEAN_COLOUR,
    ):
        if block < 2:
            raise ValueError(f"stream_block is {block}; expected at least 2 (one image lends another its pixels).")
        self.source, self.block = source, block
        self.args, self.view_names, self.seed, self.image_level = args, view_names, seed, image_level
        self.mean_colour = mean_colour
        self.plan: StepBatches | None = None
        self.workers = 1  # per process, each with a lane

    def __iter__(self) -> Iterator[RegionBatch]:
        """The micro-batches of this worker: number m of a process comes from its lane m modulo the workers."""
        if self.plan is None:
            raise ValueError("a RegionStream has no plan of its own; read it through build_stream_loader.")
        plan, worker = self.plan, get_worker_info()
        per_step, size = len(plan.own_slices), plan.global_batch_size // plan.slices
        first, last = plan.first_step * per_step, plan.last_step * per_step
        number = (first + (worker.id if worker else 0)) % self.workers
        process, processes = plan.own_slices[0] // per_step, plan.slices // per_step
        shards, lanes = self.source.shards, processes * self.workers
        lane = Lane(shards, process * self.workers + number, lanes, self.block, self.seed)
        before, until = (len(range(number, end, self.workers)) for end in (first, last))
        blocks = self._blocks(lane, before * size)
        block, epoch, left = next(blocks)
        for _ in range(before, until):
            samples: list[Sample] = []
            while len(samples) < size:
                if not len(left):
                    block, epoch, left = next(blocks)
                taken, left = np.split(left, [size - len(samples)])
                samples += [block.read_sample(epoch, int(index)) for index in taken]
            yield build_batch(samples, size, self.view_names, self.args, self.mean_colour)

    def first_block(self) -> RegionDataset:
        """The first images of the stream, as a data set of their own."""
        tables = self.source.read(self.source.shards, 0, self.source.columns())
        return self._block(next(tables), ())

    def _block(self, table: pa.Table, place: tuple[int, ...]) -> RegionDataset:
        images = self.source.images(table, place)
        return RegionDataset(
            images,
            self.args,
            self.view_names,
            seed=self.seed,
            image_level=self.image_level,
            place=place,
            mean_colour=self.mean_colour,
        )

    def _blocks(self, lane: Lane, skip: int) -> Iterator[tuple[RegionDataset, int, np.ndarray]]:
        """A lane's blocks for ever, each with its epoch and what is to be visited of it, after so many samples."""
        epoch = 0
        while skip >= (images := sum(lane.block_sizes(epoch))):
            skip -= images
            epoch += 1
        while True:
            sizes = lane.block_sizes(epoch)
            ends = np.cumsum(sizes)
            first = int(np.searchsorted(ends, skip, side="right"))
            start = int(ends[first]) - sizes[first]
            skip -= start
            tables = self.source.read(lane.own_shards(epoch), start, self.source.columns())
            for number, table in enumerate(_regroup(tables, sizes[first:]), start=first):
                order = stream(self.seed, Purpose.BLOCK, epoch, lane.number, number).permutation(len(table))
                yield self._block(table, (lane.number, number)), epoch, order[skip:]
                skip = 0
            epoch += 1


def build_stream_loader(
    dataset: RegionStream, batches: StepBatches, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """A loader of the micro-batches that `batches` plans for this process; ValueError for fewer files than lanes."""
    check_lanes(dataset.source, batches.slices // len(batches.own_slices), num_workers)
    planned = copy.copy(dataset)
    planned.plan, planned.workers = batches, max(1, num_workers)
    return load_in_workers(planned, num_workers, pin_memory, batch_size=None)


def check_lanes(source: ImageStream, processes: int, num_workers: int) -> None:
    """Every lane needs a file of its own, and two images in it."""
    workers = max(1, num_workers)
    files, lanes = len(source.shards), processes * workers
    if files < lanes:
        fit = files // processes
        most = f"num_workers {fit} fits" if fit else f"not even one worker for each of {processes} processes fits"
        raise ValueError(
            f"{source.name} has {files} Parquet files, but each of {processes} processes x {workers} workers reads "
            f"files of its own: {most}. Or write the data in more files."
        )
    smallest = min(source.shards, key=lambda shard: shard.rows)
    if smallest.rows < 2 and files < 2 * lanes:
        raise ValueError(f"{smallest.url} holds one image; a worker needs at least 2 (one lends another its pixels).")


def _regroup(tables: Iterator[pa.Table], sizes: list[int]) -> Iterator[pa.Table]:
    """The same rows in tables of these sizes."""
    waiting = next(tables)
    for size in sizes:
        while len(waiting) < size:
            waiting = pa.concat_tables([waiting, next(tables)], promote_options="permissive")
        yield waiting.slice(0, size)
        waiting = waiting.slice(size)
