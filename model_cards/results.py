"""The numbers that may be shown, as rows of JSON, and what a row must hold to be shown.

A file is `{"results": [row, …]}`, as `python -m training.evaluation` writes it. A row of our own has

    model, arm         what was measured, and what tells it from its comparisons
    protocol, metric   id of the protocol with every setting that changes a number, and one of its metrics
    value, spread      the number; {"std_over_seeds", "interval_95_over_images"}, either null where there is none
    seeds              the seeds it is the mean over
    command, commit    what was typed, and the commit of this repository that it was typed in
    label              "reduced scale", or "reproduced" for a published number that was met under its own protocol

and a row with the label "quoted" has no seeds, command or commit but

    source             {"title", "url", "place", "read"}: where in a text it stands, and the day it was read
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from dataset_scripts.files import read_json

Row = Mapping[str, Any]

LABELS = ("reproduced", "reduced scale", "quoted")
SOURCE_FIELDS = ("title", "url", "place", "read")
# No table of the paper could be read, so a number said to be from there is from somewhere else.
UNREAD = "2303.16947"


def load_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file.

    Raises:
        ValueError: It is no results file, or a row lacks what it must hold to be shown.
    """
    try:
        rows = read_json(path)["results"]
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise TypeError("`results` is no list of rows")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is no results file ({error!r}); expected {{"results": [{{"model": …}}]}}.') from None
    refuse_unfounded(rows, str(path))
    return rows


def refuse_unfounded(rows: Iterable[Row], where: str) -> None:
    """Raises unless every number says where it comes from."""
    problems = [
        f"{row.get('model')}, {_short(row.get('protocol'))}, {row.get('metric')}: {'; '.join(found)}"
        for row in rows
        if (found := row_problems(row))
    ]
    if problems:
        raise ValueError(f"{where} has numbers that cannot be shown:\n  " + "\n  ".join(problems))


def row_problems(row: Row) -> list[str]:
    """What a row lacks; empty if its number may be shown."""
    problems = [f"no {name}" for name in ("model", "protocol", "metric") if not _is_text(row.get(name))]
    value = row.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        problems.append(f"the value is {value!r}, expected a finite number")
    label = row.get("label")
    if label == "quoted":
        return problems + _source_problems(row.get("source"))
    if label not in LABELS:
        problems.append(f"the label is {label!r}, expected one of {', '.join(LABELS)}")
    if not _is_text(row.get("command")):
        problems.append("no command")
    commit = row.get("commit")
    if not (isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit)):
        problems.append(
            f"the commit is {commit!r}, expected the 40 digits of one that others can check out: commit, measure again"
        )
    seeds = row.get("seeds")
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        problems.append(f"the seeds are {seeds!r}, expected a list of numbers")
    return problems


def _source_problems(source: Any) -> list[str]:
    if not isinstance(source, dict) or (missing := [name for name in SOURCE_FIELDS if not _is_text(source.get(name))]):
        missing = missing if isinstance(source, dict) else list(SOURCE_FIELDS)
        return [f"quoted, but `source` does not say {', '.join(missing)}"]
    problems = []
    if not source["url"].startswith("https://"):
        problems.append(f"the url is {source['url']!r}, expected https://…")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", source["read"]):
        problems.append(f"`read` is {source['read']!r}, expected the day, such as 2026-01-31")
    if any(UNREAD in source[name] for name in ("title", "url", "place")):
        problems.append(f"quoted from {UNREAD}, of which nobody here has read a number")
    return problems


def measured_on(row: Row) -> str:
    """Name of the data a number was measured on: `data` of the row, else what --data of its command says."""
    if _is_text(row.get("data")):
        return str(row["data"])
    words = shlex.split(str(row.get("command") or ""))
    for word, following in pairwise([*words, ""]):
        if word == "--data":
            return Path(following).name
        if word.startswith("--data="):
            return Path(word.removeprefix("--data=")).name
    return "data that its protocol names"


def protocol_name(row: Row) -> str:
    """The protocol without its settings."""
    return str(row["protocol"]).partition(":")[0]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _short(protocol: Any) -> str:
    return str(protocol).partition(":")[0]
