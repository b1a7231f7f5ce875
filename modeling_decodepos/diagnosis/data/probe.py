"""What a diagnosis looks at: pictures with regions, and controlled changes of them.

Shapes: I images, N regions of all images, E regions with something exchanged, M objects, P places, S side in pixels.
Pixels are uint8, boxes unit xyxy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

LEAST_SIDE = 0.1
"""Of the view; a smaller region is a few pixels."""

FREQUENT_CLASSES = 10
"""At most so many classes count in the neighbour read-out; more would have too few examples each."""


@dataclass(frozen=True)
class RegionImages:
    """Images with their regions."""

    pixels: Tensor  # (I, 3, S, S)
    boxes: list[Tensor]  # (R_i, 4) float32 of each image; an image may have none
    labels: Tensor | None  # (N,) classes, image by image

    @property
    def every_box(self) -> Tensor:
        """(N, 4), image by image."""
        return torch.cat(self.boxes) if self.boxes else torch.zeros(0, 4)

    @property
    def owners(self) -> Tensor:
        """(N,) number of the image that each region belongs to."""
        return torch.arange(len(self.boxes)).repeat_interleave(torch.tensor([len(rows) for rows in self.boxes]))

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Swaps:
    """One region of each query image that has a suitable one, and pictures with something about it exchanged."""

    regions: Tensor  # (E,) numbers among all query regions
    images: Tensor  # (E,) numbers of their images
    boxes: Tensor  # (E, 4)
    other_surroundings: Tensor  # (E, 3, S, S)
    other_content: Tensor
    moved: Tensor
    moved_boxes: Tensor  # (E, 4)


@dataclass(frozen=True)
class ObjectProbe:
    """Objects that are to be recognised, by their neighbours' class or as themselves; each also before another picture
    and elsewhere. Without classes there is no gallery."""

    gallery: RegionImages  # objects whose classes are known
    queries: RegionImages  # the E probed objects, and none else, of other pictures
    other_surroundings: Tensor  # (E, 3, S, S)
    moved: Tensor
    moved_boxes: Tensor  # (E, 4)


@dataclass(frozen=True)
class Grid:
    """The same objects, each alone on a plain canvas, in the same places."""

    pixels: Tensor  # (M, P, 3, S, S)
    boxes: Tensor  # (M, P, 4)


@dataclass(frozen=True)
class ProbeData:
    """Everything that models are shown; without suitable regions there are neither swaps nor a grid."""

    name: str  # where it comes from, for people
    size_px: int
    seed: int  # what was drawn by chance follows from it
    gallery: RegionImages  # what read-outs learn from, and neighbours are looked for in
    queries: RegionImages  # other images, which every number is about
    swaps: Swaps | None = None
    grid: Grid | None = None
    class_names: tuple[str, ...] = ()
    groups: Tensor | None = None  # (classes,) what the neighbour read-out names: a number per class, -1 for none
    skipped: dict[str, str] = field(default_factory=dict)  # measures that this data does not allow, and why
    notes: tuple[str, ...] = ()  # what a reader should know about the data
    objects: ObjectProbe | None = None  # of their own, where those of gallery and swaps are too few or unbalanced
    is_benchmark: bool = False  # exact pairs, all rows of a data set: its numbers compare with those of others

    @property
    def probed(self) -> ObjectProbe | None:
        """The objects to be recognised: its own, or the gallery's and those of the swaps."""
        swaps, queries = self.swaps, self.queries
        if self.objects is not None or swaps is None:
            return self.objects
        labels = None if queries.labels is None else queries.labels[swaps.regions]
        shown = RegionImages(queries.pixels[swaps.images], list(swaps.boxes[:, None]), labels)
        return ObjectProbe(self.gallery, shown, swaps.other_surroundings, swaps.moved, swaps.moved_boxes)


def frequent_groups(labels: Tensor, classes: int) -> Tensor:
    """(classes,) the most frequent classes, numbered from 0; -1 for all others."""
    counts = labels.bincount(minlength=classes)
    groups = torch.full((classes,), -1)
    frequent = counts.argsort(descending=True, stable=True)[:FREQUENT_CLASSES]
    frequent = frequent[counts[frequent] > 0]
    groups[frequent] = torch.arange(len(frequent))
    return groups


def noise_pictures(count: int, size_px: int, seed: int) -> Tensor:
    """(count, 3, S, S) of independent uniform noise: nothing to see, at any place."""
    rng = np.random.default_rng([seed, 11])
    return torch.from_numpy(rng.integers(0, 256, (count, 3, size_px, size_px), dtype=np.uint8))


def blank_pictures(count: int, size_px: int, seed: int) -> Tensor:
    """(count, 3, S, S), each of one colour: whatever differs between places is the network's own."""
    rng = np.random.default_rng([seed, 12])
    colors = torch.from_numpy(rng.integers(0, 256, (count, 3, 1, 1), dtype=np.uint8))
    return colors.expand(-1, -1, size_px, size_px).contiguous()
