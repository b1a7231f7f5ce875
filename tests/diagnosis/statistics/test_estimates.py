import numpy as np
import pytest

from modeling_decodepos.diagnosis.statistics.estimates import (
    Estimate,
    bootstrap_interval,
    difference,
    estimate,
    estimate_mean,
    half_width_95,
    jackknife_interval,
    nothing,
    overlap,
    pool_seeds,
    ratio,
    student_quantile_95,
)


def rows(count, seed=0):
    values = np.random.default_rng(seed).normal(2.0, 1.0, count)
    return np.stack([values, np.ones(count)], 1)


def test_the_interval_of_a_mean_is_that_of_theory():
    found = estimate(rows(400), ratio)
    assert found.value == pytest.approx(rows(400)[:, 0].mean())
    half = 1.96 / np.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)
    assert found.low < found.value < found.high


def test_the_order_of_pictures_does_not_change_the_value():
    shuffled = np.random.default_rng(1).permutation(rows(60))
    assert estimate(shuffled, ratio).value == pytest.approx(estimate(rows(60), ratio).value)


def test_nothing_has_a_reason_and_no_nan():
    found = estimate(np.zeros((5, 2)), ratio, reason="no pictures")
    assert found.value is None and found.to_dict()["reason"] == "no pictures"
    assert estimate(np.zeros((0, 2)), ratio).value is None


def test_seeds_that_disagree_widen_the_interval():
    one, other = estimate(rows(200), ratio), estimate(rows(200, seed=1) + np.array([3.0, 0.0]), ratio)
    pooled = pool_seeds([one, other])
    assert pooled.value == pytest.approx((one.value + other.value) / 2)
    assert pooled.high - pooled.low > 2 * (one.high - one.low)
    assert pool_seeds([nothing("no"), one]) == one


@pytest.mark.parametrize("degrees", [*range(1, 41), 60, 99, 100, 1000, 10**6])
def test_student_quantiles_are_those_of_scipy_at_any_degrees(degrees):
    stats = pytest.importorskip("scipy.stats")
    rounding = 6e-4 if degrees <= 10 else 2e-5
    assert student_quantile_95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=rounding)


def test_the_interval_of_a_few_numbers_is_wide_and_of_one_none():
    assert half_width_95([1.0]) is None
    assert half_width_95([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    many = rows(400)[:, 0].tolist()
    assert half_width_95(many) == pytest.approx(1.966 * np.std(many, ddof=1) / 20, rel=1e-3)


def test_bootstrap_and_jackknife_of_a_mean_agree_with_theory():
    values = rows(400)[:, 0]
    half = 1.96 * values.std() / 20
    for low, high in (
        bootstrap_interval(values, np.ones(400)),
        jackknife_interval(lambda kept: float(values[kept].mean()), 400, groups=100),
    ):
        assert low == pytest.approx(values.mean() - half, abs=0.25 * half)
        assert high == pytest.approx(values.mean() + half, abs=0.25 * half)
    assert jackknife_interval(lambda kept: 1.0, 1) is None


def of_three_seeds(rng, over_seeds, over_images, shared):
    """Estimates of a number whose mean is 0, of three seeds (weights, say), with errors of seeds and of images."""
    common = rng.normal(0, over_images)
    drawn = rng.normal(0, over_images, 400)
    found = []
    for effect in rng.normal(0, over_seeds, 3):
        value = effect + (common if shared else rng.normal(0, over_images))
        draws = value + (drawn if shared else rng.normal(0, over_images, 400))
        found.append(Estimate(value, *np.quantile(draws, [0.025, 0.975]), 100, draws=draws))
    return found


REGIMES = [(1.0, 0.1, True), (0.1, 1.0, True), (1.0, 1.0, True), (1.0, 1.0, False), (0.3, 1.0, False)]


@pytest.mark.parametrize(("over_seeds", "over_images", "shared"), REGIMES)
def test_the_interval_of_three_seeds_holds_their_mean(over_seeds, over_images, shared):
    rng = np.random.default_rng(0)
    pooled = [pool_seeds(of_three_seeds(rng, over_seeds, over_images, shared)) for _ in range(1000)]
    assert np.mean([item.low <= 0 <= item.high for item in pooled]) >= 0.93


@pytest.mark.parametrize("over_images", [0.05, 0.5, 2.0])
def test_the_interval_of_one_more_seed_holds_it(over_images):
    rng = np.random.default_rng(0)
    held, alike = [], []
    for _ in range(1000):
        seeds = of_three_seeds(rng, 1.0, over_images, shared=True)
        effect = rng.normal()
        value = effect + rng.normal(0, over_images)  # of the fourth, on other images
        pooled = pool_seeds(seeds, another=True)
        held.append(pooled.low <= effect <= pooled.high)
        alike.append(overlap(Estimate(value, value - 1.96 * over_images, value + 1.96 * over_images), pooled))
    assert np.mean(held) >= 0.94 and np.mean(alike) >= 0.94  # the interval of the mean holds 84 % at the least


def test_a_difference_on_the_same_images_is_told_where_two_intervals_overlap():
    rng = np.random.default_rng(0)
    hard = rng.random(120)
    one, other = (estimate_mean(hard > bar, seed=3) for bar in (0.5, 0.6))
    assert overlap(one, other)
    lost = difference(one, other)
    assert lost.value == pytest.approx(one.value - other.value) and 0 < lost.low < lost.value < lost.high
    assert difference(other, one).high == pytest.approx(-lost.low)
    apart = difference(one, estimate_mean(rng.permutation(hard) > 0.6, seed=3))
    assert apart.high - apart.low > 1.5 * (lost.high - lost.low)  # nothing is shared, so nothing cancels
    assert difference(one, nothing("unknown")).reason == "unknown"
    assert difference(one, Estimate(0.2)).low is None


def test_numbers_without_an_interval_differ_from_none():
    assert not overlap(Estimate(0.5), Estimate(0.5, 0.0, 1.0))
    assert overlap(Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.6, 0.8))
    assert not overlap(Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.61, 0.8))


def test_a_difference_of_the_same_pictures_is_surer_than_two_intervals():
    first = np.random.default_rng(0).random(50)
    before, after = estimate_mean(first, seed=1), estimate_mean(first + 0.01, seed=1)
    gain = difference(after, before)
    assert gain.value == pytest.approx(0.01)
    assert gain.low == pytest.approx(0.01) and gain.high == pytest.approx(0.01)
    assert before.high - before.low > 0.1


def test_a_difference_without_draws_has_no_interval_and_without_value_a_reason():
    known = Estimate(0.5, count=3)
    assert difference(Estimate(0.7, count=3), known).value == pytest.approx(0.2)
    assert difference(Estimate(0.7, count=3), known).low is None
    assert difference(nothing("no classes"), known).reason == "no classes"
