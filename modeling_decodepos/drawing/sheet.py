"""A sheet of tiles: pictures in rows and columns, with names, notes and boxes. Reports and probes are drawn on it.

Lengths are CSS pixels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # drawn for screens with two pixels per CSS pixel
INK, MUTED, BOX = "#1c2330", "#667085", "#ffd400"

Pixels = NDArray[np.uint8]

_PLAIN = str.maketrans("\N{MINUS SIGN}\N{EN DASH}\N{NO-BREAK SPACE}", "-- ")  # which Pillow's own font has not


class Sheet:
    """A white sheet with a title above each column of square tiles, and room before and below the tiles."""

    def __init__(
        self,
        titles: Sequence[str],
        rows: int,
        *,
        tile: int = 148,
        gap: int = 8,
        left: int = 150,
        top: int = 30,
        below: int = 22,
    ):
        self.tile, self.gap, self.left, self.top, self.below = tile, gap, left, top, below
        size = (left + len(titles) * (tile + gap) + gap, top + rows * (tile + below))
        self.image = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)
        for column, title in enumerate(titles):
            self.text(self.corner(0, column)[0], 8, title)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of a tile."""
        return self.left + column * (self.tile + self.gap), self.top + row * (self.tile + self.below)

    def label(self, row: int, text: str, note: str = "") -> None:
        """Write before a row."""
        top = self.corner(row, 0)[1]
        for line, part in enumerate(textwrap.wrap(text, 19)[:4]):
            self.text(8, top + 8 + 17 * line, part, room=self.left - 14)
        for line, part in enumerate(textwrap.wrap(note, 22)[:4]):
            self.text(8, top + 84 + 15 * line, part, MUTED, 11, room=self.left - 14)

    def put(
        self,
        row: int,
        column: int,
        pixels: Pixels,
        caption: str = "",
        boxes: Iterable[tuple[Any, str]] = (),
        smooth: bool = False,
    ) -> None:
        """Paste (h, w, 3) pixels into a tile, with boxes (4,) in units of it in their colours."""
        left, top = self.corner(row, column)
        side, how = self.tile * SCALE, Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        self.image.paste(Image.fromarray(pixels).resize((side, side), how), (left * SCALE, top * SCALE))
        for box, color in boxes:
            x1, y1, x2, y2 = (
                round((start + float(value) * self.tile) * SCALE)
                for start, value in zip((left, top) * 2, box, strict=True)
            )
            self.draw.rectangle([x1 - 1, y1 - 1, x2 + 1, y2 + 1], outline=INK, width=6)
            self.draw.rectangle([x1, y1, x2, y2], outline=color, width=4)
        self.text(left, top + self.tile + 3, caption, MUTED, 11, room=self.tile)

    def dot(self, row: int, column: int, x: float, y: float, name: str = "") -> None:
        """Mark a place, in units of a tile, with its name beside it."""
        left, top = self.corner(row, column)
        x, y = left + x * self.tile, top + y * self.tile
        for radius, color in ((7, INK), (5, BOX)):
            corners = [round(value * SCALE) for value in (x - radius, y - radius, x + radius, y + radius)]
            self.draw.ellipse(corners, fill=color)
        if name:
            self.text(x, y, name, INK, 9, anchor="mm")

    def text(
        self, x: float, y: float, text: str, color: str = INK, size: int = 13, room: float = 1e9, anchor: str = "la"
    ) -> None:
        """Write lines, each cut short where it is wider than the room."""
        font = ImageFont.load_default(size=size * SCALE)
        lines = text.translate(_PLAIN).split("\n")
        for number, line in enumerate(lines):
            while line and font.getlength(line) > room * SCALE:
                line = line.removesuffix("…")[:-1] + "…" if len(line.removesuffix("…")) > 1 else ""
            lines[number] = line
        self.draw.text((x * SCALE, y * SCALE), "\n".join(lines), fill=color, font=font, anchor=anchor)

    def bar(self, x1: float, y1: float, x2: float, y2: float, color: str) -> None:
        """Fill a rectangle."""
        self.draw.rectangle([round(value * SCALE) for value in (x1, y1, x2, y2)], fill=color)
