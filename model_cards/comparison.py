"""What the rows of a sweep say: mean and spread of each arm, and its difference from the baseline, seed by seed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modeling_decodepos.diagnosis.statistics.estimates import half_width_95


@dataclass(frozen=True)
class Cell:
    """One number of one arm."""

    values: Mapping[int, float]  # by seed
    differences: Sequence[float]  # from the baseline with the same seed, where both are known

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Over seeds."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Mean difference from the baseline."""
        return statistics.fmean(self.differences) if self.differences else None

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval of the mean difference (Student's t over seeds)."""
        return half_width_95(self.differences)

    @property
    def verdict(self) -> str:
        """Whether the interval leaves zero out."""
        if self.half_width is None or self.difference is None:
            return "one seed"
        if abs(self.difference) <= self.half_width:
            return "not told apart"
        return "higher" if self.difference > 0 else "lower"


def compare(rows: Sequence[Mapping[str, Any]], baseline: str, names: Sequence[str]) -> dict[str, dict[str, Cell]]:
    """Arm -> name of the number -> what is known of it."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row, name in itertools.product(rows, names):
        if (value := find_value(row["results"], name)) is not None:
            found.setdefault(row["arm"], {}).setdefault(name, {})[row["seed"]] = value
    table: dict[str, dict[str, Cell]] = {}
    for arm, by_name in found.items():
        for name, values in by_name.items():
            base = found.get(baseline, {}).get(name, {})
            paired = [values[seed] - base[seed] for seed in values if seed in base] if arm != baseline else []
            table.setdefault(arm, {})[name] = Cell(values, paired)
    return table


def contrast(cells: Mapping[str, Mapping[str, Cell]], name: str, weights: Mapping[str, float]) -> Cell | None:
    """A sum of arms, each times its weight, seed by seed; None where no seed is in all of them."""
    of_arms = {arm: cells[arm][name].values if name in cells.get(arm, {}) else {} for arm in weights}
    seeds = sorted(set.intersection(*map(set, of_arms.values())))
    values = {seed: sum(weight * of_arms[arm][seed] for arm, weight in weights.items()) for seed in seeds}
    return Cell(values, list(values.values())) if values else None


def measure_name(result: Mapping[str, Any]) -> str:
    """`protocol/metric` of a row of results, without version and settings."""
    return f"{result['protocol'].split('-')[0].split(':')[0]}/{result['metric']}"


def find_value(results: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The number `protocol/metric` among results."""
    return next((float(row["value"]) for row in results if measure_name(row) == name), None)


def all_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every number that any row has, as `protocol/metric`."""
    return list(dict.fromkeys(measure_name(result) for row in rows for result in row["results"]))
