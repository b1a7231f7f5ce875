"""Features of all annotated objects of a split: as they are, before another image, elsewhere in theirs, or alone."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modeling_decodepos.diagnosis.data.exchange import (
    ALONE_SIDE,
    exchange_surroundings,
    has_surroundings,
    resize,
    show_alone,
)
from modeling_decodepos.regions import boxes_to_pixels
from training.data.decoding import BrokenImage
from training.evaluation.annotated_images import LEAST_SIDE, AnnotatedImages, Picture, batched, seed_of
from training.evaluation.evaluation import Evaluation
from training.evaluation.processes import Processes

_DONORS = 512
"""Pictures kept that lend their surroundings: most lend to several objects. 40 MB at 160 pixels."""


@dataclass(frozen=True)
class Objects:
    """The objects of a split, image by image in the order of ids, however many processes looked at them."""

    features: Tensor  # (N, D) float32
    labels: Tensor  # (N,) classes
    owners: Tensor  # (N,) number of the image
    numbers: Tensor  # (N,) number of the object in its image, among those that are large enough
    boxes: Tensor  # (N, 4) unit boxes

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Shown:
    """Some regions of an image with the pictures that show them: one for all, or one for each."""

    pixels: Tensor  # (1 or R, 3, S, S) uint8
    boxes: Tensor  # (R, 4)
    labels: Tensor  # (R,)
    numbers: Tensor  # (R,)


Show = Callable[[Picture], Shown]


def embed_objects(evaluation: Evaluation, images: AnnotatedImages, what: str) -> Objects:
    """All objects that are at least `LEAST_SIDE` wide and high, as they are."""
    (objects,) = embed_shown(evaluation, images, what, [show_as_they_are])
    return objects


def embed_shown(
    evaluation: Evaluation, images: AnnotatedImages, what: str, shows: Sequence[Show]
) -> tuple[Objects, ...]:
    """The objects as each of `shows` shows them, the first of which shows some; every image is read once."""
    common, processes = evaluation.common, evaluation.processes

    def make(place: int) -> list[Shown]:
        picture = images.picture(place, common.size_px)
        return [show(picture) for show in shows]

    found: list[tuple[list[Tensor], ...]] = [([], [], [], []) for _ in shows]
    places = processes.own(range(len(images)))
    read = evaluation.progress(evaluation.read(images, places, make), what, len(places))
    for batch in batched((item or [_nothing(common.size_px)] * len(shows) for item in read), common.batch_size):
        for columns, shown in zip(found, zip(*batch, strict=True), strict=True):
            for column, part in zip(columns, _embed(evaluation, shown), strict=True):
                column += part
    objects = tuple(_collect(processes, *columns) for columns in found)
    if not len(objects[0]):
        raise ValueError(
            f"{images.name} has no object of at least {LEAST_SIDE:.1%} of its image on both sides: nothing to measure."
        )
    return objects


def _collect(processes: Processes, features: list[Tensor], *others: list[Tensor]) -> Objects:
    """The objects of all processes, from what each has of its images."""
    width = max(processes.collect([max((rows.shape[1] for rows in features), default=0)]))
    features = [rows if rows.shape[1] == width else rows.new_zeros((0, width)) for rows in features]
    columns = [processes.collect_rows(column) for column in (features, *others)]
    owners = torch.arange(len(columns[1])).repeat_interleave(torch.tensor([len(rows) for rows in columns[1]]))
    rows, labels, numbers, boxes = (torch.cat(column) for column in columns)
    return Objects(rows, labels, owners, numbers, boxes)


def _nothing(size: int) -> Shown:
    """What an image shows that cannot be read."""
    none = torch.zeros(0, dtype=torch.int64)
    return Shown(torch.zeros((0, 3, size, size), dtype=torch.uint8), torch.zeros((0, 4)), none, none)


def _embed(evaluation: Evaluation, batch: Sequence[Shown]) -> tuple[list[Tensor], ...]:
    """Features, labels, numbers and boxes of the regions, one tensor per image."""
    pictures: list[Tensor] = []
    boxes: list[Tensor] = []
    for item in batch:
        pictures += list(item.pixels)
        boxes += [item.boxes] if len(item.pixels) == 1 else list(item.boxes[:, None])
    size = evaluation.common.batch_size
    parts = [
        evaluation.model.embed(torch.stack(pictures[start : start + size]), boxes[start : start + size])
        for start in range(0, len(pictures), size)
    ]
    counts = [len(item.labels) for item in batch]
    rows = list(torch.cat(parts).split(counts)) if parts else [torch.zeros((0, 0))] * len(batch)
    return rows, [item.labels for item in batch], [item.numbers for item in batch], [item.boxes for item in batch]


def show_as_they_are(picture: Picture) -> Shown:
    """One picture with all its objects."""
    kept = _large_enough(picture)
    return Shown(picture.pixels[None], picture.boxes[kept], picture.labels[kept], torch.arange(int(kept.sum())))


def show_recontextualised(images: AnnotatedImages, seed: int) -> Show:
    """Each object where it is, before another image of the same split; that image is drawn from (seed, id, object)."""

    @functools.lru_cache(_DONORS)
    def donor(place: int, size: int) -> Tensor:
        return resize(images.pixels(place), size, size)

    def change(picture: Picture, number: int, box: np.ndarray) -> tuple[Tensor, np.ndarray]:
        rng = np.random.default_rng(seed_of(seed, "surroundings", picture.image_id, number))
        own, count, size = bisect.bisect_left(images.ids, picture.image_id), len(images), picture.pixels.shape[-1]
        if count < 2:
            raise ValueError(f"{images.name} holds one image: there is no other to lend its surroundings.")
        place = (own + int(rng.integers(1, count))) % count
        for further in range(count):
            candidate = (place + further) % count
            if candidate != own:
                try:
                    other = donor(candidate, size)
                except BrokenImage:  # it is named where it is measured
                    continue
                return exchange_surroundings(picture.pixels, box, other), box
        raise ValueError(f"{images.name}: no other image can be read.")

    return functools.partial(_show_each, change)


def show_repositioned(seed: int) -> Show:
    """Each object elsewhere, with all its surroundings: the image is rolled around its borders.

    What stands beside the object stays beside it, but for what a border cut off; the object itself is never cut. The
    new place is drawn from (seed, id, object), among all that are possible.
    """

    def change(picture: Picture, number: int, box: np.ndarray) -> tuple[Tensor, np.ndarray]:
        rng = np.random.default_rng(seed_of(seed, "position", picture.image_id, number))
        return roll_elsewhere(picture.pixels, box, rng)

    return functools.partial(_show_each, change)


WHOLE = np.array([0.0, 0.0, 1.0, 1.0], dtype=np.float32)


def show_by_themselves(side: int, *, every: bool = False) -> Show:
    """Each object alone in a picture of its own, which it fills; of `every` object, or of those with surroundings."""

    def change(picture: Picture, number: int, box: np.ndarray) -> tuple[Tensor, np.ndarray]:
        return show_alone(picture.pixels, box, side), WHOLE

    return functools.partial(_show_each, change, every=every)


def alone_side(evaluation: Evaluation) -> int:
    """The side of pictures of objects alone: `ALONE_SIDE` of the others', or the nearest that the network can take."""
    return evaluation.model.fitting_side(round(ALONE_SIDE * evaluation.common.size_px))


def roll_elsewhere(pixels: Tensor, box: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    """The image (3, S, S) rolled by whole pixels so that the box lies in another place, uncut; and the box there."""
    side = pixels.shape[-1]
    left, top, right, bottom = boxes_to_pixels(box[None], (side, side))[0].tolist()
    dx, dy = 0, 0
    room = (side - (right - left) + 1) * (side - (bottom - top) + 1)
    while room > 1 and (dx, dy) == (0, 0):
        dx, dy = int(rng.integers(-left, side - right + 1)), int(rng.integers(-top, side - bottom + 1))
    shift = np.array([dx, dy, dx, dy], dtype=np.float32) / side
    return pixels.roll((dy, dx), dims=(1, 2)), (box + shift).clip(0.0, 1.0).astype(np.float32)


def _show_each(
    change: Callable[[Picture, int, np.ndarray], tuple[Tensor, np.ndarray]], picture: Picture, *, every: bool = False
) -> Shown:
    """The regions, each in a picture of its own: every one, or those that have surroundings and room."""
    large = picture.boxes[_large_enough(picture)]
    labels = picture.labels[_large_enough(picture)]
    chosen = torch.arange(len(large)) if every else torch.nonzero(has_surroundings(large))[:, 0]
    made = [change(picture, number, large[number].numpy()) for number in chosen.tolist()]
    if not made:
        return Shown(picture.pixels[None][:0], large[:0], labels[:0], chosen)
    pixels, boxes = torch.stack([made_pixels for made_pixels, _ in made]), np.stack([box for _, box in made])
    return Shown(pixels, torch.from_numpy(boxes), labels[chosen], chosen)


def _large_enough(picture: Picture) -> Tensor:
    return (picture.boxes[:, 2:] - picture.boxes[:, :2] >= LEAST_SIDE).all(1)
