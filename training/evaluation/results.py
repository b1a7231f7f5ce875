"""results.json: every number with its protocol, seeds, spread, command, commit, data, machine and label.

A file holds one row per (model, arm, protocol, metric, seeds): a number that is measured again replaces the old one,
everything else in the file stays.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset_scripts.files import lock_folder, read_json, remove_unfinished, write_json
from training.provenance import now

KEY = ("model", "arm", "protocol", "metric", "seeds")


@dataclass(frozen=True)
class Measured:
    """One number of one seed."""

    value: float
    interval: tuple[float, float] | None = None  # 95 %, over images, where one was computed
    count: int | None = None  # how many things it is the mean of (regions, images), where that makes sense


def build_rows(
    origin: Mapping[str, Any], by_seed: Mapping[int, Mapping[str, Measured]], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The rows of results.json for what each seed measured; `origin` is what all rows of a call share.

    `value` is the mean over seeds, `spread` their standard deviation (null for a single seed) and the bootstrap
    interval over images of the first seed.
    """
    seeds = sorted(by_seed)
    rows = []
    for metric in dict.fromkeys(name for seed in seeds for name in by_seed[seed]):
        found = {seed: by_seed[seed][metric] for seed in seeds if metric in by_seed[seed]}
        values = [measured.value for measured in found.values()]
        if not all(map(math.isfinite, values)):
            continue  # nothing could be measured, which the protocol has said
        first = next(iter(found.values()))
        row = {
            "metric": metric,
            "value": statistics.fmean(values),
            "spread": {
                "std_over_seeds": statistics.stdev(values) if len(values) > 1 else None,
                "interval_95_over_images": list(first.interval) if first.interval else None,
            },
            "seeds": list(found),
            "values": values,
            "count": first.count,
            "settings": dict(settings),
            "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
            "machine": machine(),
            "measured": now(),
        }
        rows.append(dict(origin) | row)
    return rows


def merge_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows into a results file, which never is seen half written; rows with equal keys are replaced."""
    # Two evaluations may end at the same time: each reads what the other has written.
    with lock_folder(path.parent, "the folder of results", "evaluation", wait=True, name=f".{path.name}.lock"):
        remove_unfinished(path.parent, path.name)
        kept = {_key(row): row for row in load_results(path)}
        kept |= {_key(row): dict(row) for row in rows}
        write_json(path, {"results": list(kept.values())})


def load_results(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file; none if there is no such file."""
    if not path.is_file():
        return []
    try:
        rows = read_json(path)["results"]
        assert isinstance(rows, list) and all(set(KEY) <= set(row) for row in rows)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(
            f'{path} is no results file ({error!r}); expected {{"results": [{{"model": …}}]}}. Give another --output, '
            "or move the file away."
        ) from error
    return rows


def headline_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The rows that are named, in that order; of a number by k, the one at k = 20 or the first. All without names."""
    by_metric = {row["metric"]: row for row in rows}
    found = []
    for name in names:
        with_k = [metric for metric in by_metric if re.fullmatch(rf"{name}_k\d+", metric)]
        places = [name, f"{name}_k20", *with_k]
        found += [by_metric[metric] for metric in places if metric in by_metric][:1]
    return found or list(rows)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A small table of the measured numbers."""
    table = [("metric", "value", "± over seeds", "95 % over images", "count")]
    for row in rows:
        spread = row["spread"]
        deviation, interval = spread["std_over_seeds"], spread["interval_95_over_images"]
        table.append(
            (
                row["metric"],
                f"{row['value']:.4f}",
                "-" if deviation is None else f"{deviation:.4f}",
                "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
                "-" if row["count"] is None else str(row["count"]),
            )
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def machine() -> dict[str, Any]:
    """What a number was measured on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row[name] for name in KEY])
