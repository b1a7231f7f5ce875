"""Pieces of self-contained HTML pages: text, tiles, tables, pictures and line charts in one file without any script.

A page asks nothing of the network (its own content security policy forbids it) and follows the reader's light or dark
setting. Whatever is not `Html` is escaped: a file name or a data set's title can never become markup.

    chart = line_chart({"loss": (steps, losses)}, title="Loss", y_label="lower is better")
    text = page("My run", [("Curves", chart), ("Notes", markup("<p>Data: {}</p>", data_name))])
"""

import base64
import html
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

Points = tuple[Sequence[float], Sequence[float | None]]
"""x and y values of a series; a y that is None or not finite leaves a gap."""


MINUS, NO_NUMBER = "\N{MINUS SIGN}", "\N{EN DASH}"


class Html(str):
    """Markup that this module (or a caller who vouches for it) made; every other string is escaped."""


def escape(value: Any) -> Html:
    """A value as text of a page; `Html` stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def markup(template: str, *values: Any, **named: Any) -> Html:
    """The template, in `str.format` notation, filled with escaped values.

    Example:
        >>> markup("<b>{}</b>", "<script>")
        '<b>&lt;script&gt;</b>'
    """
    return Html(template.format(*map(escape, values), **{name: escape(value) for name, value in named.items()}))


def join(parts: Iterable[Any], separator: str = "\n") -> Html:
    """The parts, escaped, one after the other."""
    return Html(separator.join(map(escape, parts)))


def format_number(value: float | None, digits: int = 3) -> str:
    """A number for people: `digits` significant ones, thousands apart, a true minus sign, a dash for no number."""
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 9:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}e{int(exponent)}"
    elif float(value).is_integer() or size >= digits - 1:
        text = f"{value:,.0f}"
    else:
        text = f"{value:,.{max(digits - 1 - size, 0)}f}"
    return text.replace("-", MINUS)


# ------------------------------------------------------------------------------------------------------ small pieces


def stat_tile(label: str, value: str, note: str = "", tone: str = "plain") -> Html:
    """One number with its name above and what it means below.

    Args:
        label: Name of the number.
        value: The number, formatted.
        note: What to compare it with.
        tone: plain, good or bad: the colour of the edge.
    """
    if tone not in ("plain", "good", "bad"):
        raise ValueError(f"tone is {tone!r}; expected plain, good or bad.")
    return markup(
        '<div class="tile {}"><div class="label">{}</div><div class="value">{}</div><div class="note">{}</div></div>',
        tone, label, value, note,
    )  # fmt: skip


def tiles(items: Iterable[Html]) -> Html:
    """Stat tiles side by side, as many as fit."""
    return markup('<div class="tiles">{}</div>', join(items))


def charts(items: Iterable[Html]) -> Html:
    """Charts two by two, one below the other on a phone."""
    return markup('<div class="charts">{}</div>', join(items))


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """A table that scrolls sideways where it does not fit."""
    head = join((markup("<th>{}</th>", cell) for cell in header), "")
    body = join(markup("<tr>{}</tr>", join((markup("<td>{}</td>", cell) for cell in row), "")) for row in rows)
    return markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>', head, body)


def facts(items: Mapping[str, Any]) -> Html:
    """Names and values, one pair per line."""
    return markup("<dl>{}</dl>", join(markup("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in items.items()))


def code_block(text: str) -> Html:
    """Preformatted text."""
    return markup('<pre class="scroll"><code>{}</code></pre>', text)


def details(summary: str, content: Any) -> Html:
    """Content that opens on a click."""
    return markup("<details><summary>{}</summary>{}</details>", summary, content)


def message(text: Any, tone: str = "plain") -> Html:
    """A sentence in a box: something is missing, or needs attention (tone bad)."""
    return markup('<p class="message {}">{}</p>', tone, text)


def image_data_uri(image: bytes | Image.Image) -> Html:
    """A picture as a `data:` address.

    Args:
        image: The bytes of a PNG, JPEG or WebP file, or a Pillow image (which becomes a PNG).
    """
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        image = buffer.getvalue()
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
    kind = next((kind for magic, kind in kinds.items() if image.startswith(magic)), None)
    if kind is None:
        raise ValueError(f"these bytes begin with {image[:8]!r}; expected a PNG, JPEG or WebP file.")
    return Html(f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}")


def picture(image: bytes | Image.Image, alt: str, caption: Any = "") -> Html:
    """A picture with its caption; on a narrow screen it keeps a readable size and scrolls."""
    return markup(
        '<figure class="picture"><div class="scroll"><img src="{}" alt="{}"></div>'
        "<figcaption>{}</figcaption></figure>",
        image_data_uri(image), alt, caption,
    )  # fmt: skip


def bar_pair(
    before: float | None,
    after: float | None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    marks: Mapping[str, float] | None = None,
    intervals: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None),
    percent: bool = True,
) -> Html:
    """Two bars, before and after, on one axis.

    Args:
        before: First value; None if it was not measured.
        after: Second value.
        low: Left end of the axis.
        high: Right end of the axis.
        marks: Named values on the axis, such as {"coin toss": 0.5}.
        intervals: Range of uncertainty of either value, drawn as a whisker.
        percent: Write values as percentages.
    """

    def place(value: float) -> str:
        return f"{100 * min(max((value - low) / (high - low), 0.0), 1.0):.2f}%"

    def write(value: float) -> str:
        return f"{100 * value:.0f} %" if percent else format_number(value)

    lines = []
    for name, value, interval in (("before", before, intervals[0]), ("after", after, intervals[1])):
        if value is None or not math.isfinite(value):
            lines.append(markup('<div class="bar"><span>{}</span><span class="note">not measured</span></div>', name))
            continue
        parts = [markup('<i class="fill {}" style="width:{}"></i>', name, place(value))]
        text = write(value)
        if interval:
            width = f"calc({place(interval[1])} - {place(interval[0])})"
            parts.append(markup('<i class="whisker" style="left:{};width:{}"></i>', place(interval[0]), width))
            text += f" ({write(interval[0]).removesuffix(' %')} to {write(interval[1])})"
        parts += [markup('<i class="mark" style="left:{}"></i>', place(mark)) for mark in (marks or {}).values()]
        lines.append(
            markup(
                '<div class="bar"><span>{}</span><span class="groove">{}</span><b>{}</b></div>',
                name,
                join(parts, ""),
                text,
            )
        )
    labels = []
    for name, value in (marks or {}).items():
        end = "low" if value <= low else "high" if value >= high else ""
        labels.append(markup('<em class="{}" style="left:{}">{}</em>', end, place(value), name))
    axis = markup('<div class="bar axis"><span></span><span class="groove">{}</span><b></b></div>', join(labels, ""))
    return markup('<div class="bars">{}{}</div>', join(lines), axis if labels else "")


# ------------------------------------------------------------------------------------------------------------ charts

_WIDTH, _HEIGHT = 440, 236  # small on purpose: a phone shows the same drawing with text that can still be read
_RIGHT, _TOP, _BOTTOM = 14, 12, 36
_CHARACTER = 7  # width of a digit of a tick's label
_MAX_POINTS, _MAX_STRIPS = 400, 60
_SERIES_COLORS = 6
_LARGEST = 1e300  # differences of larger numbers overflow; false for NaN too


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    y_label: str = "",
    x_label: str = "step",
    references: Mapping[str, float] | None = None,
    y_range: tuple[float | None, float | None] = (None, None),
    note: str = "",
) -> Html:
    """A line chart as inline SVG with a legend that tells each series' last value; hovering tells all values at an x.

    Gaps (None, NaN, infinite) are left open, lone points are dots, a constant series is a line in the middle, and a
    chart without any value says so.

    Args:
        series: x and y values by name.
        title: What is drawn.
        y_label: Unit or meaning of y.
        x_label: Unit or meaning of x.
        references: Named horizontal lines; the axis is extended to show them.
        y_range: Ends of the y axis that must be in it; None leaves an end to the data.
        note: A sentence below the chart.
    """
    cleaned = {name: _clean(*points) for name, points in series.items()}
    present = [(x, y) for points in cleaned.values() for x, y in points if y is not None]
    head = markup("<strong>{}</strong> <span>{}</span>", title, y_label)
    if not present:
        body: Html = message("no values were logged")
    else:
        legend = join(_legend_entry(k, name, points) for k, (name, points) in enumerate(cleaned.items()))
        body = markup(
            '<div class="legend">{}</div>{}',
            legend,
            _plot(cleaned, present, references or {}, y_range, title, x_label),
        )
    return markup(
        '<figure class="chart"><figcaption>{}</figcaption>{}{}</figure>',
        head, body, markup('<p class="note">{}</p>', note) if note else "",
    )  # fmt: skip


def _clean(xs: Sequence[float], ys: Sequence[float | None]) -> list[tuple[float, float | None]]:
    if len(xs) != len(ys):
        raise ValueError(f"a series has {len(xs)} x values and {len(ys)} y values; expected as many of either.")
    points = [
        (float(x), float(y) if y is not None and abs(y) < _LARGEST else None) for x, y in zip(xs, ys, strict=True)
    ]
    return [(x, y) for x, y in points if math.isfinite(x)]


def _legend_entry(number: int, name: str, points: list[tuple[float, float | None]]) -> Html:
    last = next((y for _, y in reversed(points) if y is not None), None)
    return markup(
        '<span><i class="key s{}"></i>{} <b>{}</b></span>', number % _SERIES_COLORS, name, format_number(last)
    )


@dataclass(frozen=True)
class _Frame:
    """The rectangle that values are drawn in, in units of the drawing, and the values at its edges."""

    left: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    right: float = _WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _HEIGHT - _BOTTOM

    def x(self, value: float) -> float:
        return round(self.left + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top), 1)


def _plot(
    series: dict[str, list[tuple[float, float | None]]],
    present: list[tuple[float, float]],
    references: Mapping[str, float],
    y_range: tuple[float | None, float | None],
    title: str,
    x_label: str,
) -> Html:
    x_low, x_high = min(x for x, _ in present), max(x for x, _ in present)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    shown = [y for _, y in present] + list(references.values()) + [end for end in y_range if end is not None]
    low, high = min(shown), max(shown)
    if low == high == y_range[0]:  # an end that was asked for stays one
        high += abs(low) or 1.0
    y_ticks = _ticks(low, high, 4)
    y_labels = _tick_labels(y_ticks)
    frame = _Frame(16 + _CHARACTER * max(map(len, y_labels)), x_low, x_high, y_ticks[0], y_ticks[-1])

    parts: list[Html] = []
    for tick, label in zip(y_ticks, y_labels, strict=True):
        y = frame.y(tick)
        parts.append(markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>', frame.left, frame.right, y=y))
        parts.append(_label("tick", frame.left - 7, y + 4, label, "end"))
    x_ticks = [tick for tick in _ticks(x_low, x_high, 5) if x_low <= tick <= x_high]
    for tick, label in zip(x_ticks, _tick_labels(x_ticks), strict=True):
        x = frame.x(tick)
        parts.append(
            markup('<line class="grid" x1="{x}" x2="{x}" y1="{}" y2="{}"/>', frame.bottom, frame.bottom + 4, x=x)
        )
        # The last label would stick out of the drawing if it were centred.
        parts.append(_label("tick", min(x, _WIDTH - _CHARACTER * len(label) / 2), frame.bottom + 17, label, "middle"))
    parts.append(_label("tick", frame.right, frame.bottom + 31, x_label, "end"))
    for value in references.values():
        y = frame.y(value)
        parts.append(
            markup('<line class="reference" x1="{}" x2="{}" y1="{y}" y2="{y}"/>', frame.left, frame.right, y=y)
        )
    parts += [_draw_series(number % _SERIES_COLORS, points, frame) for number, points in enumerate(series.values())]
    segments = [ends for points in series.values() for ends in _segments(points, frame)]
    parts += [
        _draw_reference(name, value, [*segments, *_levels(references, name, frame)], frame)
        for name, value in references.items()
    ]
    parts.append(_hover_strips(series, x_label, frame))
    return markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>',
        _WIDTH, _HEIGHT, f"Line chart: {title}", join(parts),
    )  # fmt: skip


def _label(kind: str, x: float, y: float, text: str, anchor: str) -> Html:
    return markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>', kind, x, y, anchor, text)


Segment = tuple[float, float, float, float]
"""A piece of a drawn line: x and y of its left end, x and y of its right end."""


def _segments(points: list[tuple[float, float | None]], frame: _Frame) -> list[Segment]:
    """What a series draws; a lone point is a segment of no length."""
    drawn = [(frame.x(x), frame.y(y)) for x, y in points if y is not None]
    return [(*a, *b) for a, b in itertools.pairwise(drawn)] if len(drawn) > 1 else [(*a, *a) for a in drawn]


def _levels(references: Mapping[str, float], but: str, frame: _Frame) -> list[Segment]:
    """The horizontal lines of the other references."""
    return [(frame.left, frame.y(v), frame.right, frame.y(v)) for name, v in references.items() if name != but]


def _distance(segment: Segment, left: float, right: float, y: float) -> float:
    """How far above or below a height a segment stays between two x; infinite where it is not there."""
    x1, y1, x2, y2 = segment
    start, end = max(x1, left), min(x2, right)
    if start > end:
        return math.inf
    slope = (y2 - y1) / (x2 - x1) if x2 > x1 else 0.0
    ends = [y1 + slope * (x - x1) - y for x in (start, end)]
    return 0.0 if min(ends) <= 0 <= max(ends) else min(map(abs, ends))


def _draw_reference(name: str, value: float, drawn: list[Segment], frame: _Frame) -> Html:
    """The name of a horizontal line, above or below either end of it: where the lines stay clear of it most."""
    y, width = frame.y(value), _CHARACTER * len(name)
    places = []
    for dy in (-5, 13):
        if frame.top <= y + dy - 8 and y + dy <= frame.bottom:
            for x, anchor, left in (
                (frame.right - 3, "end", frame.right - 3 - width),
                (frame.left + 4, "start", frame.left + 4),
            ):
                middle = y + dy - 4  # of letters that stand on y + dy
                clear = min((_distance(segment, left, left + width, middle) for segment in drawn), default=math.inf)
                places.append((min(clear, 3.0 * _CHARACTER), x, y + dy, anchor))
    _, x, base, anchor = max(places, key=lambda place: place[0])  # the first of equals: above, on the right
    return _label("reference", x, base, name, anchor)


def _draw_series(number: int, points: list[tuple[float, float | None]], frame: _Frame) -> Html:
    """The line of a series, broken at its gaps; points without a neighbour are dots."""
    runs: list[list[str]] = [[]]
    for x, y in _thin(points):
        if y is None:
            runs.append([])
        else:
            runs[-1].append(f"{frame.x(x)} {frame.y(y)}")
    path = "".join("M" + "L".join(run) for run in runs if len(run) > 1)
    parts = [markup('<path class="line s{}" d="{}"/>', number, path)] if path else []
    for run in runs:
        if len(run) == 1:
            parts.append(markup('<circle class="dot s{}" cx="{}" cy="{}" r="3"/>', number, *run[0].split()))
    return join(parts, "")


def _thin(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """About `_MAX_POINTS` points at most: the least, the greatest and a gap of each stretch, so no spike is lost."""
    if len(points) <= _MAX_POINTS:
        return points
    length = math.ceil(2 * len(points) / _MAX_POINTS)
    kept: list[tuple[float, float | None]] = []
    for start in range(0, len(points), length):
        stretch = list(enumerate(points[start : start + length]))
        values = [(y, k) for k, (_, y) in stretch if y is not None]
        numbers = {min(values)[1], max(values)[1]} if values else set()
        numbers |= set([k for k, (_, y) in stretch if y is None][:1])
        kept += [points[start + k] for k in sorted(numbers)]
    return kept


def _hover_strips(series: dict[str, list[tuple[float, float | None]]], x_label: str, frame: _Frame) -> Html:
    """Invisible columns that show a line and, as a tooltip, every series' value at their x."""
    xs = sorted({x for points in series.values() for x, _ in points if frame.x_low <= x <= frame.x_high})
    if len(xs) > _MAX_STRIPS:
        xs = [xs[round(k * (len(xs) - 1) / (_MAX_STRIPS - 1))] for k in range(_MAX_STRIPS)]
    values = {name: dict(points) for name, points in series.items()}
    centers = [frame.x(x) for x in xs]
    edges = [frame.left, *((a + b) / 2 for a, b in itertools.pairwise(centers)), frame.right]
    strips = []
    for x, center, (left, right) in zip(xs, centers, itertools.pairwise(edges), strict=True):
        lines, dots = [f"{x_label} {format_number(x, 6)}"], []
        for number, name in enumerate(series):
            y = values[name].get(x)
            lines.append(f"{name}: {format_number(y, 4)}")
            if y is not None:
                color = number % _SERIES_COLORS
                dots.append(markup('<circle class="dot s{}" cx="{}" cy="{}" r="3.5"/>', color, center, frame.y(y)))
        line = markup('<line x1="{x}" x2="{x}" y1="{}" y2="{}"/>', frame.top, frame.bottom, x=center)
        area = markup(
            '<rect x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>',
            left, frame.top, round(right - left, 1), frame.bottom - frame.top, "\n".join(lines),
        )  # fmt: skip
        strips.append(markup('<g class="strip">{}{}{}</g>', line, join(dots, ""), area))
    return join(strips, "")


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
    for decimals in range(8):
        labels = [f"{tick:,.{decimals}f}" for tick in ticks]
        if all(abs(round(tick, decimals) - tick) <= 1e-6 * largest for tick in ticks):
            break
    return [("0" if float(label.replace(",", "")) == 0 else label).replace("-", MINUS) for label in labels]


# -------------------------------------------------------------------------------------------------------------- page


def page(title: str, sections: Iterable[tuple[str, Any]], *, lead: Any = "", footer: Any = "") -> str:
    """A whole HTML document.

    Args:
        title: Heading and window title.
        sections: Heading and content of each part.
        lead: What to read first, below the title.
        footer: A last line.
    """
    body = join(markup("<section><h2>{}</h2>\n{}</section>", heading, content) for heading, content in sections)
    return markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">\n"
        "<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n<header><h1>{title}</h1>\n{lead}</header>\n"
        "{body}\n<footer>{footer}</footer>\n</main>\n</body>\n</html>\n",
        title=title, style=Html(_STYLE), lead=lead, body=body, footer=footer,
    )  # fmt: skip


_STYLE = """
:root { --paper: #f6f7f9; --card: #ffffff; --ink: #1c2330; --muted: #5c6676; --line: #e2e6ed; --groove: #eceff4;
  --accent: #2563eb; --good: #15803d; --bad: #c2410c;
  --c0: #2563eb; --c1: #d9730d; --c2: #0d9488; --c3: #9333ea; --c4: #be185d; --c5: #64748b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #11141a; --card: #191e27; --ink: #e7eaf0; --muted: #9aa5b6; --line: #2b323f; --groove: #252c38;
    --accent: #7aabff; --good: #4ade80; --bad: #fb923c;
    --c0: #7aabff; --c1: #f5a65b; --c2: #4fd1c0; --c3: #c39bfb; --c4: #f38bb8; --c5: #a3adbd; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px 32px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; letter-spacing: -0.01em; margin: 0 0 12px; }
section { margin-top: 44px; }
p { margin: 0 0 12px; max-width: 76ch; overflow-wrap: anywhere; }
header p { font-size: 17px; }
a { color: var(--accent); }
.status { color: var(--muted); font-size: 14px; margin-bottom: 10px; }
.note, figcaption, footer { color: var(--muted); font-size: 14px; line-height: 1.5; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(212px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-left-width: 4px; border-radius: 10px;
  padding: 12px 14px; }
.tile.good { border-left-color: var(--good); }
.tile.bad { border-left-color: var(--bad); }
.tile .label { color: var(--muted); font-size: 13px; }
.tile .value { font-size: 24px; font-weight: 650; line-height: 1.3; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile .note { font-size: 13px; line-height: 1.4; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 14px; }
figure { margin: 0; }
.chart, .picture, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; }
.chart { max-width: 640px; }
.chart figcaption strong { color: var(--ink); font-size: 15px; margin-right: 4px; }
.chart svg { display: block; width: 100%; height: auto; margin-top: 4px; }
.chart .note { margin: 6px 0 0; font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 16px; font-size: 13px; margin-top: 2px; }
.legend b { font-variant-numeric: tabular-nums; }
.key { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: 4px;
  background: var(--color); }
.s0 { --color: var(--c0); } .s1 { --color: var(--c1); } .s2 { --color: var(--c2); }
.s3 { --color: var(--c3); } .s4 { --color: var(--c4); } .s5 { --color: var(--c5); }
svg text { font-family: inherit; font-variant-numeric: tabular-nums; }
.tick { fill: var(--muted); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; }
line.reference { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 4 4; }
text.reference { fill: var(--muted); font-size: 12px; paint-order: stroke; stroke: var(--card); stroke-width: 4px;
  stroke-linejoin: round; }
.line { fill: none; stroke: var(--color); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dot { fill: var(--color); }
.strip line { stroke: var(--muted); stroke-width: 1; opacity: 0; }
.strip .dot { opacity: 0; }
.strip rect { fill: transparent; }
.strip:hover line { opacity: 0.5; }
.strip:hover .dot { opacity: 1; }
.scroll { overflow-x: auto; }
.picture img { display: block; width: 100%; min-width: 620px; height: auto; border-radius: 6px; background: #ffffff; }
.picture figcaption { margin-top: 10px; }
.picture figcaption p:last-child { margin-bottom: 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; line-height: 1.45; }
th { text-align: left; font-weight: 600; color: var(--muted); }
th, td { padding: 6px 16px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; min-width: 7em; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: 13.5px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  margin: 0 0 12px;
  line-height: 1.55; }
dl { display: grid; grid-template-columns: minmax(9em, max-content) 1fr; gap: 4px 20px; margin: 0 0 12px;
  font-size: 14.5px; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--accent); margin-bottom: 10px; }
.message { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--muted);
  border-radius: 10px;
  padding: 10px 14px; }
.message.bad { border-left-color: var(--bad); }
.chart .message { border: 0; padding: 40px 0; text-align: center; color: var(--muted); max-width: none; }
.bars { margin: 4px 0 16px; max-width: 720px; }
.bar { display: grid; grid-template-columns: 4em 1fr 11em; gap: 12px; align-items: center; font-size: 14.5px;
  min-height: 28px; }
.bar b { font-variant-numeric: tabular-nums; }
.groove { position: relative; height: 14px; border-radius: 4px; background: var(--groove); }
.groove i { position: absolute; top: 0; bottom: 0; }
.fill { left: 0; border-radius: 4px; background: var(--c0); }
.fill.before { background: var(--c5); }
.whisker { top: 6px !important; bottom: 6px !important; background: var(--ink); opacity: 0.75; }
.mark { width: 0; border-left: 1.5px dashed var(--muted); top: -5px !important; bottom: -5px !important; }
.bars.wide { max-width: none; }
.bars.wide .bar { grid-template-columns: minmax(7em, 13em) 1fr 12em; overflow-wrap: anywhere; line-height: 1.3; }
.control { width: 9px; height: 9px; margin-left: -4.5px; top: 2.5px !important; bottom: auto !important;
  background: var(--card); border: 2px solid var(--ink); border-radius: 50%; }
.control.square { border-radius: 0; transform: rotate(45deg) scale(0.85); }
.keys { display: flex; flex-wrap: wrap; gap: 2px 22px; font-size: 13.5px; color: var(--muted); margin-bottom: 6px; }
.keys .control { position: relative; display: inline-block; margin: 0 7px 0 0; top: 0 !important; }
.axis { min-height: 18px; }
.axis .groove { background: none; height: 16px; }
.axis em { position: absolute; transform: translateX(-50%); font-style: normal; font-size: 12.5px; color: var(--muted);
  white-space: nowrap; }
.axis em.low { transform: none; }
.axis em.high { transform: translateX(-100%); }
td code { white-space: nowrap; }
.scroll + .picture, .scroll + .message, .scroll + p, .picture + .charts, .charts + .charts, .charts + p,
.charts + .picture { margin-top: 18px; }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--line); }
@media (max-width: 560px) {
  main { padding: 26px 14px 24px; }
  h1 { font-size: 25px; }
  header p { font-size: 16px; }
  section { margin-top: 34px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; }
  .tile { padding: 10px 11px; }
  .tile .value { font-size: 20px; }
  .chart, .picture { padding: 12px 10px; }
  .picture .scroll::after { content: "scroll sideways for the rest of the picture"; position: sticky; left: 0;
    display: block; width: max-content; padding-top: 6px; font-size: 12.5px; color: var(--muted); }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
  .bar { grid-template-columns: 3.4em 1fr; gap: 2px 8px; }
  .bar b { grid-column: 2; }
  .bars.wide .bar { grid-template-columns: 1fr; gap: 3px; margin-bottom: 12px; }
  .bars.wide .bar b { grid-column: 1; font-weight: 600; }
}
"""
