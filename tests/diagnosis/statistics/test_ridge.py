import pytest
import torch

from modeling_decodepos.diagnosis.statistics import ridge
from modeling_decodepos.diagnosis.statistics.ridge import ridge_predict


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook(x, y, held_out, group_size):
    """Normal equations with a free mean, and the penalty by really leaving every group out."""
    mean = x.mean(0)
    x, held_out = x - mean, held_out - mean
    size = float((x**2).sum() / x.shape[1])

    def fit(rows, target, penalty):
        design = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
        matrix = design.T @ design + penalty * torch.eye(design.shape[1], dtype=rows.dtype)
        matrix[-1, -1] -= penalty
        return torch.linalg.solve(matrix, design.T @ target)

    def predict(rows, weights):
        return rows @ weights[:-1] + weights[-1]

    def error(penalty):
        total = 0.0
        for start in range(0, len(x), group_size):
            left_out = torch.zeros(len(x), dtype=torch.bool)
            left_out[start : start + group_size] = True
            weights = fit(x[~left_out], y[~left_out], penalty)
            total += float(((predict(x[left_out], weights) - y[left_out]) ** 2).sum())
        return total

    best = min((size * strength for strength in ridge.PENALTIES), key=error)
    return predict(held_out, fit(x, y, best))


@pytest.mark.parametrize("dimensions", [6, 70])  # fewer and more than rows: both Gram matrices
@pytest.mark.parametrize("group_size", [1, 4])
def test_equal_to_a_textbook_solver(dimensions, group_size):
    y, mix = noise(48, 2, seed=1), noise(2, dimensions, seed=2)
    x = 3 + y @ mix + noise(48, dimensions)
    held_out = 3 + noise(9, dimensions, seed=4)
    expected = textbook(x, y, held_out, group_size)
    torch.testing.assert_close(ridge_predict(x, y, held_out, group_size=group_size), expected, rtol=1e-5, atol=1e-6)


def test_one_rotation_and_one_scale_change_nothing():
    x, y, held_out = noise(40, 12), noise(40, 2, seed=1), noise(7, 12, seed=2)
    rotation = torch.linalg.qr(noise(12, 12, seed=3))[0]
    turned = ridge_predict(1e3 * x @ rotation, y, 1e3 * held_out @ rotation)
    torch.testing.assert_close(turned, ridge_predict(x, y, held_out))


def test_rows_of_one_picture_are_left_out_together():
    """Targets that only tell pictures apart can be learned by heart from the other rows of a picture, not beyond."""
    picture = noise(20, 30).repeat_interleave(4, 0)
    y = noise(20, 1, seed=1).repeat_interleave(4, 0)
    alone = ridge_predict(picture + 0.01 * noise(80, 30, seed=2), y, noise(50, 30, seed=3))
    together = ridge_predict(picture + 0.01 * noise(80, 30, seed=2), y, noise(50, 30, seed=3), group_size=4)
    assert together.std() < alone.std()


def test_constant_features_predict_the_mean():
    y = noise(10, 2)
    predicted = ridge_predict(torch.ones(10, 3), y, torch.ones(4, 3))
    torch.testing.assert_close(predicted, y.mean(0).expand(4, -1))


def test_unequal_groups_are_refused():
    with pytest.raises(ValueError, match="divisor"):
        ridge_predict(noise(10, 3), noise(10, 1), noise(2, 3), group_size=3)
