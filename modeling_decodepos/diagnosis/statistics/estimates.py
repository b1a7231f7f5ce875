"""Numbers with their uncertainty: every 95 % interval of this project.

    estimate             a function of sums over images: bootstrap over images, as in every measure of the diagnosis
    bootstrap_interval   a mean over the items of images
    jackknife_interval   a score that is no mean
    half_width_95        the mean of a few numbers, such as one per seed: Student's t
    pool_seeds           estimates of several seeds as one: Student's t over seeds, and the bootstrap over images
    difference           of two estimates of the same images: the bootstrap of both at once

Images are drawn, never regions or cells: those of one image hang together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDS = 500
_ROUNDS_AT_A_TIME = 100
# Two-sided 95 % quantiles of Student's t for 1, 2, 3 … degrees of freedom.
_STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
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


def overlap(one: Estimate, other: Estimate) -> bool:
    """Whether both have intervals, and these have a number in common: then no difference is claimed."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def difference(one: Estimate, other: Estimate) -> Estimate:
    """One estimate minus another of the same images and seed, of which every draw takes the same images.

    What is hard in both cancels, so it tells smaller differences than two intervals side by side do.
    """
    if one.value is None or other.value is None:
        return nothing(one.reason or other.reason)
    value = one.value - other.value
    if len(one.draws) != len(other.draws) or len(one.draws) < 2:
        return Estimate(value, count=one.count)
    draws = one.draws - other.draws
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high), one.count, draws=draws)


def nothing(reason: str) -> Estimate:
    """An estimate of nothing, and why."""
    return Estimate(None, reason=reason)


def estimate(
    rows: Array, statistic: Callable[[Array], Array], *, seed: int = 0, widen: float = 1.0, reason: str = "undefined"
) -> Estimate:
    """The statistic of the sum of the rows, with a bootstrap interval over rows.

    Rows are (G, K): K sums of each image, zeros where it has nothing to say. The statistic takes sums (…, K) and gives
    numbers (…), NaN where it is undefined, for which `reason` says why. The spread of the draws is multiplied by
    `widen`: 2 for rows that are projections of a statistic of pairs of images.
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


def estimate_mean(values: Any, *, seed: int = 0) -> Estimate:
    """The mean of numbers, one of each image, with its bootstrap interval."""
    numbers = np.asarray(values, np.float64)
    return estimate(np.stack([numbers, np.ones(len(numbers))], 1), ratio, seed=seed)


def pool_seeds(estimates: Sequence[Estimate], *, another: bool = False) -> Estimate:
    """One estimate from those of several seeds: their mean, with an interval over seeds and images.

    Over seeds it is Student's t, for a bootstrap of a few numbers is too narrow; over images it is the bootstrap of
    the mean, in which estimates of the same images and seed of draws take the same images. Both add up as independent
    errors do. With `another`, the interval is not the mean's but the one that the number of one more seed falls into:
    what a network must be outside of to differ from others.
    """
    known = [item for item in estimates if item.value is not None]
    if len(known) < 2:
        return known[0] if known else estimates[0]
    values = [float(item.value or 0.0) for item in known]
    value, count = statistics.fmean(values), sum(item.count for item in known)
    rounds = min(len(item.draws) for item in known)
    if rounds == 0:
        return Estimate(value, None, None, count)
    draws = np.mean([item.draws[:rounds] for item in known], 0)
    over_seeds = (half_width_95(values) or 0.0) * (math.sqrt(len(known) + 1) if another else 1.0)
    below, above = (abs(float(end) - value) for end in np.quantile(draws, [0.025, 0.975]))
    return Estimate(
        value, value - math.hypot(over_seeds, below), value + math.hypot(over_seeds, above), count, draws=draws
    )


def bootstrap_interval(
    totals: NDArray[Any], counts: NDArray[Any], *, seed: int | Sequence[int] = 0, rounds: int = 1000
) -> tuple[float, float]:
    """95 % interval of sum(totals) / sum(counts) when images are drawn again.

    Of each image, `totals` (I,) sum a score over its items and `counts` (I,) say how many they are, at least one.
    """
    rng = np.random.default_rng(seed)
    values = []
    for start in range(0, rounds, _ROUNDS_AT_A_TIME):
        drawn = rng.integers(0, len(counts), (min(_ROUNDS_AT_A_TIME, rounds - start), len(counts)))
        values.append(totals[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return float(low), float(high)


def jackknife_interval(
    score: Callable[[NDArray[np.bool_]], float], images: int, groups: int = 20
) -> tuple[float, float] | None:
    """95 % interval over images of a score that is no mean, such as a mean over classes: delete-a-group jackknife.

    Drawing images again would lose rare classes in most draws, and the interval would miss the score itself. None for
    fewer than two images, or where a part has no score. `score` takes (images,) flags of the images that count.
    """
    groups = min(groups, images)
    if groups < 2:
        return None
    whole = score(np.ones(images, dtype=bool))
    parts = np.array([score(np.arange(images) % groups != group) for group in range(groups)])
    error = math.sqrt((groups - 1) / groups * float(((parts - parts.mean()) ** 2).sum()))
    return (whole - 1.96 * error, whole + 1.96 * error) if math.isfinite(error) else None


def half_width_95(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean of the values (Student's t); None for fewer than two."""
    if len(values) < 2:
        return None
    return student_quantile_95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def student_quantile_95(degrees: int) -> float:
    """What Student's t with so many degrees of freedom stays between, with both signs, in 95 % of draws."""
    if degrees <= len(_STUDENT_95):
        return _STUDENT_95[degrees - 1]
    # Expansion in 1 / degrees around the normal distribution's quantile (Abramowitz and Stegun, 26.7.5).
    x = 1.959963984540054
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / degrees**power for power, term in enumerate(terms, start=1))
