"""A picture of what is near what: some regions, and the regions nearest to them before and after training."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from modeling_decodepos.drawing.sheet import SCALE, Sheet
from training.probes.during import MeasuredImages, NearestRegions, OnlineMeasures

_SAME, _EMPTY = "#15803d", "#eef0f4"


def draw_neighbours(
    online: OnlineMeasures, before: NearestRegions | None, after: NearestRegions | None
) -> Image.Image:
    """Query regions with their nearest gallery regions as crops, and their classes where known.

    Both are of the same queries; one of them may be missing.
    """
    groups = [(name, found) for name, found in (("before training", before), ("after training", after)) if found]
    if not groups or len({found.queries for _, found in groups}) > 1:
        raise ValueError("there must be neighbours from before or after training, and both of the same query regions.")
    queries, count = groups[0][1].queries, len(groups[0][1].nearest[0])
    titles = ["region", *(title for name, _ in groups for title in ("", f"nearest {name}", *[""] * (count - 1)))]
    sheet = Sheet(titles, len(queries), tile=70, gap=5, left=20, below=40)
    for row, query in enumerate(queries):
        wanted = _class_name(online, online.queries, query)
        _put_region(sheet, row, 0, online.queries, query, wanted)
        for group, (_, found) in enumerate(groups):
            for place, region in enumerate(found.nearest[row]):
                name = _class_name(online, online.gallery, region)
                column = 2 + group * (count + 1) + place
                _put_region(sheet, row, column, online.gallery, region, name, is_same=name != "" and name == wanted)
    return sheet.image


def _put_region(
    sheet: Sheet, row: int, column: int, images: MeasuredImages, region: int, name: str, is_same: bool = False
) -> None:
    """One tile: the region, cut from the image as it is stored, its class below; green where it is the query's."""
    image = images.source.pixels(images.indices[int(images.owners[region])])
    height, width = image.shape[:2]
    box = images.every_box[region].double().numpy() * [width, height, width, height]
    x1, y1, x2, y2 = (int(value) for value in np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]))
    side = sheet.tile * SCALE
    tile = ImageOps.pad(Image.fromarray(image[y1:y2, x1:x2]), (side, side), Image.Resampling.LANCZOS, _EMPTY)
    frame = [((0, 0, 1, 1), _SAME)] if is_same else []
    sheet.put(row, column, np.asarray(tile), name.replace(" ", "\n", 1), frame)


def _class_name(online: OnlineMeasures, images: MeasuredImages, region: int) -> str:
    if images.labels is None:
        return ""
    label = int(images.labels[region])
    names = online.class_names
    return names[label] if names is not None and label < len(names) else str(label)
