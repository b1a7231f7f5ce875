"""A picture of what is near what: some regions, and the regions nearest to them before and after training."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from training.probes.during import MeasuredImages, NearestRegions, OnlineMeasures

_SCALE = 2  # drawn for screens with two pixels per CSS pixel; every length below is a CSS pixel
_TILE, _GAP, _MARGIN, _BETWEEN = 70, 5, 20, 22
_TOP, _CAPTION = 46, 32
_INK, _MUTED, _SAME, _EMPTY = "#1c2330", "#667085", "#15803d", "#eef0f4"


def draw_neighbours(
    online: OnlineMeasures, before: NearestRegions | None, after: NearestRegions | None
) -> Image.Image:
    """Query regions with their nearest gallery regions as crops, and their classes where known.

    Args:
        online: The images that both were found in.
        before: Neighbours by the weights a run started from; None if they were not kept.
        after: Neighbours by the trained weights, of the same queries.
    """
    groups = [(name, found) for name, found in (("before training", before), ("after training", after)) if found]
    if not groups or len({found.queries for _, found in groups}) > 1:
        raise ValueError("there must be neighbours from before or after training, and both of the same query regions.")
    queries = groups[0][1].queries
    lefts = [_MARGIN + _TILE + _BETWEEN]
    for _, found in groups:
        lefts.append(lefts[-1] + len(found.nearest[0]) * (_TILE + _GAP) - _GAP + _BETWEEN)
    width = lefts[-1] - _BETWEEN + _MARGIN
    canvas = Image.new("RGB", (width * _SCALE, (_TOP + len(queries) * (_TILE + _CAPTION + 6)) * _SCALE), "white")
    for left, name in zip([_MARGIN, *lefts], ["region", *(f"nearest {name}" for name, _ in groups)], strict=False):
        _write(canvas, left, 18, name, _INK, 15)
    for row, query in enumerate(queries):
        top = _TOP + row * (_TILE + _CAPTION + 6)
        wanted = _class_name(online, online.queries, query)
        _draw_region(canvas, _MARGIN, top, online.queries, query, wanted, _INK)
        for left, (_, found) in zip(lefts, groups, strict=False):
            for place, region in enumerate(found.nearest[row]):
                name = _class_name(online, online.gallery, region)
                color = _SAME if name and name == wanted else _MUTED
                _draw_region(canvas, left + place * (_TILE + _GAP), top, online.gallery, region, name, color)
    return canvas


def _draw_region(
    canvas: Image.Image, left: int, top: int, images: MeasuredImages, region: int, name: str, color: str
) -> None:
    """One tile: the region, cut from the image as it is stored, its class below; green where it is the query's."""
    draw, side = ImageDraw.Draw(canvas), _TILE * _SCALE
    corner = (left * _SCALE, top * _SCALE)
    draw.rectangle((*corner, corner[0] + side - 1, corner[1] + side - 1), fill=_EMPTY)
    crop = _crop(images, region)
    shrink = side / max(crop.size)
    width, height = (max(1, round(length * shrink)) for length in crop.size)
    place = (corner[0] + (side - width) // 2, corner[1] + (side - height) // 2)
    canvas.paste(crop.resize((width, height), Image.Resampling.LANCZOS), place)
    if color == _SAME:
        draw.rectangle((*corner, corner[0] + side - 1, corner[1] + side - 1), outline=_SAME, width=2 * _SCALE)
    for line, text in enumerate(_caption_lines(name)):
        _write(canvas, left, top + _TILE + 2 + 13 * line, text, color, 11)


def _crop(images: MeasuredImages, region: int) -> Image.Image:
    owner = int(images.owners[region])
    image = images.source.pixels(images.indices[owner])
    height, width = image.shape[:2]
    box = torch.cat(images.boxes)[region].double().numpy() * [width, height, width, height]
    x1, y1, x2, y2 = (int(value) for value in np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]))
    return Image.fromarray(image[y1:y2, x1:x2])


def _class_name(online: OnlineMeasures, images: MeasuredImages, region: int) -> str:
    if images.labels is None:
        return ""
    label = int(images.labels[region])
    names = online.class_names
    return names[label] if names is not None and label < len(names) else str(label)


def _caption_lines(name: str) -> list[str]:
    """The name in one line, or two, shortened to the width of a tile."""
    font = ImageFont.load_default(size=11)
    lines = [name] if font.getlength(name) <= _TILE else name.split(" ", 1)
    for number, line in enumerate(lines):
        shown = line
        while font.getlength(shown) > _TILE:
            shown = shown.removesuffix("…")[:-1] + "…"
        lines[number] = shown
    return lines


def _write(canvas: Image.Image, x: int, y: int, text: str, color: str, size: int) -> None:
    font = ImageFont.load_default(size=size * _SCALE)
    ImageDraw.Draw(canvas).text((x * _SCALE, y * _SCALE), text, fill=color, font=font)
