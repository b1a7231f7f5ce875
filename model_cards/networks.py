"""The page of networks: tables and the figure of `python -m benchmarks.networks`, from results/networks.json.

Where the page says `<!-- networks NAME -->`, up to `<!-- end of NAME -->`, stands a table of that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from model_cards.tables import cell, markdown_table
from modeling_decodepos.page import format_number

PAGE = Path("docs") / "networks.md"
FIGURE = Path("docs") / "figures" / "networks.svg"
RESULTS = "networks.json"
READINGS = ("aligned", "legacy", "known", "measured")
SITUATIONS = ("as is", "other surroundings", "moved", "alone")

Numbers = dict[tuple[str, ...], dict[str, Any]]
"""Rows by network, weights, reading and metric."""


def index_rows(rows: Sequence[dict[str, Any]]) -> Numbers:
    """The rows, by what they are of."""
    return {(row["model"], *row["arm"].split(", "), row["metric"]): row for row in rows}


def names(numbers: Numbers, weights: str) -> list[str]:
    """The networks of trained or random weights, in the order of the file."""
    return list(dict.fromkeys(network for network, own, _, _ in numbers if own == weights))


def value(numbers: Numbers, *key: str) -> float | None:
    """A number, if it was measured."""
    found = numbers.get(key)
    return None if found is None else found["value"]


def _written(numbers: Numbers, *key: str) -> str:
    """A number with its deviation over seeds, or the 95 % interval over images where there is one seed."""
    found = numbers.get(key)
    if found is None:
        return "–"  # noqa: RUF001
    deviation, interval = found["spread"]["std_over_seeds"], found["spread"]["interval_95_over_images"]
    text = f"{found['value']:.3f}"
    if deviation is not None:
        return f"{text} ± {deviation:.3f}"
    return f"{text} ({interval[0]:.3f} to {interval[1]:.3f})" if interval else text


def situations(numbers: Numbers) -> str:
    """Aligned reading: what is left of each network before other surroundings, moved and alone."""
    header = ("network", "weights", *(f"class mean, {name}" for name in SITUATIONS), "leak", "place, R²")
    lines = []
    for weights in ("trained", "random"):
        for network in names(numbers, weights):
            key = network, weights, "aligned"
            metrics = (*(f"class mean, {name}" for name in SITUATIONS), "leak", "place")
            lines.append((cell(network), weights, *(_written(numbers, *key, metric) for metric in metrics)))
    return markdown_table(header, lines)


def readings(numbers: Numbers) -> str:
    """The same weights under each reading."""
    header = (
        "network",
        "reading",
        "cells right, down",
        *(f"class mean, {s}" for s in SITUATIONS[:3]),
        "leak",
        "place, R²",
    )
    lines = []
    for network in names(numbers, "trained"):
        for reading in READINGS:
            key = network, "trained", reading
            offsets = [value(numbers, *key, f"offset {axis}") for axis in "xy"]
            metrics = (*(f"class mean, {name}" for name in SITUATIONS[:3]), "leak", "place")
            lines.append(
                (
                    cell(network),
                    reading,
                    ", ".join("–" if offset is None else f"{offset:+.2f}" for offset in offsets),  # noqa: RUF001
                    *(_written(numbers, *key, metric) for metric in metrics),
                )
            )
    return markdown_table(header, lines)


def offsets(numbers: Numbers) -> str:
    """Where cells lie by the operations, and where trained and random weights look."""
    header = ("network", "known", "measured, trained", "measured, random")
    lines = []
    for network in names(numbers, "trained"):
        pairs = [
            (weights, reading)
            for weights, reading in (("trained", "known"), ("trained", "measured"), ("random", "measured"))
        ]
        found = [[value(numbers, network, *pair, f"offset {axis}") for axis in "xy"] for pair in pairs]
        texts = [", ".join("–" if part is None else f"{part:+.2f}" for part in pair) for pair in found]  # noqa: RUF001
        lines.append((cell(network), *texts))
    return markdown_table(header, lines)


TABLES: dict[str, Callable[[Numbers], str]] = {"situations": situations, "readings": readings, "offsets": offsets}


def with_tables(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """The page with what the results say between its marks."""
    numbers = index_rows(rows)

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- networks {name} -->\n{TABLES[name](numbers)}\n<!-- end of {name} -->"

    return re.sub(r"<!-- networks (?P<name>\w+) -->.*?<!-- end of (?P=name) -->", fill, page, flags=re.DOTALL)


# -------------------------------------------------------------------------------------------------------------- figure

_SIDE, _LEFT, _TOP, _GAP = 300, 64, 34, 110
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>')
_LINE = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>')
_DOT = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4.5" class="{}"><title>{}</title></circle>')
_STYLE = Markup(
    "<style>text{{font:12px sans-serif;fill:#222}}.name{{font-size:10.5px}}.title{{font-weight:bold;font-size:13px}}"
    ".axis{{stroke:#222}}.grid{{stroke:#ddd}}.equal{{stroke:#999;stroke-dasharray:4 3}}.trained{{fill:#2a6fdb}}"
    ".random{{fill:#fff;stroke:#c2571a;stroke-width:1.8}}</style>"
).format()


_FILE = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}">{2}'
    '<rect width="{0}" height="{1}" fill="#fff"/>\n{3}\n</svg>\n'
)

Range = tuple[float, float]
_LOSSES, _CELLS = (0.0, 0.8), (-0.6, 0.6)


class Panel:
    """A square with two axes of one range, as parts of an SVG."""

    def __init__(self, left: float, title: str, x_label: str, y_label: str, both: Range):
        self.left, self.range = left, both
        bottom = _TOP + _SIDE
        self.parts = [_TEXT.format(left, _TOP - 14, "start", "title", title)]
        for step in range(5):
            number = both[0] + step * (both[1] - both[0]) / 4
            x, y = self.x(number), self.y(number)
            self.parts += [_LINE.format(x, _TOP, x, bottom, "grid"), _LINE.format(left, y, left + _SIDE, y, "grid")]
            self.parts.append(_TEXT.format(x, bottom + 18, "middle", "", format_number(round(number, 3))))
            self.parts.append(_TEXT.format(left - 8, y + 4, "end", "", format_number(round(number, 3))))
        self.parts += [
            _LINE.format(left, bottom, left + _SIDE, bottom, "axis"),
            _LINE.format(left, _TOP, left, bottom, "axis"),
        ]
        self.parts.append(_TEXT.format(left + _SIDE / 2, bottom + 38, "middle", "", x_label))
        middle = _TOP + _SIDE / 2
        label = Markup('<g transform="translate({:.1f} {:.1f}) rotate(-90)">{}</g>')
        self.parts.append(label.format(left - 46, middle, _TEXT.format(0, 0, "middle", "", y_label)))

    def x(self, number: float) -> float:
        """Where a number lies from left to right."""
        low, high = self.range
        return self.left + (number - low) / (high - low) * _SIDE

    def y(self, number: float) -> float:
        """Where a number lies from top to bottom."""
        low, high = self.range
        return _TOP + _SIDE - (number - low) / (high - low) * _SIDE

    def line(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A dashed line."""
        self.parts.append(_LINE.format(self.x(start[0]), self.y(start[1]), self.x(end[0]), self.y(end[1]), "equal"))

    def dot(self, x: float, y: float, kind: str, name: str, label: str = "") -> None:
        """A dot with its name beside it, if there is room for one."""
        self.parts.append(_DOT.format(self.x(x), self.y(y), kind, name))
        if label:
            self.parts.append(_TEXT.format(self.x(x) + 7, self.y(y) - 5, "start", "name", label))


def lost(numbers: Numbers, network: str, weights: str, reading: str = "aligned") -> float | None:
    """Share of class-mean k-NN that goes when the surroundings change."""
    own, other = (value(numbers, network, weights, reading, f"class mean, {name}") for name in SITUATIONS[:2])
    return None if not own or other is None else 1 - other / own


def draw(rows: Sequence[dict[str, Any]]) -> str:
    """The figure: leak against what is lost, and where cells lie against where they look."""
    numbers = index_rows(rows)
    first = Panel(
        _LEFT, "What leaks, and what is lost", "context leak", "share of k-NN lost to other surroundings", _LOSSES
    )
    for weights in ("trained",):
        for network in names(numbers, weights):
            leak, share = value(numbers, network, weights, "aligned", "leak"), lost(numbers, network, weights)
            if leak is not None and share is not None:
                first.dot(leak, share, weights, network, network.replace("efficientnet-", "").split("-half")[0])
    right = _LEFT + _SIDE + _GAP
    second = Panel(
        right, "Where cells lie, and where they look", "by the operations, in cells", "by gradients, in cells", _CELLS
    )
    second.line((_CELLS[0], _CELLS[0]), (_CELLS[1], _CELLS[1]))
    for weights in ("random", "trained"):
        for network in names(numbers, weights):
            for axis in "xy":
                known, found = (value(numbers, network, weights, r, f"offset {axis}") for r in ("known", "measured"))
                if known is not None and found is not None:
                    second.dot(known, found, weights, f"{network}, {weights}, {axis}")
    width, height = right + _SIDE + 40, _TOP + _SIDE + 78
    key = []
    for number, kind in enumerate(("trained", "random")):
        left = _LEFT + 90 * number
        key += [_DOT.format(left, height - 14, kind, kind), _TEXT.format(left + 10, height - 10, "start", "", kind)]
    body = Markup("\n").join([*first.parts, *second.parts, *key])
    return str(_FILE.format(width, height, _STYLE, body))
