"""What a diagnosis looks at: pictures with regions, and controlled changes of them.

Shapes: I images, N regions of all images, E regions with something exchanged, M objects, P places, S side in pixels.
Pixels are uint8, boxes unit xyxy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .exchange import exchange_content, exchange_surroundings

LEAST_SIDE = 0.1
"""Of the view; a smaller region is a few pixels."""

LARGEST_AREA = 0.5
"""Of the view; a larger region has neither surroundings nor another place."""

FREQUENT_CLASSES = 10
"""At most so many classes are asked for in the neighbour read-out; more would have too few examples each."""


@dataclass(frozen=True)
class Pictures:
    """Images with their regions.

    Attributes:
        pixels: (I, 3, S, S).
        boxes: (R_i, 4) float32 of each image; an image may have none.
        labels: (N,) classes, image by image; None without classes.
    """

    pixels: Tensor
    boxes: list[Tensor]
    labels: Tensor | None

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
class Grid:
    """The same objects, each alone on a plain canvas, in the same places."""

    pixels: Tensor  # (M, P, 3, S, S)
    boxes: Tensor  # (M, P, 4)


@dataclass(frozen=True)
class ProbeData:
    """Everything that models are asked about.

    Attributes:
        name: Where it comes from, for people.
        size_px: S.
        seed: What was drawn by chance follows from it.
        gallery: What read-outs learn from, and neighbours are looked for in.
        queries: Other images, which every number is about.
        swaps: None without suitable regions.
        grid: None without suitable regions.
        class_names: May be empty.
        groups: (classes,) what the neighbour read-out asks for: a number per class, -1 for none.
        skipped: Measures that this data does not allow, and why.
        notes: What a reader should know about the data.
    """

    name: str
    size_px: int
    seed: int
    gallery: Pictures
    queries: Pictures
    swaps: Swaps | None = None
    grid: Grid | None = None
    class_names: tuple[str, ...] = ()
    groups: Tensor | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Move = Callable[[int, np.random.Generator], tuple[Tensor, Tensor]]
"""Query image number and randomness in; pixels with its probed region elsewhere, and the box there, out."""


def draw_swaps(
    pictures: Pictures, regions: list[int], move: Move, rng: np.random.Generator, partners: list[int] | None = None
) -> Swaps:
    """The exchanges of one region per image: surroundings of, or content of, another image with such a region.

    Args:
        pictures: The query images.
        regions: Numbers of the probed regions, at most one per image, at least two.
        move: Draws a region elsewhere.
        rng: Of places.
        partners: For each probed region, which probed region lends its surroundings; the next one by default.
    """
    boxes, owners = pictures.every_box, pictures.owners
    surroundings, content, moved, moved_boxes = [], [], [], []
    for number, region in enumerate(regions):
        following = regions[number + 1 :] + regions[:number]
        # Content of the same class would count as the same content.
        other = next((r for r in following if _differs(pictures, r, region)), following[0])
        pixels = pictures.pixels[owners[region]]
        background = pictures.pixels[owners[following[0] if partners is None else regions[partners[number]]]]
        box, other_box = boxes[region].numpy(), boxes[other].numpy()
        surroundings.append(exchange_surroundings(pixels, box, background))
        content.append(exchange_content(pixels, box, pictures.pixels[owners[other]], other_box))
        picture, there = move(region, rng)
        moved.append(picture)
        moved_boxes.append(there)
    chosen = torch.tensor(regions)
    return Swaps(
        regions=chosen,
        images=owners[chosen],
        boxes=boxes[chosen],
        other_surroundings=torch.stack(surroundings),
        other_content=torch.stack(content),
        moved=torch.stack(moved),
        moved_boxes=torch.stack(moved_boxes),
    )


def _differs(pictures: Pictures, region: int, other: int) -> bool:
    return pictures.labels is None or bool(pictures.labels[region] != pictures.labels[other])


def what_classes_lack(gallery: Pictures, queries: Pictures, neighbours: int) -> dict[str, str]:
    """Measures that need classes and cannot be had, and why."""
    if gallery.labels is None or queries.labels is None:
        reason = "the data has no classes"
    elif len(gallery.labels) < 2 or len(queries.labels) < 1:
        reason = "there are too few regions of at least 10 % of the view on both sides"
    elif len(gallery.labels.unique()) < 2:
        reason = "all regions are of one class: nothing to tell apart"
    elif len(gallery.labels) < neighbours:
        reason = f"the gallery has {len(gallery.labels)} objects, fewer than the k = {neighbours} neighbours that vote"
    else:
        return {}
    return {"object_knn": reason, "neighbour": reason, "debias": reason}


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
