"""Draws the views of one sample with their regions, in the arrangement of the paper's architecture figure.

`python -m training.views` is its command.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import numpy as np
from PIL import Image

from modeling_decodepos.drawing.sheet import Sheet
from modeling_decodepos.imagenet import MEAN_COLOUR
from modeling_decodepos.losses import DECOUPLING_PAIRS, DEPOSITIONING_PAIRS, ISOLATED_PAIRS
from training.data.batches import RegionDataset
from training.data.streaming import RegionStream
from training.views.sampling import VIEW_RULES, ViewParameters, apply_view

REGION_COLOURS = ["#ffd400", "#e6194b", "#4363d8", "#3cb44b", "#f58231", "#911eb4", "#42d4f4", "#f032e6"]

_PANELS = {  # row, column, caption
    "image": (0, 0, "image\nwith all its regions"),
    "crop": (0, 1, "crop (x2)\nteacher"),
    "crop_cut_small": (0, 2, "crop_cut_small (x2-small, hat)\nstudent"),
    "donor": (0, 3, "donor\ngives the new surroundings"),
    "whole": (1, 0, "whole (x1)\nwhere no region is cut"),
    "whole_cut": (1, 1, "whole_cut (x1, hat)\nstudent and teacher"),
    "repositioned": (1, 3, "repositioned (x3)\nstudent"),
    "plain": (2, 0, "plain\nstudent of isolated"),
    "alone": (2, 1, "alone\nits teacher"),
}
Panel = tuple[np.ndarray, list[tuple[np.ndarray, str]]]  # pixels, and boxes in them with their colours


def draw_views(
    image: np.ndarray,
    donor: np.ndarray,
    boxes: np.ndarray,
    views: dict[str, ViewParameters],
    mean_colour: tuple[int, ...] = MEAN_COLOUR,
) -> Image.Image:
    """A picture of one sample: the image, the donor and every view, each with its regions in matching colours."""
    sheet = Sheet([""] * 4, 3, tile=224, gap=16, left=16, top=12, below=46)
    panels: dict[str, Panel] = {"image": (image, [(box, "#9a9a9a") for box in boxes]), "donor": (donor, [])}
    full = max(view.size_px for view in views.values())
    for name, view in views.items():
        pixels = apply_view(view, image, donor, mean_colour).movedim(-3, -1).numpy()
        panels[name] = _draw_alone(view, pixels) if view.alone else _draw_scene(view, pixels, full)
    for name, (row, column, caption) in _PANELS.items():
        if name in panels:
            pixels, marks = panels[name]
            sheet.put(row, column, pixels, caption, marks, smooth=True)
    pairs = {"L_dc": DECOUPLING_PAIRS, "L_dp": DEPOSITIONING_PAIRS, "isolated": ISOLATED_PAIRS}
    lines = [f"{term}   {s} -> {t}" for term, table in pairs.items() for s, t in table]
    left, top = sheet.corner(1, 2)
    sheet.text(left, top + 92, "student -> teacher\n\n" + "\n".join(lines))
    return sheet.image


def _draw_scene(view: ViewParameters, pixels: np.ndarray, full: int) -> Panel:
    """A view on a square of `full` pixels. A small one is drawn as small as it is, in the lower left."""
    sheet = np.full((full, full, 3), 255, np.uint8)
    sheet[full - view.size_px :, : view.size_px] = pixels
    placed = (view.boxes * view.size_px + np.array([0, full - view.size_px] * 2)) / full
    colours = itertools.cycle(REGION_COLOURS)
    return sheet, [(box, c) for box, c, ok in zip(placed, colours, view.valid, strict=False) if ok]


def _draw_alone(view: ViewParameters, pictures: np.ndarray) -> Panel:
    """The pictures of the regions, row by row."""
    side, columns = view.size_px, math.ceil(math.sqrt(len(pictures)))
    sheet, marks = np.full((columns * side, columns * side, 3), 255, np.uint8), []
    colours = itertools.cycle(REGION_COLOURS)
    for number, (picture, colour) in enumerate(zip(pictures[: len(view.alone)], colours, strict=False)):
        row, column = divmod(number, columns)
        sheet[row * side :, column * side :][:side, :side] = picture
        marks.append((np.array([column, row, column + 1, row + 1]) / columns, colour))
    return sheet, marks


def draw_sample(dataset: RegionDataset | RegionStream, epoch: int = 0, index: int = 0) -> Image.Image:
    """A picture of one sample, of a stream one of its first: all views, those that training uses among them."""
    if isinstance(dataset, RegionStream):
        dataset = dataset.first_block()
    if not 0 <= index < len(dataset):
        raise ValueError(f"index is {index}, but the split holds {len(dataset)} images (0 to {len(dataset) - 1}).")
    everything = copy.copy(dataset)
    everything.view_names, everything.args = list(VIEW_RULES), dataclasses.replace(dataset.args, mixed_share=1.0)
    sample = everything.read_sample(epoch, index)
    assert sample.donor is not None
    boxes = dataset.source.boxes(sample.index, epoch)
    return draw_views(sample.image, sample.donor, boxes, sample.views, dataset.mean_colour)
