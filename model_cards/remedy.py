"""What post-training did to real networks: tables and the drawing, from what `python -m benchmarks.remedy` wrote.

Where a page says `<!-- remedy NAME -->`, up to `<!-- end of NAME -->`, stands a table of that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from model_cards.comparison import Cell
from model_cards.dot_plots import dot_plots
from model_cards.tables import cell, code, markdown_table

PAGES = (Path("README.md"), Path("docs") / "training.md", Path("docs") / "evidence.md")
FIGURE = Path("docs") / "figures" / "remedy.svg"
RESULTS = "remedy.json"
SITUATIONS = ("as is", "other surroundings", "moved")
FRONT = {**{f"class mean, {name}": name for name in SITUATIONS}, "leak": "context leak", "place": "place, R²"}
CHOICE = "choice: "
"""How the names of entries begin that are one choice, one seed, fewer steps."""

Entries = dict[str, dict[str, Any]]
"""What `benchmarks.remedy` wrote, by name."""


def _gains(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {gain["name"]: gain for gain in entry["gains"]}


def _networks(entries: Entries) -> Entries:
    return {name: entry for name, entry in entries.items() if not name.startswith(CHOICE)}


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


def commands(entries: Entries) -> str:
    """How each entry was measured, and from which commit."""
    lines = [(cell(name), code(entry["command"]), entry["commit"][:8]) for name, entry in _networks(entries).items()]
    return markdown_table(("network", "command", "commit"), lines)


TABLES: dict[str, Callable[[Entries], str]] = {
    "front": front,
    "gains": gains,
    "choices": choices,
    "commands": commands,
}


def with_tables(page: str, entries: Entries) -> str:
    """The page with what the results say between its marks."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- remedy {name} -->\n{TABLES[name](entries)}\n<!-- end of {name} -->"

    return re.sub(r"<!-- remedy (?P<name>\w+) -->.*?<!-- end of (?P=name) -->", fill, page, flags=re.DOTALL)


def draw(entries: Entries) -> str:
    """An SVG: each network's k-NN in each situation before and after, a dot per seed."""
    cells: dict[str, dict[str, Cell]] = {"start": {}, "after": {}}
    titles = {}
    for situation in SITUATIONS:
        for name, entry in _networks(entries).items():
            gain, key = _gains(entry)[f"class mean, {situation}"], f"{name}, {situation}"
            titles[key] = f"{name}: {situation}"
            cells["start"][key] = Cell({0: gain["start"]}, ())
            cells["after"][key] = Cell(dict(enumerate(gain["after"])), ())
    return dot_plots(titles, ("start", "after"), "start", cells)
