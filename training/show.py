"""Draws the views of one sample with their regions, in the arrangement of the paper's architecture figure.

`python -m training.views` is its command.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
from PIL import Image

from modeling_decodepos.losses import DECOUPLING_PAIRS, DEPOSITIONING_PAIRS
from modeling_decodepos.sheet import Sheet
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
}


def draw_views(
    image: np.ndarray, donor: np.ndarray, boxes: np.ndarray, views: dict[str, ViewParameters]
) -> Image.Image:
    """A picture of one sample: the image, the donor and every view, each with its regions in matching colours."""
    sheet = Sheet([""] * 4, 2, tile=224, gap=16, left=16, top=12, below=46)
    panels = {"image": (image, [(box, "#9a9a9a") for box in boxes]), "donor": (donor, [])}
    full = max(view.size_px for view in views.values())
    for name, view in ((name, view) for name, view in views.items() if name in _PANELS):
        # A small view is drawn as small as it is, in the lower left.
        pixels = np.full((full, full, 3), 255, np.uint8)
        pixels[full - view.size_px :, : view.size_px] = apply_view(view, image, donor).permute(1, 2, 0).numpy()
        placed = (view.boxes * view.size_px + np.array([0, full - view.size_px] * 2)) / full
        colours = itertools.cycle(REGION_COLOURS)
        panels[name] = (pixels, [(box, c) for box, c, ok in zip(placed, colours, view.valid, strict=False) if ok])
    for name, (row, column, caption) in _PANELS.items():
        if name in panels:
            pixels, marks = panels[name]
            sheet.put(row, column, pixels, caption, marks, smooth=True)
    pairs = {"L_dc": DECOUPLING_PAIRS, "L_dp": DEPOSITIONING_PAIRS}
    lines = [f"{term}   {s} -> {t}" for term, table in pairs.items() for s, t in table]
    left, top = sheet.corner(1, 2)
    sheet.text(left, top + 92, "student -> teacher\n\n" + "\n".join(lines))
    return sheet.image


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
    return draw_views(sample.image, sample.donor, dataset.source.boxes(sample.index, epoch), sample.views)
