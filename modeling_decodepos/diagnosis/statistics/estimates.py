"""Numbers with their uncertainty: a statistic of sums over images, and what it is when the images are drawn anew.

Every measure of the diagnosis is a function of sums over images. So a bootstrap draws images, never regions or cells:
those of one image hang together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDS = 500
_STREAM = 7  # of randomness, beside those that data are drawn from


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and how many images (or objects) it rests on.

    The value is None where there is nothing to measure; `reason` then says why.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    reason: str = ""
    draws: Array = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The number as JSON takes it."""
        values: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high, "count": self.count}
        return values | ({"reason": self.reason} if self.reason else {})


def nothing(reason: str) -> Estimate:
    """An estimate of nothing, and why."""
    return Estimate(None, reason=reason)


def estimate(
    rows: Array, statistic: Callable[[Array], Array], *, seed: int = 0, widen: float = 1.0, reason: str = "undefined"
) -> Estimate:
    """The statistic of the sum of the rows, with a bootstrap interval over rows.

    Args:
        rows: (G, K), K sums of each image. Images with nothing to say have zeros.
        statistic: Takes sums (…, K) and returns numbers (…); NaN where undefined.
        seed: Of the bootstrap.
        widen: Factor on the spread of the draws; 2 for rows that are projections of a statistic of pairs of images.
        reason: What to say where the statistic is undefined.
    """
    rows = np.asarray(rows, np.float64)
    counted = int((rows != 0).any(1).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(rows.sum(0)))
        rng = np.random.default_rng([seed, _STREAM])
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), ROUNDS) if len(rows) else None
        draws = np.zeros(0) if weights is None else np.asarray(statistic(weights @ rows), np.float64)
    if not math.isfinite(value):
        return nothing(reason)
    draws = value + widen * (draws[np.isfinite(draws)] - value)
    if len(draws) < 2:
        return Estimate(value, None, None, counted)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high), counted, draws=draws)


def ratio(sums: Array) -> Array:
    """First sum over second."""
    return sums[..., 0] / sums[..., 1]


def pool_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate from those of several seeds: their mean, and the interval over seeds and images.

    A draw takes seeds with replacement and, of each, one of its draws of images.
    """
    known = [item for item in estimates if item.value is not None]
    if len(known) < 2:
        return known[0] if known else estimates[0]
    value = float(np.mean([item.value for item in known]))
    count = sum(item.count for item in known)
    if any(len(item.draws) == 0 for item in known):
        return Estimate(value, None, None, count)
    rng = np.random.default_rng([len(known), _STREAM])
    chosen = rng.integers(0, len(known), (ROUNDS, len(known)))
    draws = np.stack([rng.choice(item.draws, ROUNDS) for item in known], 1)
    mixed = np.take_along_axis(draws, chosen, 1).mean(1)
    low, high = np.quantile(mixed, [0.025, 0.975])
    return Estimate(value, float(low), float(high), count, draws=mixed)
