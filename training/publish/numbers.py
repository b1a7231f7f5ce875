"""The numbers of a release: what the run measured of itself, and what was evaluated later."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_cards.results import load_rows, refuse_unfounded
from training.run.folder import RunFiles
from training.run.places import command_without_places
from training.run.report import MEASURES

RESULTS_NAME = "results.json"
BEFORE = "before training"

Row = dict[str, Any]


def release_rows(run: RunFiles, name: str, results: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """Every number of a release, the run's own first, and the models in `results` that nobody else could find.

    The model is called `name` from now on. Raises if a number does not say where it comes from.
    """
    rows = _own_rows(run, name)
    refuse_unfounded(rows, f"{run.folder} (its probe and measures)")
    left_out = []
    for row in (row for path in results for row in load_rows(path)):
        if _is_released(row["model"], run.folder) or _is_findable(row):
            rows.append(_renamed(row, run.folder, name, objective(run)))
        else:
            left_out.append(row["model"])
    return rows, list(dict.fromkeys(left_out))


def objective(run: RunFiles) -> str:
    """What tells this model from those of other objectives."""
    return str(run.recipe.get("objective"))


def probe_sentence(run: RunFiles) -> str:
    """The probe in a line; empty if it was not run."""
    if run.after is None:
        return ""
    low, high = run.after.interval
    before = "" if run.before is None else f"{_percent(run.before.content_wins)} of cases before training and "
    after = f"{_percent(run.after.content_wins)} after it (95 % interval {_percent(low)} to {_percent(high)})"
    return f"The object decides {before}{after}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _own_rows(run: RunFiles, name: str) -> list[Row]:
    rows = []
    for found, arm in ((run.before, BEFORE), (run.after, objective(run))):
        if found is not None:
            protocol = f"probe-1:count={found.count},size_px={found.size_px},seed={found.seed}"
            row = _row(run, name, arm, protocol, "content_wins", found.content_wins)
            row["spread"]["interval_95_over_images"] = list(found.interval)
            drawn = {"data": "scenes of the probe", "data_hash": f"drawn from seed {found.seed}"}
            rows.append(row | drawn | {"count": found.count})
    measures = [line for line in run.log if any(key in line for key in MEASURES)]
    asked = run.description.get("measured_on", {})
    protocol = "online-1:" + ",".join(f"{key}={asked[key]}" for key in ("gallery", "queries") if key in asked)
    ends = [(measures[0], BEFORE)] if measures and measures[0].get("step") == 0 else []
    step = run.about("left").get("step", run.step)  # of what is exported
    ends += [(line, objective(run)) for line in measures[::-1] if line.get("step") == step][:1]
    chance = [(asked.get("chance", {}), "always the most frequent class")] if ends else []
    for line, arm in [*ends, *chance]:
        rows += [_row(run, name, arm, protocol, key, line[key]) for key in MEASURES if line.get(key) is not None]
    return rows


def _row(run: RunFiles, name: str, arm: str, protocol: str, metric: str, value: float) -> Row:
    about = run.description
    data: Mapping[str, Any] = about.get("data", {})
    return {
        "model": name,
        "arm": arm,
        "protocol": protocol,
        "metric": metric,
        "value": value,
        "spread": {"std_over_seeds": None, "interval_95_over_images": None},
        "seeds": [run.recipe.get("seed")],
        "command": command_without_places(str(about.get("command") or "")),
        "commit": about.get("commit"),
        "data": Path(str(data.get("path"))).name,
        "data_hash": data.get("hash"),
        "machine": about.get("machine"),
        "label": "reduced scale",
        "measured": about.get("finished"),
    }


def _is_findable(row: Row) -> bool:
    """Whether others know what is meant: a Hub id, an architecture with random weights, or what a text names."""
    model = row["model"]
    is_name = re.fullmatch(r"(random:)?[\w.-]+(/[\w.-]+)?", model) and not Path(model).exists()
    return bool(row["label"] == "quoted" or is_name)


def _is_released(model: str, run_dir: Path) -> bool:
    """Whether these are the weights that go out; a checkpoint of the same run has others."""
    return Path(model).resolve().is_relative_to((run_dir / "export").resolve())


def _renamed(row: Row, run_dir: Path, name: str, arm: str) -> Row:
    row = row | {"command": command_without_places(row["command"])} if row.get("command") else row
    return row | {"model": name, "arm": arm} if _is_released(row["model"], run_dir) else row
