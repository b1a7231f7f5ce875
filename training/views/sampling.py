"""One image and its regions -> the views of the method.

`sample_views` draws every parameter of every view of a sample without looking at a pixel; `apply_view` uses them.
Which views there are is a table.

    python -m training.views --data DIR --index N --output views.png

draws the views of one sample with their regions, in the arrangement of the paper's architecture figure.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from modeling_decodepos import imagenet
from modeling_decodepos.augmentations.background import foreground_mask, limit_coverage
from modeling_decodepos.augmentations.region_cutout import enlarge_cut, sample_grid_boxes, sample_region_cut
from modeling_decodepos.augmentations.repositioning import (
    FOREGROUND_SCALES,
    Placement,
    place_boxes,
    placed_pixel_boxes,
    sample_placement,
)
from modeling_decodepos.regions import boxes_in_window, boxes_to_pixels, flip_boxes, rotate_boxes
from training.recipe import ViewArguments
from training.views.colours import Photometric, apply_photometric, sample_photometric

MEAN_COLOUR = torch.tensor(imagenet.MEAN_COLOUR, dtype=torch.uint8)
WHOLE = np.array([0.0, 0.0, 1.0, 1.0])


@dataclass(frozen=True)
class ViewRule:
    """How a view is made."""

    of_whole: bool = False  # the whole image, else the sample's crop
    small: bool = False
    cut: bool = False  # region-augmented
    moved: bool = False  # regions moved over another image
    plain: bool = False  # colours as they are
    alone: bool = False  # each region a picture of its own, and nothing else


VIEW_RULES: dict[str, ViewRule] = {
    "whole": ViewRule(of_whole=True),
    "whole_cut": ViewRule(of_whole=True, cut=True),
    "crop": ViewRule(),
    "crop_small": ViewRule(small=True),
    "crop_cut_small": ViewRule(small=True, cut=True),
    "repositioned": ViewRule(moved=True),
    "plain": ViewRule(of_whole=True, plain=True),
    "alone": ViewRule(of_whole=True, plain=True, alone=True),
}


def view_side_px(rule: ViewRule, args: ViewArguments) -> int:
    """Side of a view's pictures."""
    if rule.alone:
        return args.alone_size_px
    return args.small_view_px if rule.small else args.view_size_px


_PLACES = {name: place for place, name in enumerate(VIEW_RULES)}
# Numbers between the stretches of two views; a view draws a few hundred. Spawned generators would do the same and take
# ten times as long. A prime: powers of two apart, PCG64 repeats its low bits.
_STRETCH = 1_000_003


@dataclass(frozen=True)
class PixelSource:
    """A window of an image (pixels x1, y1, x2, y2), resized to a square, perhaps mirrored and turned, and treated."""

    window: tuple[int, int, int, int]
    side_px: int
    flip: bool
    colours: Photometric
    quarters: int = 0  # of a circle, counter-clockwise, after mirroring


@dataclass(frozen=True)
class ViewParameters:
    """Everything that was drawn for one view of one sample."""

    size_px: int
    source: PixelSource
    boxes: np.ndarray  # (K, 4) float32, unit xyxy of this view
    valid: np.ndarray  # (K,) bool
    cut: np.ndarray | None = None  # (S, S) bool
    placement: Placement | None = None
    background: PixelSource | None = None
    foreground: np.ndarray | None = None  # (S, S) bool
    alone: tuple[PixelSource, ...] = ()  # where each of the regions is, of a view that shows them alone


def sample_views(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    donor_size: tuple[int, int],
    boxes: np.ndarray,
    names: Iterable[str],
    args: ViewArguments,
    image_level: bool = False,
) -> dict[str, ViewParameters]:
    """Parameters of the named views of one image, by name. The mixed view is left out for images that get none.

    Every view draws from its own stretch of the generator's sequence, so that what a view looks like does not depend
    on which others are asked for: the arms of a comparison share their crops. Sizes are height and width, `boxes`
    (R, 4) unit xyxy. Image-level baselines have one region, the whole view, in every view.
    """
    height, width = image_size
    whole = (0, 0, width, height)
    crop, chosen = _sample_crop(rng, image_size, boxes, args)
    inside = {
        window: boxes_in_window(chosen, np.array(window) / [width, height, width, height]) for window in (whole, crop)
    }
    shared_flip = bool(rng.random() < 0.5)
    mixed = rng.random() < args.mixed_share
    numbers = rng.bit_generator
    assert isinstance(numbers, np.random.PCG64)  # what `default_rng` gives
    start = numbers.state
    views: dict[str, ViewParameters] = {}
    for name in names:
        rule = VIEW_RULES[name]
        if rule.moved and not mixed:
            continue
        numbers.state = start
        numbers.advance(_STRETCH * (1 + _PLACES[name]))
        own_flip = bool(rng.random() < 0.5)
        flip = {"own": own_flip, "shared": shared_flip, "none": False}[args.flip]
        colours = Photometric() if rule.plain else sample_photometric(rng, args, rule.of_whole)
        quarters = int(rng.integers(4)) if args.quarter_turns else 0
        window = whole if rule.of_whole else crop
        size = view_side_px(rule, args)
        in_view = rotate_boxes(flip_boxes(inside[window]) if flip else inside[window], quarters)
        if image_level:
            in_view = WHOLE[None]
        parameters = ViewParameters(
            size_px=size,
            source=PixelSource(window, size, flip, colours, quarters),
            boxes=_pad(in_view, args.num_regions),
            valid=np.arange(args.num_regions) < len(in_view),
        )
        if rule.cut:
            parameters = dataclasses.replace(
                parameters, cut=_sample_cut(rng, in_view, size, args, args.cut_surroundings)
            )
        if rule.moved:
            parameters = _sample_move(rng, parameters, in_view, donor_size, args)
        if rule.alone:
            parameters = _show_alone(parameters, WHOLE[None] if image_level else chosen, image_size)
        views[name] = parameters
    return views


def apply_view(
    parameters: ViewParameters,
    image: np.ndarray,
    donor: np.ndarray | None = None,
    mean_colour: tuple[int, ...] = imagenet.MEAN_COLOUR,
) -> torch.Tensor:
    """(3, S, S) uint8 pixels, channels last in memory, of a view of (H, W, 3) images; a donor is for moved regions.

    Of regions alone (K, 3, S, S), black where there is no region. `mean_colour` is what shows through cuts.
    """
    if parameters.alone:
        pictures = np.zeros((len(parameters.valid), parameters.size_px, parameters.size_px, 3), dtype=np.uint8)
        for number, place in enumerate(parameters.alone):
            pictures[number] = read_pixels(place, image)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)
    pixels = read_pixels(parameters.source, image)
    # The library's `cut_regions`, `reposition_foreground` and `replace_background` do the same to tensors; their
    # `torch.where` takes fifty times as long on bytes with channels last.
    if parameters.cut is not None:
        cv2.copyTo(_filled(parameters.size_px, mean_colour), parameters.cut.view(np.uint8), pixels)
    if parameters.placement is not None and parameters.background is not None:
        if donor is None or parameters.foreground is None:
            raise ValueError("a view with a placement needs the donor's pixels and a foreground mask.")
        canvas = read_pixels(parameters.background, donor)
        target, source = parameters.placement.overlap(canvas.shape[:2])
        cv2.copyTo(pixels[source], parameters.foreground[target].view(np.uint8), canvas[target])
        pixels = canvas
    return torch.from_numpy(pixels).permute(2, 0, 1)


@functools.cache
def _filled(side_px: int, colour: tuple[int, ...]) -> np.ndarray:
    return np.tile(np.array(colour, dtype=np.uint8), (side_px, side_px, 1))


def read_pixels(source: PixelSource, image: np.ndarray) -> np.ndarray:
    """(side, side, 3) uint8 pixels in memory of their own."""
    x1, y1, x2, y2 = source.window
    # The batch axis is added before the channels move: only then does torch's 8-bit antialiased resize see that they
    # come last in memory, take its fast path and return that layout. It would copy the window too, more slowly.
    window = torch.from_numpy(np.ascontiguousarray(image[y1:y2, x1:x2]))[None].permute(0, 3, 1, 2)
    side = source.side_px
    resized = F.interpolate(window, size=(side, side), mode="bilinear", antialias=True)
    pixels = resized[0].permute(1, 2, 0).numpy()
    pixels = cv2.flip(pixels, 1) if source.flip else pixels
    return apply_photometric(np.ascontiguousarray(np.rot90(pixels, source.quarters)), source.colours)


def _sample_crop(
    rng: np.random.Generator, image_size: tuple[int, int], boxes: np.ndarray, args: ViewArguments
) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """A crop window in pixels, and up to K of the boxes that are large enough in the crop and in the whole image.

    SoCo's rule: try again until half of the regions are in view, and ask for half as many each time. An image without
    any usable region contributes the crop itself as its one region.
    """
    height, width = image_size
    demand = max(args.num_regions // 2, 1)
    unit = np.array([width, height, width, height])
    window, usable = (0, 0, width, height), np.zeros(0, dtype=int)
    for _ in range(args.crop_attempts):
        window = _sample_window(rng, image_size, args)
        sides = boxes_in_window(boxes, np.array(window) / unit).reshape(-1, 2, 2)
        extent = np.minimum(sides[:, 1] - sides[:, 0], boxes[:, 2:] - boxes[:, :2])
        usable = np.flatnonzero((extent >= args.min_region_side).all(1))
        if len(usable) >= demand:
            break
        demand = max(demand // 2, 1)
    if len(usable) == 0:
        return window, (np.array(window) / unit)[None]
    return window, boxes[rng.choice(usable, min(args.num_regions, len(usable)), replace=False)]


def _sample_window(
    rng: np.random.Generator, image_size: tuple[int, int], args: ViewArguments
) -> tuple[int, int, int, int]:
    """A random resized crop's window in whole pixels; the whole image if ten draws do not fit."""
    height, width = image_size
    for _ in range(10):
        area = height * width * rng.uniform(args.crop_scale_min, args.crop_scale_max)
        aspect = math.exp(rng.uniform(-1, 1) * math.log(args.crop_aspect))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def _sample_cut(
    rng: np.random.Generator, boxes: np.ndarray, size: int, args: ViewArguments, surroundings: bool
) -> np.ndarray:
    ratio = rng.uniform(args.cut_ratio_min, args.cut_ratio_max) if rng.random() < args.cut_probability else 0.0
    if surroundings:
        boxes = np.concatenate([boxes, sample_grid_boxes(rng)])
    cells = size // args.cut_grid_px
    return enlarge_cut(sample_region_cut(boxes, (cells, cells), ratio, rng, args.cut_form), args.cut_grid_px)


def _sample_move(
    rng: np.random.Generator,
    view: ViewParameters,
    boxes: np.ndarray,
    donor_size: tuple[int, int],
    args: ViewArguments,
) -> ViewParameters:
    """The view with its regions moved over a donor; boxes that would leave no surroundings are dropped."""
    size = view.size_px
    scale = FOREGROUND_SCALES.get(args.repositioning, (1.0, 1.0))
    keep = limit_coverage(boxes_to_pixels(boxes, (size, size)), (size, size), args.max_foreground / scale[1] ** 2)
    background = PixelSource(
        window=_sample_window(rng, donor_size, args),
        side_px=size,
        flip=bool(rng.random() < 0.5),
        colours=sample_photometric(rng, args, of_whole_image=False) if args.donor == "image" else Photometric(),
    )
    placement = Placement(size, 0, 0)
    if keep.any() and args.repositioning != "none":
        placement = sample_placement(boxes[keep], size, scale, rng)
    moved = place_boxes(boxes, placement, size)
    pixel_boxes = placed_pixel_boxes(boxes[keep], placement)
    cut = None
    if args.cut_foreground:
        cut = _sample_cut(rng, pixel_boxes / size, size, args, surroundings=False)
    return dataclasses.replace(
        view,
        source=dataclasses.replace(view.source, side_px=placement.side_px),
        boxes=_pad(moved, args.num_regions),
        valid=_pad(keep, args.num_regions),
        placement=placement,
        background=background,
        foreground=foreground_mask(pixel_boxes, (size, size), cut),
    )


def _show_alone(view: ViewParameters, boxes: np.ndarray, image_size: tuple[int, int]) -> ViewParameters:
    """The view with nothing but its regions, each cut from the image and mirrored as the view is."""
    sources = tuple(
        dataclasses.replace(view.source, window=(x1, y1, x2, y2))
        for x1, y1, x2, y2 in boxes_to_pixels(boxes, image_size).tolist()
    )
    return dataclasses.replace(view, boxes=_pad(WHOLE[None], len(view.valid)), alone=sources)


def _pad(rows: np.ndarray, length: int) -> np.ndarray:
    """Rows padded to `length`: boxes with whole-view boxes, flags with False."""
    missing = length - len(rows)
    if rows.dtype == bool:
        return np.concatenate([rows, np.zeros(missing, bool)])
    return np.concatenate([rows, np.broadcast_to(WHOLE, (missing, 4))], dtype=np.float32)
