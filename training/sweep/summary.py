"""What of a sweep is published: one row of results per arm and number, with its value for every seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from model_cards.comparison import measure_name
from training.sweep.sweep import Sweep

Finished = Sequence[Mapping[str, Any]]


def summarise(sweep: Sweep, rows: Finished, command: str) -> dict[str, Any]:
    """A results file that also says what was compared with what, and what it cost.

    Args:
        sweep: The sweep.
        rows: Its finished rows.
        command: What was typed.
    """
    return {
        "sweep": {
            "name": sweep.name,
            "question": sweep.question,
            "recipe": str(sweep.recipe),
            "keys": dict(sweep.keys),
            "arms": {arm: None if keys is None else dict(keys) for arm, keys in sweep.arms.items()},
            "seeds": list(sweep.seeds),
            "baseline": sweep.baseline,
            "show": list(sweep.show),
            "planned": len(sweep.rows()),
            "finished": len(rows),
            "failed": {f"{row['arm']}, seed {row['seed']}": row["failure"] for row in rows if "failure" in row},
            "images": sum(row.get("images") or 0 for row in rows),
            "train_hours": sum(row.get("train_seconds") or 0 for row in rows) / 3600,
            "measure_hours": sum(row["measure_seconds"] for row in rows) / 3600,
            "command": command,
        },
        "results": [
            merged
            for arm in sweep.arms
            for name in sweep.show
            if (merged := _merge(sweep, [row for row in rows if row["arm"] == arm], arm, name)) is not None
        ],
    }


def _merge(sweep: Sweep, rows: Finished, arm: str, name: str) -> dict[str, Any] | None:
    """One number of one arm over its seeds, as a row of results; the command is the first seed's."""
    found = {row["seed"]: result for row in rows for result in row["results"] if measure_name(result) == name}
    if not found:
        return None
    ordered = [found[seed] for seed in sorted(found)]
    values = [float(result["value"]) for result in ordered]
    return {
        **ordered[0],
        "model": f"{sweep.name}/{arm}",
        "value": statistics.fmean(values),
        "values": values,
        "seeds": sorted(found),
        "spread": {
            "std_over_seeds": statistics.stdev(values) if len(values) > 1 else None,
            "interval_95_over_images": None,
        },
        "commits": sorted({result["commit"] for result in ordered}),
    }
