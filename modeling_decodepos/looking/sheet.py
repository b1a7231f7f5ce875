"""What networks make of pictures, as one picture: a row for each picture and network."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from ..diagnosis.report.figures import (
    as_pixels,
    cell_shift,
    colorize,
    false_colors,
    lay_cells,
    nearest_cells,
    over_grey,
    similarities,
)
from ..drawing.sheet import BOX, MUTED, Sheet
from .found import format_share, format_value
from .run import Look, Point, Seen

_TILE = 200


def draw_look(found: Look) -> Image.Image:
    """The picture with its box and points, the map's main directions, what is like each point, and what the box's
    feature answers to."""
    several = len(found.asked[0].points) > 1
    alike = [f"like point {k + 1}" if several else "like the dot" for k in range(len(found.asked[0].points))]
    rows = len(found.asked) * len(found.seen)
    sheet = Sheet(["what is seen", "main directions", *alike, "what the box answers to"], rows, tile=_TILE, left=176)
    colors = [false_colors(seen.features.cells, seen.features.grid) for seen in found.seen]
    for row in range(rows):
        picture, network = divmod(row, len(found.seen))
        asked, seen = found.asked[picture], found.seen[network]
        stage, (height, width) = seen.model.stages[-1], seen.features.grid
        leaks, below = seen.leaks[picture], as_pixels(asked.view)
        sheet.label(row, seen.model.name)
        sheet.text(8, sheet.corner(row, 0)[1] + 84, _note(seen, picture), MUTED, 11, room=160)
        sheet.put(row, 0, below, asked.name, [(asked.box, BOX)], smooth=True)
        shift = _shift(seen)
        sheet.put(row, 1, lay_cells(colors[network][picture], shift), f"{stage}, {height} by {width} cells")
        for column, point in enumerate(asked.points, start=2):
            sheet.put(row, column, show_alike(seen, picture, below, point), f"{stage}, cosine from 0 to 1")
            sheet.dot(row, column, *point)
        for number, point in enumerate(asked.points, start=1):
            sheet.dot(row, 0, *point, str(number) if several else "")
        outside = leaks.outside[-1]
        share = "no gradient arrives" if outside is None else f"{format_share(outside)} of the gradient is outside"
        sheet.put(row, 2 + len(asked.points), leaks.heat[-1], share, [(asked.box, BOX)], smooth=True)
    return sheet.image


def _note(seen: Seen, picture: int) -> str:
    leak, place = seen.leaks[picture].leak[-1], seen.common.position[-1].value
    return f"context leak: {format_value(leak)}\nplace, from blank pages: {format_value(place)}"


def _shift(seen: Seen) -> tuple[float, float]:
    return cell_shift(seen.model, len(seen.model.stages) - 1, seen.features)


def show_alike(seen: Seen, picture: int, below: np.ndarray, point: Point) -> np.ndarray:
    """The picture's pixels, grey under the cosines of its cells with the one at a point."""
    heat = colorize(_like(seen, picture, point), 0.0, 1.0)
    return over_grey(below, lay_cells(heat, _shift(seen), below.shape[0]))


def _like(seen: Seen, picture: int, point: Point) -> Tensor:
    """(h, w) cosines of the cells of a picture with the one at a point."""
    height, width = seen.features.grid
    column, row = (
        int(nearest_cells(np.array(place), count, shift))
        for place, count, shift in zip(point, (width, height), _shift(seen), strict=True)
    )
    cosines = similarities(seen.features.cells[picture], seen.features.cells.flatten(0, 1).mean(0))
    return cosines[row * width + column].view(height, width)
