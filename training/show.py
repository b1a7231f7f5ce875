"""Draws the views of one sample with their regions, in the arrangement of the paper's architecture figure.

`python -m training.views` is its command.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modeling_decodepos.losses import DECOUPLING_PAIRS, DEPOSITIONING_PAIRS
from training.data.batches import RegionDataset
from training.data.streaming import RegionStream
from training.views.sampling import VIEW_RULES, ViewParameters, apply_view

REGION_COLOURS = ["#ffd400", "#e6194b", "#4363d8", "#3cb44b", "#f58231", "#911eb4", "#42d4f4", "#f032e6"]

_PANEL = 224

_CAPTION = 34

_PANELS = {
    "image": (0, 0, "image\nwith all its regions"),
    "crop": (1, 0, "crop (x2)\nteacher"),
    "crop_cut_small": (2, 0, "crop_cut_small (x2-small, hat)\nstudent"),
    "donor": (3, 0, "donor\ngives the new surroundings"),
    "whole": (0, 1, "whole (x1)\nwhere no region is cut"),
    "whole_cut": (1, 1, "whole_cut (x1, hat)\nstudent and teacher"),
    "repositioned": (3, 1, "repositioned (x3)\nstudent"),
}


def draw_views(
    image: np.ndarray, donor: np.ndarray, boxes: np.ndarray, views: dict[str, ViewParameters]
) -> Image.Image:
    """A picture of one sample: the image, the donor and every view, each with its regions in matching colours."""
    canvas = Image.new("RGB", (4 * (_PANEL + 16) + 16, 2 * (_PANEL + _CAPTION + 12) + 8), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)

    def paste(name: str, pixels: np.ndarray, panel_boxes: np.ndarray, colours: list[str], full_px: int) -> None:
        column, row, caption = _PANELS[name]
        side = round(_PANEL * full_px / max(v.size_px for v in views.values()))
        left, top = 16 + column * (_PANEL + 16), 8 + row * (_PANEL + _CAPTION + 12) + (_PANEL - side)
        canvas.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (left, top))
        for (x1, y1, x2, y2), colour in zip(panel_boxes * (side - 1), colours, strict=False):
            draw.rectangle([left + x1, top + y1, left + x2, top + y2], outline=colour, width=3)
        draw.multiline_text((left, top + side + 3), caption, fill="black", spacing=2, font=font)

    full = max(view.size_px for view in views.values())
    paste("image", image, boxes, ["#9a9a9a"] * len(boxes), full)
    paste("donor", donor, boxes[:0], [], full)
    for name, view in views.items():
        if name in _PANELS:
            pixels = apply_view(view, image, donor).permute(1, 2, 0).numpy()
            colours = [c for c, ok in zip(REGION_COLOURS * 8, view.valid, strict=False) if ok]
            paste(name, pixels, view.boxes[view.valid], colours, view.size_px)
    pairs = {"L_dc": DECOUPLING_PAIRS, "L_dp": DEPOSITIONING_PAIRS}
    lines = [f"{term}   {s} -> {t}" for term, table in pairs.items() for s, t in table]
    corner = (16 + 2 * (_PANEL + 16), 8 + _PANEL + _CAPTION + 92)
    draw.multiline_text(corner, "student -> teacher\n\n" + "\n".join(lines), fill="#444444", spacing=4, font=font)
    return canvas


def draw_sample(dataset: RegionDataset | RegionStream, epoch: int = 0, index: int = 0) -> Image.Image:
    """A picture of one sample, of a stream one of its first: all views, those that training uses among them."""
    if isinstance(dataset, RegionStream):
        dataset = dataset.first_block()
    if not 0 <= index < len(dataset):
        raise ValueError(f"index is {index}, but the split holds {len(dataset)} images (0 to {len(dataset) - 1}).")
    everything = dataclasses.replace(dataset.args, mixed_share=1.0)
    sample = dataset.read_sample(epoch, index, list(VIEW_RULES), everything, {})
    assert sample.donor is not None
    return draw_views(sample.image, sample.donor, dataset.source.boxes(sample.index, epoch), sample.views)
