"""One region, and one thing about it exchanged: its surroundings, its content, or its surroundings and its place; or
the region alone.

Of single pictures first: pixels are (3, S, S) uint8 of a square view, boxes (4,) unit xyxy. Then of a set of images,
each of which gives its largest region that has surroundings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...augmentations.background import foreground_mask, replace_background
from ...augmentations.repositioning import (
    FOREGROUND_SCALES,
    place_boxes,
    placed_pixel_boxes,
    reposition_foreground,
    sample_placement,
)
from ...regions import boxes_to_pixels
from .probe import ObjectProbe, RegionImages, Swaps

LARGEST_AREA = 0.5
"""Of the view; a larger region has hardly any surroundings, and nowhere to go."""


ALONE_SIDE = 0.6
"""Side of the picture in which a region is shown alone, as a share of the view's."""


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """(3, H, W) uint8 pixels at another size."""
    return F.interpolate(pixels[None], size=(height, width), mode="bilinear", antialias=True)[0]


def exchange_surroundings(pixels: Tensor, box: np.ndarray, other: Tensor) -> Tensor:
    """The region where it is, before another image."""
    size = (pixels.shape[1], pixels.shape[2])
    return replace_background(pixels, other, foreground_mask(boxes_to_pixels(box[None], size), size))


def show_alone(pixels: Tensor, box: np.ndarray, side: int) -> Tensor:
    """The region by itself, (3, side, side): nothing else is in the picture, and there is one place only."""
    left, top, right, bottom = boxes_to_pixels(box[None], (pixels.shape[1], pixels.shape[2]))[0]
    return resize(pixels[:, top:bottom, left:right], side, side)


def exchange_content(pixels: Tensor, box: np.ndarray, other: Tensor, other_box: np.ndarray) -> Tensor:
    """Another image's region, stretched into this region's box; all around it stays."""
    size = (pixels.shape[1], pixels.shape[2])
    (x1, y1, x2, y2), (left, top, right, bottom) = boxes_to_pixels(np.stack([box, other_box]), size)
    exchanged = pixels.clone()
    exchanged[:, y1:y2, x1:x2] = resize(other[:, top:bottom, left:right], y2 - y1, x2 - x1)
    return exchanged


def move_elsewhere(
    pixels: Tensor, box: np.ndarray, other: Tensor, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """The region alone, smaller and in a random place before another image, and its box there."""
    side = pixels.shape[1]
    placement = sample_placement(box[None], side, FOREGROUND_SCALES["scaled"], rng)
    moved = reposition_foreground(resize(pixels, placement.side_px, placement.side_px), placement, other)
    mask = foreground_mask(placed_pixel_boxes(box[None], placement), (side, side))
    return replace_background(moved, other, torch.from_numpy(mask)), place_boxes(box[None], placement, side)[0]


def has_surroundings(boxes: Tensor) -> Tensor:
    """(N,) whether regions (N, 4) leave enough of the view free to have surroundings, and another place."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1) <= LARGEST_AREA


def largest_regions(images: RegionImages) -> list[int]:
    """Of each image, the largest region that leaves half of the view free; images without such a region have none."""
    boxes, owners = images.every_box, images.owners
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    regions = []
    for image in range(len(images)):
        own = torch.nonzero((owners == image) & has_surroundings(boxes))[:, 0]
        if len(own):
            regions.append(int(own[area[own].argmax()]))
    return regions


Move = Callable[[int, np.random.Generator], tuple[Tensor, Tensor]]
"""Query image number and randomness in; pixels with its probed region elsewhere, and the box there, out."""


def draw_swaps(
    images: RegionImages, regions: list[int], move: Move, rng: np.random.Generator, partners: list[int] | None = None
) -> Swaps:
    """The exchanges of one region per image: surroundings of, or content of, another image with such a region.

    `regions` are at least two, at most one per image. `partners` say which lends each its surroundings; by default the
    next one.
    """
    boxes, owners = images.every_box, images.owners
    rows = []
    for number, region in enumerate(regions):
        following = regions[number + 1 :] + regions[:number]
        # Content of the same class would count as the same content.
        other = next((r for r in following if _differs(images, r, region)), following[0])
        pixels = images.pixels[owners[region]]
        background = images.pixels[owners[following[0] if partners is None else regions[partners[number]]]]
        box, other_box = boxes[region].numpy(), boxes[other].numpy()
        exchanged = exchange_content(pixels, box, images.pixels[owners[other]], other_box)
        rows.append((exchange_surroundings(pixels, box, background), exchanged, *move(region, rng)))
    chosen = torch.tensor(regions)
    # Other surroundings, other content, moved, and the boxes of what is moved.
    return Swaps(chosen, owners[chosen], boxes[chosen], *(torch.stack(column) for column in zip(*rows, strict=True)))


def draw_objects(gallery: RegionImages, queries: RegionImages, rng: np.random.Generator) -> ObjectProbe:
    """All regions of the queries, at least two images, as probed objects: before the next images, and moved there."""
    rows = []
    for image, boxes in enumerate(queries.boxes):
        for place, box in enumerate(boxes.numpy()):
            # Regions of one image go before different ones, as far as there are so many.
            other = queries.pixels[(image + 1 + place % (len(queries) - 1)) % len(queries)]
            moved, moved_box = move_elsewhere(queries.pixels[image], box, other, rng)
            exchanged = exchange_surroundings(queries.pixels[image], box, other)
            rows.append((exchanged, moved, torch.from_numpy(np.asarray(moved_box)).float()))
    return ObjectProbe(gallery, queries, *(torch.stack(column) for column in zip(*rows, strict=True)))


def _differs(images: RegionImages, region: int, other: int) -> bool:
    return images.labels is None or bool(images.labels[region] != images.labels[other])


def move_before_next(images: RegionImages, regions: list[int]) -> Move:
    """Moves a probed region elsewhere, before the image of the next one."""
    boxes, owners = images.every_box, images.owners
    following = dict(zip(regions, regions[1:] + regions[:1], strict=True))

    def move(region: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        other = images.pixels[owners[following[region]]]
        pixels, box = move_elsewhere(images.pixels[owners[region]], boxes[region].numpy(), other, rng)
        return pixels, torch.from_numpy(np.asarray(box)).float()

    return move


def draw_changes(images: RegionImages, regions: list[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One region per image, (E, 3, 3, S, S) pixels and (E, 3, 4) boxes: twice in other surroundings, once elsewhere.

    The images of the next regions lend what is around; there are at least two regions.
    """
    boxes, owners = images.every_box, images.owners
    pictures, places = [], []
    for number, region in enumerate(regions):
        pixels, box = images.pixels[owners[region]], boxes[region].numpy()
        lenders = [regions[(number + 1 + step % (len(regions) - 1)) % len(regions)] for step in range(3)]
        first, second, third = (images.pixels[owners[lender]] for lender in lenders)
        moved, elsewhere = move_elsewhere(pixels, box, third, rng)
        pictures += [exchange_surroundings(pixels, box, first), exchange_surroundings(pixels, box, second), moved]
        places += [box, box, elsewhere]
    every, where = torch.stack(pictures), torch.from_numpy(np.stack(places)).float()
    return every.unflatten(0, (-1, 3)), where.unflatten(0, (-1, 3))
