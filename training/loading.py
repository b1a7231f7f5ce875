"""Images and regions from a data set in our Parquet layout, as batches of views.

The views of a sample depend on (seed, epoch, index) only: not on the number of workers, the batch size, the number of
devices, or on whether the run was interrupted. The donor image is drawn by the same rule.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from modeling_decodepos.regions import View
from modeling_decodepos.schema import xywh_to_unit_xyxy
from training.arguments import ViewArguments
from training.interruption import leave_signals_to_parent
from training.views import MEAN_COLOUR, VIEW_RULES, ViewParameters, apply_view, draw_views, sample_views

Key = tuple[int, int]  # epoch, index
# Keeps the streams of random numbers apart that are drawn for one (seed, epoch, index).
_ORDER, _VIEWS, _DONOR = 0, 1, 2


@dataclass
class RegionBatch:
    """One batch: the views by name, which samples they show, and how far the moved regions could move."""

    views: dict[str, View]
    indices: list[int]
    slack: torch.Tensor  # one number per mixed sample: free share of the view on the axis with more room
    can_move: torch.Tensor  # one flag per mixed sample

    def pin_memory(self) -> RegionBatch:
        """The batch in page-locked memory; a DataLoader calls this."""
        return RegionBatch({n: v.pin_memory() for n, v in self.views.items()}, self.indices, self.slack, self.can_move)


class RegionDataset(Dataset):
    """A split of a data set, from which batches of views are fetched by (epoch, index) keys."""

    def __init__(
        self,
        path: str | Path,
        split: str,
        args: ViewArguments,
        view_names: list[str],
        *,
        seed: int = 0,
        region_source: str = "auto",
        image_level: bool = False,
    ):
        rows = load_split(path, split)
        self.region_column = choose_region_column(rows, region_source, f"{path} [{split}]")
        # Columns that are not needed (such as maps) would be decoded for every sample.
        wanted = {"image", "image_id", "width", "height", self.region_column}
        self.rows = rows.select_columns([name for name in rows.column_names if name in wanted])
        self.args, self.view_names, self.seed, self.image_level = args, view_names, seed, image_level
        if len(self.rows) < 2:
            raise ValueError(
                f"{path} [{split}] holds {len(self.rows)} images; at least 2 are needed (one lends its pixels)."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> RegionBatch:
        """A batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> RegionBatch:
        """The batch of these (epoch, index) keys."""
        pixels = {name: self._room(name, len(keys)) for name in self.view_names}
        made: dict[str, list[tuple[int, ViewParameters]]] = {name: [] for name in self.view_names}
        for row, (epoch, index) in enumerate(keys):
            # One sample after the other: a batch of decoded images is four times the size of its views.
            image, donor, parameters = self._sample(epoch, index, self.view_names)
            for name, view in parameters.items():
                pixels[name][len(made[name])] = apply_view(view, image, donor)
                made[name].append((row, view))
        placements = [view.placement for parts in made.values() for _, view in parts if view.placement]
        return RegionBatch(
            views={name: self._batch(parts, pixels[name], len(keys)) for name, parts in made.items()},
            indices=[index for _, index in keys],
            slack=torch.tensor([max(p.slack) for p in placements]),
            can_move=torch.tensor([p.can_move for p in placements], dtype=torch.bool),
        )

    def _room(self, name: str, count: int) -> torch.Tensor:
        """Memory for a view of so many images; in a worker, memory that its parent sees, which saves a copy."""
        size = self.args.small_view_px if VIEW_RULES[name].small else self.args.view_size_px
        # 8-bit, channels last in memory: a quarter of the bytes to move, and the layout the network wants.
        pixels = torch.empty((count, size, size, 3), dtype=torch.uint8)
        return (pixels if get_worker_info() is None else pixels.share_memory_()).permute(0, 3, 1, 2)

    def _batch(self, parts: list[tuple[int, ViewParameters]], pixels: torch.Tensor, num_images: int) -> View:
        """One view of a batch, from the images that have it: row, parameters, and pixels in the first places."""
        rows = [row for row, _ in parts]
        boxes = [view.boxes for _, view in parts] or np.zeros((0, self.args.num_regions, 4), dtype=np.float32)
        valid = [view.valid for _, view in parts] or np.zeros((0, self.args.num_regions), dtype=bool)
        return View(
            pixels[: len(rows)],  # not all, where not every image is mixed
            torch.from_numpy(np.asarray(boxes)),
            torch.from_numpy(np.asarray(valid)),
            None if len(rows) == num_images else torch.tensor(rows, dtype=torch.int64),
        )

    def draw(self, epoch: int, index: int) -> Image.Image:
        """A picture of one sample: all views, those that training uses among them."""
        if not 0 <= index < len(self):
            raise ValueError(f"index is {index}, but the split holds {len(self)} images (0 to {len(self) - 1}).")
        image, donor, views = self._sample(epoch, index, list(VIEW_RULES))
        assert donor is not None
        return draw_views(image, donor, self._boxes(self.rows[index]), views)

    def _boxes(self, row: dict[str, Any]) -> np.ndarray:
        """(R, 4) unit boxes of an image's regions."""
        regions = row[self.region_column] or {}
        boxes = np.asarray(regions.get("bbox") or [], dtype=np.float32).reshape(-1, 4)
        if self.region_column == "objects" and regions.get("iscrowd"):
            boxes = boxes[~np.asarray(regions["iscrowd"], dtype=bool)]  # a crowd is no single region
        return np.asarray(xywh_to_unit_xyxy(boxes, row["width"], row["height"]), dtype=np.float64).clip(0.0, 1.0)

    def _sample(
        self, epoch: int, index: int, names: list[str]
    ) -> tuple[np.ndarray, np.ndarray | None, dict[str, ViewParameters]]:
        row = self.rows[index]
        image = self._image(row)
        needs_donor = any(VIEW_RULES[name].moved for name in names)
        donor = self._donor_image(epoch, index) if needs_donor else None
        rng = np.random.default_rng([self.seed, _VIEWS, epoch, index])
        donor_size = image.shape[:2] if donor is None else donor.shape[:2]
        boxes = self._boxes(row)
        views = sample_views(rng, image.shape[:2], donor_size, boxes, names, self.args, self.image_level)
        return image, donor, views

    def _donor_image(self, epoch: int, index: int) -> np.ndarray:
        if self.args.donor == "mean":
            return MEAN_COLOUR.numpy().reshape(1, 1, 3).repeat(8, 0).repeat(8, 1)
        return self._image(self.rows[self._donor(epoch, index)])

    def _donor(self, epoch: int, index: int) -> int:
        """Another image of the split, never the sample itself."""
        rng = np.random.default_rng([self.seed, _DONOR, epoch, index])
        return int(index + rng.integers(1, len(self))) % len(self)

    def _image(self, row: dict[str, Any]) -> np.ndarray:
        return decode_image(row["image"]["bytes"], str(row.get("image_id", "without image_id")))


def decode_image(data: bytes | None, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels; an EXIF rotation is applied, as `datasets` does."""
    if not data:
        raise ValueError(f"image {name} has no bytes: the `image` column must hold the encoded file, not its path.")
    pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ValueError(f"image {name} cannot be decoded ({len(data)} bytes, beginning {data[:8]!r}).")
    return pixels


def load_split(path: str | Path, split: str) -> datasets.Dataset:
    """The rows of one split, with images left as bytes."""
    if Path(path).is_dir() and not any(Path(path).rglob("*.parquet")):
        raise FileNotFoundError(
            f"data: {path} holds no Parquet file. Folders of plain images are not supported yet; the layout is"
            " described in modeling_decodepos/schema.py."
        )
    if not Path(path).is_dir() and (Path(path).is_absolute() or str(path).count("/") != 1):
        make = f"Make it with:\n  python -m dataset_scripts.prepare scenes --output {path}"
        other = "Give a folder, or a Hub id (owner/name), in the layout of modeling_decodepos/schema.py."
        raise FileNotFoundError(f"data: no folder at {path}. {make if Path(path).name == 'scenes' else other}")
    rows = datasets.load_dataset(str(path), split=split)
    missing = {"image", "width", "height"} - set(rows.column_names)
    if missing:
        raise ValueError(
            f"{path} [{split}] lacks the columns {', '.join(sorted(missing))}; it has {', '.join(rows.column_names)}. "
            "The expected layout is in modeling_decodepos/schema.py."
        )
    return rows.cast_column("image", datasets.Image(decode=False))


def choose_region_column(rows: datasets.Dataset, region_source: str, name: str) -> str:
    """The column that regions come from: `regions` or `objects`."""
    candidates = ["regions", "objects"] if region_source == "auto" else [region_source]
    for column in candidates:
        if column in rows.column_names and (region_source != "auto" or _has_boxes(rows, column)):
            return column
    raise ValueError(
        f"{name} has no regions: looked for {' and '.join(candidates)} among its columns, which are "
        f"{', '.join(rows.column_names)}."
    )


def _has_boxes(rows: datasets.Dataset, column: str) -> bool:
    return any((row or {}).get("bbox") for row in rows.select(range(min(64, len(rows))))[column])


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the images: a function of (seed, epoch)."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(length)


@dataclass(frozen=True)
class StepBatches:
    """The (epoch, index) keys of every micro-batch of this process, from `first_step` to `last_step`.

    A global batch is a run of the epoch's order; each process and accumulation step takes its slice of it. What fills
    no batch at the end of an epoch is dropped.
    """

    length: int
    global_batch_size: int
    slices: int = 1  # processes times accumulation steps
    own_slices: tuple[int, ...] = (0,)
    first_step: int = 0
    last_step: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < self.global_batch_size:
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}, but the split holds only {self.length} images; take "
                f"at most {self.length}."
            )
        if self.global_batch_size % self.slices:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not divisible by {self.slices} (processes times "
                f"accumulation_steps); take {self.global_batch_size // self.slices * self.slices or self.slices}."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Updates per pass over the data."""
        return self.length // self.global_batch_size

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * len(self.own_slices)

    def __iter__(self) -> Iterator[list[Key]]:
        per_slice = self.global_batch_size // self.slices
        order, order_epoch = np.zeros(0, dtype=int), -1
        for step in range(self.first_step, self.last_step):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.length, self.seed, epoch), epoch
            for part in self.own_slices:
                start = position * self.global_batch_size + part * per_slice
                yield [(epoch, int(index)) for index in order[start : start + per_slice]]


def build_loader(dataset: RegionDataset, batches: StepBatches, num_workers: int, pin_memory: bool) -> DataLoader:
    """A loader of `RegionBatch`es in the order of `batches`."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        prefetch_factor=2 if num_workers else None,
        generator=torch.Generator(),  # else every new iterator draws from the global stream, and a resumed run differs
    )


def _as_it_is(batch: Any) -> Any:
    return batch  # `__getitems__` has built it


def _start_worker(worker: int) -> None:
    leave_signals_to_parent()
    gc.freeze()  # what the parent has loaded is no garbage, and looking through it takes 5 % of the time
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
