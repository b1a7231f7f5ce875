"""Drawings of a sweep: for each number a line per arm, a dot per seed, a bar at the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from model_cards.comparison import Cell
from modeling_decodepos.drawing.page import format_number

WIDTH = 480
_LEFT, _RIGHT, _LINE, _TOP = 150, 60, 22, 26
STYLE = Markup(
    "<style>.dot{fill:#2a6fdb;fill-opacity:.55}.mean{stroke:currentColor;stroke-width:2}"
    ".reference{stroke:#999;stroke-dasharray:4 3}.tick,.name{font:12px sans-serif;fill:currentColor}"
    ".name{font-weight:bold}</style>"
)
_TEXT = Markup('<text x="{}" y="{}" text-anchor="end" class="tick">{}</text>')
_LINE_MARK = Markup('<line x1="{0}" x2="{0}" y1="{1}" y2="{2}" class="{3}"/>')
_BAR = Markup('<line x1="{0}" x2="{1}" y1="{2}" y2="{2}" class="mean"/>')
_DOT = Markup('<circle cx="{}" cy="{}" r="4" class="dot"><title>{}, seed {}: {}</title></circle>')
_PLACED = Markup('<g transform="translate({} {})">{}</g>')
_FILE = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" color="#222">{2}'
    '<rect width="{0}" height="{1}" fill="#fff"/>{3}</svg>\n'
)

Cells = Mapping[str, Mapping[str, Cell]]


def dot_plot(
    name: str, arms: Sequence[str], baseline: str | None, cells: Cells, title: str = ""
) -> tuple[Markup, int]:
    """One number of all arms, as parts of an SVG that is `WIDTH` wide, and how high they are.

    Without a baseline the arms are contrasts: each has its interval, and the dashed line is at zero.
    """
    heading = Markup('<text x="4" y="14" class="name">{}</text>').format(title or name)
    known = {arm: cells[arm][name] for arm in arms if name in cells.get(arm, {})}
    if not known:
        return heading + Markup('\n<text x="4" y="34" class="tick">no run has this number</text>'), 44
    every = [value for cell in known.values() for value in cell.values.values()]
    if baseline is None:
        every += [0.0, *(cell.mean + side * (cell.half_width or 0) for cell in known.values() for side in (-1, 1))]
    room = 0.06 * (max(every) - min(every)) or 0.05
    low, high = min(every) - room, max(every) + room

    def x(value: float) -> str:
        return f"{_LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT):.1f}"

    height = _TOP + _LINE * len(known)
    parts = [heading]
    if baseline is None or baseline in known:
        at = 0.0 if baseline is None else known[baseline].mean
        parts.append(_LINE_MARK.format(x(at), _TOP - 6, height - 4, "reference"))
    for number, (arm, cell) in enumerate(known.items()):
        y = _TOP + _LINE * number + 8
        parts.append(_TEXT.format(_LEFT - 10, y + 4, arm.replace("_", " ")))
        parts += [_DOT.format(x(value), y, arm, seed, format_number(value)) for seed, value in cell.values.items()]
        parts.append(_LINE_MARK.format(x(cell.mean), y - 8, y + 8, "mean"))
        if baseline is None and cell.half_width is not None:
            parts.append(_BAR.format(x(cell.mean - cell.half_width), x(cell.mean + cell.half_width), y))
        parts.append(_TEXT.format(WIDTH - 4, y + 4, format_number(cell.mean)))
    return Markup("\n").join(parts), height


def dot_plots(titles: Mapping[str, str], arms: Sequence[str], baseline: str | None, cells: Cells) -> str:
    """An SVG file: the named numbers in two columns, on white."""
    drawn = [dot_plot(name, arms, baseline, cells, title) for name, title in titles.items()]
    parts, top = [], 8
    for left, right in zip(drawn[::2], [*drawn[1::2], None], strict=False):
        parts += [_PLACED.format(8, top, left[0])] + ([_PLACED.format(WIDTH + 32, top, right[0])] if right else [])
        top += max(left[1], right[1] if right else 0) + 18
    return _FILE.format(2 * WIDTH + 40, top, STYLE, Markup("\n").join(parts))
