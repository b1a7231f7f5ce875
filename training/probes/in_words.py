"""What `training.probes.during` measured, in a line for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

WORDS = {
    "object_knn_class_mean": ("object k-NN (mean over classes)", 1),
    "object_knn_same_regions": ("the same of the largest region of each picture", 1),
    "object_knn_surroundings": ("these before other surroundings", 1),
    "object_knn_moved": ("moved", 1),
    "region_retrieval": ("regions found again before another picture", 1),
    "position_r2": ("place R²", -1),
    "context_leak": ("context leak", -1),
}
"""Words for a measure, and whether more is better (1) or less (-1)."""

LEAST_CHANGE = 0.0005  # what the three digits of a line can tell


def in_words(measures: Mapping[str, float], before: Mapping[str, float] | None = None) -> str:
    """Every measure, and what it was before if that is known."""
    known = before or {}
    parts = []
    for name in _shown(measures):
        text = f"{WORDS[name][0]} {_three_digits(measures[name])}"
        low, high = (measures.get(f"{name}_{end}") for end in ("low", "high"))
        text += "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
        parts.append(text + (f", was {_three_digits(known[name])}" if name in known else ""))
    return "; ".join(parts) or "nothing could be measured"


def changes_in_words(measures: Mapping[str, float], before: Mapping[str, float]) -> str:
    """What was gained and what was lost since `before`."""
    gained: list[str] = []
    lost: list[str] = []
    for name in _shown(measures):
        if name not in before:
            continue
        words, sign = WORDS[name]
        # No feature tells less than nothing of a place.
        one, other = (
            max(values[name], 0.0) if name == "position_r2" else values[name] for values in (before, measures)
        )
        if abs(other - one) >= LEAST_CHANGE:
            (gained if sign * (other - one) > 0 else lost).append(f"{words} {other - one:+.3f}")
    return f"gained: {'; '.join(gained) or 'nothing'}\nlost: {'; '.join(lost) or 'nothing'}"


def _three_digits(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # never -0.000


def _shown(measures: Mapping[str, float]) -> list[str]:
    """Names to tell of: where classes are known, regions need not be found again."""
    left_out = {"region_retrieval"} if "object_knn_class_mean" in measures else set()
    return [name for name in WORDS if name in measures and name not in left_out]
