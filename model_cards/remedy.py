"""What post-training did to real networks: tables and the drawing, from what `python -m benchmarks.remedy` wrote.

Where a page says `<!-- remedy NAME -->`, up to `<!-- end of NAME -->`, stands a table of that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from model_cards.tables import cell, code, markdown_table

PAGES = (Path("README.md"), *(Path("docs") / name for name in ("training.md", "evidence.md", "evidence_tables.md")))
FIGURE = Path("docs") / "figures" / "remedy.svg"
RESULTS = "remedy.json"
SITUATIONS = ("as is", "other surroundings", "moved")
FRONT = {**{f"class mean, {name}": name for name in SITUATIONS}, "leak": "context leak", "place": "place, R²"}
CHOICE = "choice: "
"""How the names of entries begin that are one choice, one seed, fewer steps."""

DOSE = "dose: "
"""How the names of entries begin that saw fewer pictures, or trained for fewer steps, with every seed."""

Entries = dict[str, dict[str, Any]]
"""What `benchmarks.remedy` wrote, by name."""


def _gains(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {gain["name"]: gain for gain in entry["gains"]}


def _networks(entries: Entries) -> Entries:
    return {name: entry for name, entry in entries.items() if not name.startswith((CHOICE, DOSE))}


def _is_told(gain: dict[str, Any]) -> bool:
    """Whether the interval of the change leaves zero out."""
    return gain["low"] is not None and not gain["low"] <= 0 <= gain["high"]


def _change(gain: dict[str, Any]) -> str:
    change = f"{fmean(gain['after']) - gain['start']:+.3f}"
    change = f"**{change}**" if _is_told(gain) else change
    return change if gain["low"] is None else f"{change} ({gain['low']:+.3f} to {gain['high']:+.3f})"


def front(entries: Entries) -> str:
    """A line per network: before and after."""
    lines = []
    for name, entry in _networks(entries).items():
        gains = _gains(entry)
        pairs = ((gain["start"], fmean(gain["after"])) for gain in (gains[key] for key in FRONT))
        lines.append((cell(name), *(f"{start:.3f} → {after:.3f}" for start, after in pairs)))
    return markdown_table(("network", *FRONT.values()), lines)


def gains(entries: Entries) -> str:
    """Every number of every network, with the interval of the change."""
    lines = []
    for name, entry in _networks(entries).items():
        for number, gain in _gains(entry).items():
            seeds = ", ".join(f"{value:.3f}" for value in gain["after"])
            ratio = f"{fmean(gain['after']) / gain['start']:.2f}" if gain["start"] > 0.005 else ""
            lines.append((cell(name), number, f"{gain['start']:.3f}", seeds, _change(gain), ratio))
    return markdown_table(("network", "number", "start", "after, by seed", "change (95 %)", "ratio"), lines)


def choices(entries: Entries) -> str:
    """A line per choice that was tried."""
    numbers = [
        *(f"{kind}, {name}" for kind in ("class mean", "micro") for name in SITUATIONS),
        "whole pictures",
        "leak",
    ]
    chosen = {name.removeprefix(CHOICE): entry for name, entry in entries.items() if name.startswith(CHOICE)}
    if not chosen:
        return markdown_table(("choice", *numbers), [])
    first = _gains(next(iter(chosen.values())))
    lines = [("the start", *(f"{first[number]['start']:.3f}" for number in numbers))]
    for name, entry in chosen.items():
        lines.append((cell(name), *(f"{_gains(entry)[number]['after'][0]:.3f}" for number in numbers)))
    return markdown_table(("choice", *numbers), lines)


def doses(entries: Entries) -> str:
    """A line per amount of training: the mean over seeds, and the change with its interval."""
    numbers = [*(f"class mean, {name}" for name in SITUATIONS), "whole pictures", "leak"]
    given = {name.removeprefix(DOSE): _gains(entry) for name, entry in entries.items() if name.startswith(DOSE)}
    lines = [
        (cell(name), *(f"{fmean(gain['after']):.3f}, {_change(gain)}" for gain in (gains[key] for key in numbers)))
        for name, gains in given.items()
    ]
    return markdown_table(("trained for", *numbers), lines)


def commands(entries: Entries) -> str:
    """How each entry was measured, and from which commit."""
    lines = [
        (cell(name), code(entry["command"]), entry["commit"][:8])
        for name, entry in entries.items()
        if not name.startswith(CHOICE)
    ]
    return markdown_table(("network", "command", "commit"), lines)


TABLES: dict[str, Callable[[Entries], str]] = {
    "front": front,
    "gains": gains,
    "choices": choices,
    "doses": doses,
    "commands": commands,
}


def with_tables(page: str, entries: Entries) -> str:
    """The page with what the results say between its marks."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- remedy {name} -->\n{TABLES[name](entries)}\n<!-- end of {name} -->"

    return re.sub(r"<!-- remedy (?P<name>\w+) -->.*?<!-- end of (?P=name) -->", fill, page, flags=re.DOTALL)


# -------------------------------------------------------------------------------------------------------------- figure

_LEFT, _WIDTH, _LINE, _TOP, _RIGHT = 300, 420, 24, 34, 110
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>')
_RULE = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>')
_DOT = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4.5" class="{}"><title>{}</title></circle>')
_FILE = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}"><style>'
    "text{{font:12px sans-serif;fill:#222}}.network{{font-weight:bold}}.grid{{stroke:#ddd}}.move{{stroke:#2a6fdb;"
    "stroke-width:2;stroke-opacity:.35}}.start{{fill:#fff;stroke:#222;stroke-width:1.8}}.after{{fill:#2a6fdb;"
    'fill-opacity:.75}}</style><rect width="{0}" height="{1}" fill="#fff"/>\n{2}\n</svg>\n'
)


def draw(entries: Entries) -> str:
    """An SVG: each network's k-NN in each situation, the start a ring, a dot per seed after, on one axis from 0."""
    lines = [
        (name, situation, _gains(entry)[f"class mean, {situation}"])
        for name, entry in _networks(entries).items()
        for situation in SITUATIONS
    ]
    most = max(max(gain["start"], *gain["after"]) for _, _, gain in lines)
    ticks = [step * 0.05 for step in range(int(most / 0.05) + 2)]
    bottom = _TOP + _LINE * len(lines)

    def x(value: float) -> float:
        return _LEFT + value / ticks[-1] * _WIDTH

    parts = [_TEXT.format(_LEFT, 16, "start", "", "share named right, mean over classes: ring before, dots after")]
    for tick in ticks:
        parts += [_RULE.format(x(tick), _TOP - 8, x(tick), bottom, "grid")]
        parts += [_TEXT.format(x(tick), bottom + 16, "middle", "", f"{tick:.2f}")]
    for number, (name, situation, gain) in enumerate(lines):
        y, mean = _TOP + _LINE * number + 8, fmean(gain["after"])
        if number % len(SITUATIONS) == 0:
            parts.append(_TEXT.format(8, y + 4, "start", "network", name))
        parts.append(_TEXT.format(_LEFT - 12, y + 4, "end", "", situation))
        parts.append(_RULE.format(x(gain["start"]), y, x(mean), y, "move"))
        parts.append(_DOT.format(x(gain["start"]), y, "start", f"{name}, {situation}, start: {gain['start']:.3f}"))
        for seed, value in enumerate(gain["after"]):
            parts.append(_DOT.format(x(value), y, "after", f"{name}, {situation}, seed {seed}: {value:.3f}"))
        parts.append(_TEXT.format(_LEFT + _WIDTH + _RIGHT - 8, y + 4, "end", "", f"{gain['start']:.3f} → {mean:.3f}"))
    return _FILE.format(_LEFT + _WIDTH + _RIGHT, bottom + 28, Markup("\n").join(parts))
