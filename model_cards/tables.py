"""Markdown tables of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from model_cards.results import Row, measured_on, protocol_name

NO_SPREAD = "–"  # noqa: RUF001
MEANINGS = {
    "content_wins": "how often the same object elsewhere is closer than another object in its place; at 0.5 place and "
    "surroundings decide as often as the object",
    "object_knn": "share of regions whose class their 20 nearest neighbours tell",
    "object_knn_class_mean": "the same, mean over classes",
    "object_knn_same_regions": "the same, of the largest region of each image only",
    "object_knn_surroundings": "of these, each before another image",
    "object_knn_moved": "of these, each smaller, elsewhere, before another image",
    "position_r2": "how well a region's place can be read from its feature, R²; 0 and below: not at all, 1: exactly",
    "context_leak": "what a feature follows when content or surroundings are exchanged; 0: content alone, 1: "
    "surroundings alone",
    "region_retrieval": "share of regions whose nearest neighbour, among all, is themselves before another image in "
    "another place",
}


_WRITTEN = str.maketrans({"&": "&amp;", "<": "&lt;", "|": "&#124;", "`": "&#96;", "[": "&#91;", "]": "&#93;"})


def cell(value: Any) -> str:
    """Text that stays in its cell and starts no markup, whatever it is."""
    return " ".join(str(value).split()).translate(_WRITTEN)


def code(value: Any) -> str:
    """The same, set as code. In backticks nothing is markup but the bar that ends a cell, and a backtick."""
    text = " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
    return f"`{text}`" if text else ""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are written already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number_table(rows: Sequence[Row], with_model: bool = False) -> str:
    """Each number with its spread and label, and the number of the line that says how it was made."""
    header = [*(["model"] if with_model else []), "what", "metric", "value", "spread", "seeds", "on", "label", "how"]
    origins = _origins(rows)
    lines = []
    for row in rows:
        what = " ".join(filter(None, [protocol_name(row), f"({row['arm']})" if row.get("arm") else ""]))
        line = [cell(what), cell(row["metric"]), _value(row), _spread(row)]
        line += [", ".join(map(str, row.get("seeds") or [])) or "not stated"]
        line += [cell(measured_on(row)), f"*{row['label']}*", f"[{origins.index(_origin(row)) + 1}]"]
        lines.append([*([cell(row["model"])] if with_model else []), *line])
    return markdown_table(header, lines)


def before_and_after(rows: Sequence[Row], before: str, after: str) -> str:
    """The numbers that two arms share, side by side, with what they say."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["metric"], {})[str(row.get("arm"))] = row
    lines = []
    for metric, arms in found.items():
        if before in arms and after in arms:
            shown = [_with_spread(arms[arm]) for arm in (before, after)]
            lines.append([cell(metric), *shown, MEANINGS.get(metric, "")])
    return markdown_table(["metric", before, "after", "what it says"], lines)


def metric_list(rows: Sequence[Row]) -> str:
    """What the metrics of `number_table` say, as far as their names do not; a line per metric."""
    metrics = dict.fromkeys(row["metric"] for row in rows)
    return "\n".join(f"- {code(metric)}: {MEANINGS[metric]}." for metric in metrics if metric in MEANINGS)


def origin_table(rows: Sequence[Row]) -> str:
    """How the numbers of `number_table` were made: a line per command, or per text they are quoted from."""
    lines = []
    for number, (protocol, made, at) in enumerate(_origins(rows), start=1):
        place = f"[{cell(made)}]({at})" if at.startswith("https://") else code(made)
        commit = "" if at.startswith("https://") else code(at)
        lines.append([f"[{number}]", place, commit, code(protocol)])
    return markdown_table(["", "command or source", "commit", "protocol"], lines)


def _origin(row: Row) -> tuple[str, str, str]:
    if row["label"] == "quoted":
        source = row["source"]
        return str(row["protocol"]), f"{source['title']}, {source['place']}, read {source['read']}", source["url"]
    return str(row["protocol"]), str(row["command"]), str(row["commit"])


def _origins(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys(_origin(row) for row in rows))


def _with_spread(row: Row) -> str:
    return f"{_value(row)} ({spread})" if (spread := _spread(row)) != NO_SPREAD else _value(row)


def _value(row: Row) -> str:
    return str(row["value"]) if row["label"] == "quoted" else f"{row['value']:.4g}"


def _spread(row: Row) -> str:
    spread = row.get("spread") or {}
    parts = []
    if spread.get("std_over_seeds") is not None:
        parts.append(f"± {spread['std_over_seeds']:.2g} over seeds")
    if spread.get("interval_95_over_images") is not None:
        low, high = spread["interval_95_over_images"]
        parts.append(f"95 % in {low:.4g} to {high:.4g}")
    return ", ".join(parts) or NO_SPREAD
