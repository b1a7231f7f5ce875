import math

import numpy as np
import pytest
import torch

from modeling_decodepos.diagnosis import effective_rank, embedding_std


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_std_is_that_of_the_selected_rows():
    embeddings, valid = 3 * draw(6, 5, 12), draw(6, 5, seed=1) > -0.3
    rows = embeddings[valid].numpy()
    expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).std(0, ddof=1).mean()
    assert float(embedding_std(embeddings, valid)) == pytest.approx(expected, rel=1e-5)
    embeddings[~valid] = float("nan")  # what is not valid may hold anything
    assert float(embedding_std(embeddings, valid)) == pytest.approx(expected, rel=1e-5)


def test_std_of_a_perfect_spread_and_of_a_collapse():
    every = torch.ones(4000, dtype=torch.bool)
    assert float(embedding_std(draw(4000, 64), every)) == pytest.approx(1 / 8, rel=0.02)
    assert float(embedding_std(draw(64).expand(4000, 64), every)) < 1e-6


@pytest.mark.parametrize("count", [0, 1])
def test_std_of_less_than_two_rows_is_no_number(count):
    assert math.isnan(float(embedding_std(draw(4, 8), torch.arange(4) < count)))


def test_rank_is_the_entropy_of_the_singular_values():
    rows = draw(30, 12).numpy()
    values = np.sqrt(np.linalg.eigvalsh(rows.T.astype(np.float64) @ rows))
    shares = values / values.sum()
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert float(effective_rank(torch.from_numpy(rows))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_rank_of_equally_strong_directions_is_their_number(rank):
    directions = torch.linalg.qr(draw(16, 16)).Q[:rank]
    assert float(effective_rank(directions.repeat(10, 1))) == pytest.approx(rank, rel=1e-4)
    assert float(effective_rank(directions)) == pytest.approx(rank, rel=1e-4)


def test_rank_sees_a_collapse_to_a_line_that_the_std_does_not_see():
    rows = torch.sign(draw(400, 1)) * draw(1, 64, seed=1)
    assert float(embedding_std(rows, torch.ones(400, dtype=torch.bool))) > 0.7 / 8
    assert float(effective_rank(rows)) == pytest.approx(1, abs=1e-3)


def test_rank_of_one_point_is_one_and_of_nothing_no_number():
    assert float(effective_rank(draw(1, 8).expand(50, 8))) == pytest.approx(1, abs=1e-3)
    assert math.isnan(float(effective_rank(torch.zeros(5, 8))))


def test_rank_does_not_change_with_rotation_scale_or_empty_rows():
    rows, turn = draw(20, 9), torch.linalg.qr(draw(9, 9, seed=1)).Q
    padded = torch.cat([4 * rows @ turn, torch.zeros(7, 9)])
    assert float(effective_rank(padded)) == pytest.approx(float(effective_rank(rows)), rel=1e-4)
