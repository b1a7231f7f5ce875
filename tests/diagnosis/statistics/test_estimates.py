import numpy as np
import pytest

from modeling_decodepos.diagnosis.statistics.estimates import estimate, nothing, pool_seeds, ratio


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
