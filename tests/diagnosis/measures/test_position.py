import pytest
import torch

from modeling_decodepos.diagnosis import position_r2
from modeling_decodepos.diagnosis.statistics import ridge


def draw(count, seed=0):
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def problem():
    """Features that hold the place linearly under noise, fewer training rows than some penalties need."""
    y, y_test, mix = draw(40), draw(25, seed=1), noise(2, 30)
    return y @ mix + 0.5 * noise(40, 30), y, y_test @ mix + 0.5 * noise(25, 30, seed=6), y_test


def r2_slowly(x, y, x_test, y_test):
    """Normal equations, and the penalty by leaving out every row in turn."""
    mean, std = x.mean(0), x.std(0, correction=0)
    x, x_test = (x - mean) / std, (x_test - mean) / std

    def fit(rows, target, penalty):
        design = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
        ridge = penalty * torch.eye(design.shape[1], dtype=rows.dtype)
        ridge[-1, -1] = 0  # the mean is free
        return torch.linalg.solve(design.T @ design + ridge, design.T @ target)

    def predict(rows, weights):
        return rows @ weights[:-1] + weights[-1]

    def error(penalty):
        left_out = [torch.arange(len(x)) != row for row in range(len(x))]
        return sum(((predict(x[~k], fit(x[k], y[k], penalty)) - y[~k]) ** 2).sum() for k in left_out)

    best = min((len(x) * strength for strength in ridge.PENALTIES), key=error)
    residual = ((predict(x_test, fit(x, y, best)) - y_test) ** 2).sum(0)
    return float((1 - residual / ((y_test - y_test.mean(0)) ** 2).sum(0)).mean())


def test_equal_to_a_slow_fit(problem):
    assert position_r2(*problem) == pytest.approx(r2_slowly(*problem), abs=1e-6)
    x, y, x_test, y_test = problem
    assert position_r2(x[:20], y[:20], x_test, y_test) == pytest.approx(
        r2_slowly(x[:20], y[:20], x_test, y_test), abs=1e-4
    )  # fewer rows than features


def test_a_feature_that_is_the_place_gives_one(problem):
    _, y, _, y_test = problem
    assert position_r2((3 * y - 1).float(), y, (3 * y_test - 1).float(), y_test) == pytest.approx(1.0, abs=1e-3)


def test_half_a_place_gives_half():
    y, y_test = draw(300), draw(300, seed=1)
    assert position_r2(y[:, :1], y, y_test[:, :1], y_test) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("x", [torch.zeros(80, 8), torch.full((80, 8), 0.3), 1e3 + 1e-6 * noise(80, 8)])
def test_a_constant_feature_tells_nothing(x):
    y = draw(80)
    assert -0.2 < position_r2(x[:40], y[:40], x[40:], y[40:]) <= 0


def test_rounding_noise_of_a_collapsed_feature_is_no_find():
    """Standardised, the last bits of a 32-bit feature would tell the place."""
    y = draw(80)
    x = (1.0 + 2e-7 * (y @ noise(2, 8))).float()
    assert x.std(0).max() > 0
    assert position_r2(x[:40], y[:40], x[40:], y[40:]) <= 0


def test_noise_is_not_fitted():
    y, y_test = draw(60), draw(400, seed=1)
    assert -0.2 < position_r2(noise(60, 200), y, noise(400, 200, seed=6), y_test) < 0.1


def test_the_held_out_rows_choose_nothing(problem):
    """The penalty, and with it every prediction, depends on the training rows only."""
    x, y, x_test, y_test = problem
    both = position_r2(x, y, torch.cat([x_test, x_test]), torch.cat([y_test, y_test]))
    assert both == pytest.approx(position_r2(*problem), abs=1e-12)


def test_shift_and_scale_of_a_feature_change_nothing(problem):
    x, y, x_test, y_test = problem
    scale, shift = torch.logspace(-3, 3, 30, dtype=torch.float64), noise(30)
    moved = position_r2(x * scale + shift, y, x_test * scale + shift, y_test)
    assert moved == pytest.approx(position_r2(*problem), abs=1e-6)


def test_too_little_gives_nan_and_wrong_input_is_named(problem):
    x, y, x_test, y_test = problem
    assert torch.tensor(position_r2(x[:1], y[:1], x_test, y_test)).isnan()
    assert torch.tensor(position_r2(x, y, x_test, y_test * torch.tensor([1.0, 0.0]))).isnan()
    with pytest.raises(ValueError, match="held_out_features is"):
        position_r2(x, y, x_test[:, :3], y_test)
    with pytest.raises(ValueError, match="NaN"):
        position_r2(x * float("nan"), y, x_test, y_test)
