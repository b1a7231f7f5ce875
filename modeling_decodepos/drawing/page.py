"""Pieces of self-contained HTML pages: text, tiles, tables, pictures and line charts in one file.

A page loads nothing from the network and runs no script but the one it was given (its own content security policy
forbids all else), and follows the reader's light or dark setting. Whatever is not `markupsafe.Markup` is escaped: no
file name or title of a data set becomes markup.

    chart = line_chart({"loss": (steps, losses)}, title="Loss", y_label="lower is better")
    text = page("My run", [("Curves", chart), ("Notes", Markup("<p>Data: {}</p>").format(data_name))])
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

Points = tuple[Sequence[float], Sequence[float | None]]
"""x and y values of a series; a y that is None or not finite leaves a gap."""

MINUS, NO_NUMBER, PERCENT = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NO-BREAK SPACE}%"
TONES = ("plain", "good", "bad")
"""Colours of the edge of a tile or a message."""


_HERE = Path(__file__).parent
_HOW: dict[str, Any] = {
    "autoescape": select_autoescape(["html.jinja"]),  # the default writes markup as it is
    "undefined": StrictUndefined,  # the default writes nothing where a name is unknown, and says nothing
    "trim_blocks": True,
    "lstrip_blocks": True,
}
_PIECES: Any = Environment(loader=FileSystemLoader(_HERE), **_HOW).get_template("page_pieces.html.jinja").module


def page(
    title: str,
    sections: Iterable[tuple[str, Any]],
    *,
    lead: Any = "",
    footer: Any = "",
    contents: bool = False,
    script: Markup | None = None,
) -> str:
    """A whole HTML document: a title, what to read first, headings with their content, and a last line.

    With `contents`, links to the headings stand before them. The script, a program of ours, is the only one to run.
    """
    values = {"title": title, "sections": list(sections), "lead": lead, "footer": footer, "contents": contents}
    return render(_HERE / "page.html.jinja", **values, script=script)


def render(template: Path, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """The document of a jinja2 template; where its name ends in `.html.jinja`, every value is escaped.

    The functions of this module that make pieces are known in it, and a page extends `page.html.jinja`.
    """
    environment = Environment(loader=FileSystemLoader([template.parent, _HERE]), **_HOW)
    environment.filters |= {"digest": _digest, **(filters or {})}
    environment.globals |= {"script": None} | {
        piece.__name__: piece for piece in (tiles, charts, table, facts, code_block, details, message, picture, bars)
    }
    return environment.get_template(template.name).render(values)


def _digest(script: str) -> str:
    """By which a content security policy knows a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def format_number(value: float | None, digits: int = 3) -> str:
    """A number for people: `digits` significant ones, thousands apart, a true minus sign, a dash for no number."""
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 9:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    elif float(value).is_integer() or size >= digits - 1:
        text = f"{value:,.0f}"
    else:
        text = f"{value:,.{max(digits - 1 - size, 0)}f}"
    return text.replace("-", MINUS)


# ------------------------------------------------------------------------------------------------------ small pieces


def stat_tile(label: str, value: str, note: str = "", tone: str = "plain") -> Markup:
    """One number with its name above and what it means below; the tone colours the edge."""
    template = (
        '<div class="tile {}"><div class="label">{}</div><div class="value">{}</div><div class="note">{}</div></div>'
    )
    return Markup(template).format(_check_tone(tone), label, value, note)


def tiles(items: Iterable[Markup]) -> Markup:
    """Stat tiles side by side, as many as fit."""
    return Markup('<div class="tiles">{}</div>').format(Markup("\n").join(items))


def charts(items: Iterable[Markup]) -> Markup:
    """Charts two by two, one below the other on a phone."""
    return Markup('<div class="charts">{}</div>').format(Markup("\n").join(items))


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Markup:
    """A table that scrolls sideways where it does not fit."""
    return _PIECES.table(header, rows)


def facts(items: Mapping[str, Any]) -> Markup:
    """Names and values, one pair per line."""
    return _PIECES.facts(items)


def code_block(text: str) -> Markup:
    """Preformatted text."""
    return Markup('<pre class="scroll"><code>{}</code></pre>').format(text)


def details(summary: str, content: Any) -> Markup:
    """Content that opens on a click."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, content)


def message(text: Any, tone: str = "plain") -> Markup:
    """A sentence in a box: something is missing, or needs attention (tone bad)."""
    return Markup('<p class="message {}">{}</p>').format(_check_tone(tone), text)


def _check_tone(tone: str) -> str:
    if tone not in TONES:
        raise ValueError(f"tone is {tone!r}; expected one of {', '.join(TONES)}.")
    return tone


def image_data_uri(image: bytes | Image.Image, quality: int | None = None) -> Markup:
    """A picture as a `data:` address, from a Pillow image or the bytes of a PNG, JPEG or WebP file.

    A Pillow image becomes a JPEG of the given quality; without one a PNG, which keeps every pixel.
    """
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        how: dict[str, Any] = {"format": "JPEG", "quality": quality} if quality else {"format": "PNG"}
        image.save(buffer, optimize=True, **how)
        image = buffer.getvalue()
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
    kind = next((kind for magic, kind in kinds.items() if image.startswith(magic)), None)
    if kind is None:
        raise ValueError(f"these bytes begin with {image[:8]!r}; expected a PNG, JPEG or WebP file.")
    return Markup(f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}")


def picture(image: bytes | Image.Image, alt: str, caption: Any = "", quality: int | None = None) -> Markup:
    """A picture with its caption; on a narrow screen it keeps a readable size and scrolls."""
    return _PIECES.picture(image_data_uri(image, quality), alt, caption)


@dataclass(frozen=True)
class Bar:
    """A value of an axis that begins at 0, between its name and a text."""

    name: str
    value: float | None  # None where there is nothing to draw
    text: str
    interval: tuple[float, float] | None = None  # ends of a whisker
    # Class and place of other values: mark is a dashed line.
    marks: Sequence[tuple[str, float]] = ()
    color: int = 0  # number of the colour of a series


def bars(items: Iterable[Bar], high: float = 1.0, axis: Mapping[str, float] | None = None) -> Markup:
    """Bars on one axis from 0 to `high`, with named values of the axis below them."""

    def place(value: float) -> float:
        return round(100 * min(max(value / high, 0.0), 1.0), 2)

    return _PIECES.bars(list(items), place, dict(axis or {}))


# ------------------------------------------------------------------------------------------------------------ charts

_WIDTH, _HEIGHT = 440, 236  # small on purpose: a phone shows the same drawing with text that can still be read
_RIGHT, _TOP, _BOTTOM = _WIDTH - 14, 12, _HEIGHT - 36
_CHARACTER = 7  # width of a digit of a tick's label
_MAX_POINTS, _MAX_NAMED = 400, 60  # of a series: that are drawn, and that tell their value
_SERIES_COLORS = 6
_LARGEST = 1e300  # differences of larger numbers overflow; false for NaN too

Series = list[tuple[float, float | None]]
Control = tuple[str, str, str, Points]
"""Of a chart: the series that a line stands beside, its own name, its style (dashed or dotted), its points."""


@dataclass(frozen=True)
class Line:
    """A line of a chart, the number of its colour, and how it is drawn."""

    name: str
    points: Series
    color: int
    style: str = ""


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    y_label: str = "",
    x_label: str = "step",
    references: Mapping[str, float] | None = None,
    controls: Iterable[Control] = (),
    y_range: tuple[float | None, float | None] = (None, None),
    note: str = "",
) -> Markup:
    """A line chart as inline SVG with a legend that tells each series' last value; points tell theirs when hovered.

    Gaps (None, NaN, infinite) are left open, lone points are dots, a constant series is a line in the middle, and a
    chart without any value says so. The axis is extended to show `references`, horizontal lines by name, and the ends
    in `y_range`; None leaves an end to the data. `controls` are drawn behind, each in the colour of its series.
    """
    numbers = {name: number for number, name in enumerate(series)}
    lines = [Line(name, _clean(*series[name]), number % _SERIES_COLORS) for name, number in numbers.items()]
    behind = [
        Line(f"{of}, {name}", _clean(*points), numbers[of] % _SERIES_COLORS, style)
        for of, name, style, points in controls
    ]
    references = references or {}
    last = {line.name: next((y for _, y in reversed(line.points) if y is not None), None) for line in lines}
    return _PIECES.chart(
        title,
        y_label,
        note,
        legend=[
            *((f"key s{line.color}", line.name, format_number(last[line.name])) for line in lines),
            *(("key dashed", name, format_number(value)) for name, value in references.items()),
        ],
        plot=_plot(behind + lines, references, y_range, x_label)
        if any(y is not None for y in last.values())
        else None,
    )


def _clean(xs: Sequence[float], ys: Sequence[float | None]) -> Series:
    if len(xs) != len(ys):
        raise ValueError(f"a series has {len(xs)} x values and {len(ys)} y values; expected as many of either.")
    points = [
        (float(x), float(y) if y is not None and abs(y) < _LARGEST else None) for x, y in zip(xs, ys, strict=True)
    ]
    return [(x, y) for x, y in points if math.isfinite(x)]


def _plot(
    lines: Sequence[Line],
    references: Mapping[str, float],
    y_range: tuple[float | None, float | None],
    x_label: str,
) -> dict[str, Any]:
    """What the template draws, in units of the drawing."""
    present = [(x, y) for line in lines for x, y in line.points if y is not None]
    x_low, x_high = min(x for x, _ in present), max(x for x, _ in present)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    shown = [y for _, y in present] + list(references.values()) + [end for end in y_range if end is not None]
    low, high = min(shown), max(shown)
    if low == high == y_range[0]:  # an end that was asked for stays one
        high += abs(low) or 1.0
    y_ticks = _ticks(low, high, 4)
    x_ticks = [tick for tick in _ticks(x_low, x_high, 5) if x_low <= tick <= x_high]
    y_labels, x_labels = _tick_labels(y_ticks), _tick_labels(x_ticks)
    left = 16 + _CHARACTER * max(map(len, y_labels))

    def place_x(x: float) -> float:
        return round(left + (x - x_low) / (x_high - x_low) * (_RIGHT - left), 1)

    def place_y(y: float) -> float:
        return round(_BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (_BOTTOM - _TOP), 1)

    paths, dots, named = [], [], []
    for line in lines:
        path, look = "", f"s{line.color} {line.style}".rstrip()
        for _, stretch in itertools.groupby(_thin(line.points), lambda point: point[1] is None):
            points = [(place_x(x), place_y(y)) for x, y in stretch if y is not None]
            path += "M" + "L".join(f"{x} {y}" for x, y in points) if len(points) > 1 else ""
            dots += [(look, *points[0])] if len(points) == 1 else []
        paths += [(look, path)] if path else []
        for x, y in line.points[:: math.ceil(len(line.points) / _MAX_NAMED) or 1]:
            if y is not None:
                text = f"{x_label} {format_number(x, 6)}\n{line.name}: {format_number(y, 4)}"
                named.append((look, place_x(x), place_y(y), text))
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "frame": {"left": left, "right": _RIGHT, "bottom": _BOTTOM},
        "y_ticks": [(place_y(tick), label) for tick, label in zip(y_ticks, y_labels, strict=True)],
        # The last label would stick out of the drawing if it were centred.
        "x_ticks": [
            (place_x(tick), min(place_x(tick), _WIDTH - _CHARACTER * len(label) / 2), label)
            for tick, label in zip(x_ticks, x_labels, strict=True)
        ],
        "x_label": x_label,
        "references": [place_y(value) for value in references.values()],
        "paths": paths,
        "dots": dots,
        "named": named,
    }


def _thin(points: Series) -> Series:
    """About `_MAX_POINTS` points at most: the least, the greatest and a gap of each stretch, so no spike is lost."""
    length = math.ceil(2 * len(points) / _MAX_POINTS)
    if length <= 2:
        return points
    kept: set[int] = set()
    for start in range(0, len(points), length):
        stretch = range(start, min(start + length, len(points)))
        values = [(y, k) for k in stretch if (y := points[k][1]) is not None]
        kept |= {min(values)[1], max(values)[1]} if values else set()
        kept |= set([k for k in stretch if points[k][1] is None][:1])
    return [points[k] for k in sorted(kept)]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values, 1, 2, 2.5 or 5 times a power of ten apart, that span low to high."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # constant: put it in the middle
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [k * step for k in range(first, last + 1)]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with as many decimals as tell neighbours apart, and no more."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if 0 < largest < 1e-3 or largest >= 1e6:
        return [format_number(tick, 2) for tick in ticks]
    exact = (n for n in range(7) if all(abs(round(tick, n) - tick) <= 1e-6 * largest for tick in ticks))
    decimals = next(exact, 7)
    return [f"{tick:,.{decimals}f}".replace("-", MINUS) if tick else "0" for tick in ticks]
