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


def protocols(numbers: Numbers) -> str:
    """Other protocols of the evaluation on trained and random weights."""
    measured = dict.fromkeys(metric for _, _, reading, metric in numbers if reading == "protocols")
    columns = [(network, w) for w in ("trained", "random") for network in names(numbers, w)]
    columns = [pair for pair in columns if any((*pair, "protocols", metric) in numbers for metric in measured)]
    header = ("protocol", "number", *(f"{network}, {weights}" for network, weights in columns))
    lines = []
    for metric in measured:
        protocol, _, number = metric.partition(", ")
        cells = (_written(numbers, *pair, "protocols", metric) for pair in columns)
        lines.append((f"`{protocol}`", number.replace("_", " "), *cells))
    return markdown_table(header, lines)


TABLES: dict[str, Callable[[Numbers], str]] = {
    "situations": situations,
    "readings": readings,
    "offsets": offsets,
    "protocols": protocols,
}


def with_tables(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """The page with what the results say between its marks."""
    numbers = index_rows(rows)

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- networks {name} -->\n{TABLES[name](numbers)}\n<!-- end of {name} -->"

    return re.sub(r"<!-- networks (?P<name>\w+) -->.*?<!-- end of (?P=name) -->", fill, page, flags=re.DOTALL)


# -------------------------------------------------------------------------------------------------------------- figure

_SIDE, _NAMES, _TOP, _GAP = 300, 190, 34, 110
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>')
_LINE = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>')
_DOT = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4.5" class="{}"><title>{}</title></circle>')
_STYLE = Markup(
    "<style>text{{font:12px sans-serif;fill:#222}}.name{{font-size:10.5px}}.title{{font-weight:bold;font-size:13px}}"
    ".axis{{stroke:#222}}.grid{{stroke:#ddd}}.equal{{stroke:#999;stroke-dasharray:4 3}}.trained{{fill:#2a6fdb}}"
    ".random{{fill:#fff;stroke:#c2571a;stroke-width:1.8}}.as_is{{fill:#222}}.moved{{fill:#2a6fdb}}"
    ".other_surroundings{{fill:#d2362d}}.alone{{fill:#fff;stroke:#222;stroke-width:1.8}}</style>"
).format()


_FILE = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}">{2}'
    '<rect width="{0}" height="{1}" fill="#fff"/>\n{3}\n</svg>\n'
)

Range = tuple[float, float]
_SHARES, _CELLS = (0.0, 0.32), (-0.6, 0.6)


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
            self.parts.append(_TEXT.format(x, bottom + 18, "middle", "", f"{round(number, 3):g}"))
            self.parts.append(_TEXT.format(left - 8, y + 4, "end", "", f"{round(number, 3):g}"))
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

    def dot(self, x: float, y: float, kind: str, name: str) -> None:
        """A dot that tells its name."""
        self.parts.append(_DOT.format(self.x(x), self.y(y), kind, name))


def _situations(numbers: Numbers) -> list[Markup]:
    """A line per trained network, with a dot for each situation its objects were seen in."""
    found = names(numbers, "trained")
    parts = [_TEXT.format(_NAMES, _TOP - 14, "start", "title", "What k-NN of objects is left, class mean")]
    low, high = _SHARES

    def x(number: float) -> float:
        return _NAMES + (number - low) / (high - low) * _SIDE

    for step in range(5):
        number = low + step * (high - low) / 4
        parts.append(_LINE.format(x(number), _TOP, x(number), _TOP + _SIDE, "grid"))
        parts.append(_TEXT.format(x(number), _TOP + _SIDE + 18, "middle", "", f"{round(number, 3):g}"))
    parts.append(_LINE.format(_NAMES, _TOP + _SIDE, _NAMES + _SIDE, _TOP + _SIDE, "axis"))
    for place, network in enumerate(found):
        y = _TOP + _SIDE * (place + 0.5) / len(found)
        parts.append(_TEXT.format(_NAMES - 10, y + 4, "end", "", network))
        for situation in SITUATIONS:
            share = value(numbers, network, "trained", "aligned", f"class mean, {situation}")
            if share is not None:
                kind = situation.replace(" ", "_")
                parts.append(_DOT.format(x(share), y, kind, f"{network}, {situation}: {share:.3f}"))
    return [*parts, *_key(_NAMES, SITUATIONS)]


def _key(left: float, kinds: Sequence[str]) -> list[Markup]:
    """A dot of each kind with its name, side by side."""
    parts, y = [], _TOP + _SIDE + 66
    for kind in kinds:
        parts.append(_DOT.format(left + 4, y - 4, kind.replace(" ", "_"), kind))
        parts.append(_TEXT.format(left + 14, y, "start", "", kind))
        left += 34 + 7 * len(kind)
    return parts


def draw(rows: Sequence[dict[str, Any]]) -> str:
    """The figure: what is left of k-NN in each situation, and where cells lie against where they look."""
    numbers = index_rows(rows)
    right = _NAMES + _SIDE + _GAP
    cells = Panel(
        right, "Where cells lie, and where they look", "by the operations, in cells", "by gradients, in cells", _CELLS
    )
    cells.line((_CELLS[0], _CELLS[0]), (_CELLS[1], _CELLS[1]))
    for weights in ("random", "trained"):
        for network in names(numbers, weights):
            for axis in "xy":
                known, found = (value(numbers, network, weights, r, f"offset {axis}") for r in ("known", "measured"))
                if known is not None and found is not None:
                    cells.dot(known, found, weights, f"{network}, {weights}, {axis}")
    body = Markup("\n").join([*_situations(numbers), *cells.parts, *_key(right, ("trained", "random"))])
    return str(_FILE.format(right + _SIDE + 40, _TOP + _SIDE + 84, _STYLE, body))
