"""Batches of views from images and regions.

The views of a sample depend on (seed, epoch, index) only: not on the number of workers, the batch size, the number of
devices, or on whether the run was interrupted. The donor image is drawn by the same rule. The place of an image that
cannot be read, as a sample or as a donor, is taken by the next readable one of the data set, and the batch says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from modeling_decodepos.imagenet import MEAN_COLOUR
from modeling_decodepos.regions import View
from training.data.decoding import BrokenImage
from training.data.randomness import Purpose, stream
from training.data.sources import ImageSource
from training.data.workers import load_in_workers
from training.errors import UnusableData
from training.recipe import ViewArguments
from training.views.sampling import VIEW_RULES, ViewParameters, apply_view, sample_views, view_side_px

Key = tuple[int, int]  # epoch, index
Broken = tuple[str, str]  # image id, reason
T = TypeVar("T")

# So many images in a row that cannot be read are no accident, and looking further would take for ever.
MOST_BROKEN_IN_A_ROW = 1000
_MEAN_DONOR_SIZE = (8, 8)


@dataclass
class RegionBatch:
    """One batch: the views by name, which samples they show, and how far the moved regions could move."""

    views: dict[str, View]
    indices: list[int]  # of the images shown
    image_ids: list[str]
    slack: torch.Tensor  # one number per mixed sample: free share of the view on the axis with more room
    can_move: torch.Tensor  # one flag per mixed sample
    broken: list[Broken]  # images that were met and could not be read

    def pin_memory(self) -> RegionBatch:
        """The batch in page-locked memory; a DataLoader calls this."""
        views = {name: view.pin_memory() for name, view in self.views.items()}
        return dataclasses.replace(self, views=views)


@dataclass
class Sample:
    """One image, what was drawn for its views, and the donor if one of them needs it: all before any view's pixels."""

    index: int  # of the image shown
    image_id: str
    image: np.ndarray  # (H, W, 3) uint8
    donor: np.ndarray | None
    views: dict[str, ViewParameters]
    broken: list[Broken]  # images that were met and could not be read


class RegionDataset(Dataset):
    """Images from a source, from which batches of views are fetched by (epoch, index) keys."""

    def __init__(
        self,
        source: ImageSource,
        args: ViewArguments,
        view_names: list[str],
        *,
        seed: int = 0,
        image_level: bool = False,
        place: tuple[int, ...] = (),
        mean_colour: tuple[int, ...] = MEAN_COLOUR,
    ):
        self.source = source
        self.mean_colour = mean_colour  # of cuts, and of surroundings where there is no donor
        self.place = place  # of these images in a stream: their random numbers depend on it
        self.args, self.view_names, self.seed, self.image_level = args, view_names, seed, image_level
        self.known_broken: dict[int, Broken] = {}  # met by this process; each costs one attempt
        if len(source) < 2:
            raise ValueError(
                f"{source.name} holds {len(source)} image{'s' * (len(source) != 1)}; at least 2 are needed (one lends "
                "its pixels)."
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> RegionBatch:
        """A batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> RegionBatch:
        """The batch of these (epoch, index) keys."""
        samples = (self.read_sample(*key) for key in keys)
        return build_batch(samples, len(keys), self.view_names, self.args, self.mean_colour)

    def read_sample(self, epoch: int, index: int) -> Sample:
        """One decoded image with the parameters of its views."""
        names, args = self.view_names, self.args
        met: dict[int, Broken] = {}
        shown, image = self._next_readable(index, self.source.pixels, met)
        boxes = self.source.boxes(shown, epoch)
        of_mean = args.donor == "mean"
        donor, donor_size = -1, _MEAN_DONOR_SIZE
        if not of_mean and any(VIEW_RULES[name].moved for name in names):
            donor, donor_size = self._donor(epoch, index, shown, met)
        while True:
            rng = stream(self.seed, Purpose.VIEWS, epoch, index, *self.place)
            views = sample_views(rng, image.shape[:2], donor_size, boxes, names, args, self.image_level)
            pixels = np.full((*_MEAN_DONOR_SIZE, 3), self.mean_colour, dtype=np.uint8) if of_mean else None
            try:
                if not of_mean and any(VIEW_RULES[name].moved for name in views):
                    pixels = self._attempt(donor, self.source.pixels, met)
                return Sample(shown, self.source.image_id(shown), image, pixels, views, list(met.values()))
            except BrokenImage:  # the header was fine, the pixels are not: the next one may be of another size
                donor, donor_size = self._donor(epoch, index, shown, met)

    def _donor(self, epoch: int, index: int, shown: int, met: dict[int, Broken]) -> tuple[int, tuple[int, int]]:
        """Index and size of another image of the split, never of the one that is shown."""
        rng = stream(self.seed, Purpose.DONOR, epoch, index, *self.place)
        drawn = (index + int(rng.integers(1, len(self)))) % len(self)
        return self._next_readable(drawn, self.source.size, met, shown)

    def _next_readable(
        self, index: int, read: Callable[[int], T], met: dict[int, Broken], other_than: int = -1
    ) -> tuple[int, T]:
        """The first readable image from an index on, in data set order, and what reading it gave."""
        attempts = min(len(self), MOST_BROKEN_IN_A_ROW)
        for candidate in ((index + further) % len(self) for further in range(attempts)):
            if candidate != other_than:
                try:
                    return candidate, self._attempt(candidate, read, met)
                except BrokenImage as error:
                    last = error
        raise UnusableData(
            f"{self.source.name}: none of {attempts} images in a row from number {index} on can be read, such as:\n"
            f"  {last}"
        )

    def _attempt(self, index: int, read: Callable[[int], T], met: dict[int, Broken]) -> T:
        """What `read` gives for an image; `met` gets those that cannot be read."""
        try:
            if index in self.known_broken:
                raise BrokenImage(*self.known_broken[index])
            return read(index)
        except BrokenImage as error:
            self.known_broken[index] = met[index] = (error.image_id, error.reason)
            raise


def build_batch(
    samples: Iterable[Sample],
    count: int,
    view_names: list[str],
    args: ViewArguments,
    mean_colour: tuple[int, ...] = MEAN_COLOUR,
) -> RegionBatch:
    """The views of `count` samples, their pixels made here.

    One sample after the other: a batch of decoded images is four times the size of its views.
    """
    indices: list[int] = []
    image_ids: list[str] = []
    broken: dict[Broken, None] = {}
    pixels = {name: _room(name, count, args) for name in view_names}
    made: dict[str, list[tuple[int, ViewParameters]]] = {name: [] for name in view_names}
    for row, sample in enumerate(samples):
        indices.append(sample.index)
        image_ids.append(sample.image_id)
        broken |= dict.fromkeys(sample.broken)
        for name, parameters in sample.views.items():
            pixels[name][len(made[name])] = apply_view(parameters, sample.image, sample.donor, mean_colour)
            made[name].append((row, parameters))
    views = {name: _stack(parts, pixels[name], args) for name, parts in made.items()}
    placements = [view.placement for parts in made.values() for _, view in parts if view.placement]
    slack = torch.tensor([max(placement.slack) for placement in placements])
    can_move = torch.tensor([placement.can_move for placement in placements], dtype=torch.bool)
    return RegionBatch(views, indices, image_ids, slack, can_move, list(broken))


def _room(name: str, count: int, args: ViewArguments) -> torch.Tensor:
    """Memory for a view of so many images; in a worker, memory that its parent sees, which saves a copy."""
    rule = VIEW_RULES[name]
    size, regions = view_side_px(rule, args), (args.num_regions,) if rule.alone else ()
    # 8-bit, channels last in memory: a quarter of the bytes to move, and the layout the network wants.
    pixels = torch.empty((count, *regions, size, size, 3), dtype=torch.uint8)
    return (pixels if get_worker_info() is None else pixels.share_memory_()).movedim(-1, -3)


def _stack(parts: list[tuple[int, ViewParameters]], pixels: torch.Tensor, args: ViewArguments) -> View:
    """One view of a batch, from the images that have it: row, parameters, and pixels in the first places."""
    boxes = np.array([view.boxes for _, view in parts], dtype=np.float32)
    valid = np.array([view.valid for _, view in parts], dtype=bool)
    return View(
        pixels[: len(parts)],  # not all, where not every image is mixed
        torch.from_numpy(boxes.reshape(-1, args.num_regions, 4)),
        torch.from_numpy(valid.reshape(-1, args.num_regions)),
        None if len(parts) == len(pixels) else torch.tensor([row for row, _ in parts], dtype=torch.int64),
    )


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the images: a function of (seed, epoch)."""
    return stream(seed, Purpose.ORDER, epoch).permutation(length)


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
    return load_in_workers(dataset, num_workers, pin_memory, batch_sampler=batches)
