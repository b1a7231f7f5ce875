import math

import pytest
import torch

from modeling_decodepos.diagnosis import context_leak


def build_features(content_weight, context_weight, count=400, size=48):
    """Features that are a weighted sum of random content and surroundings, with an offset that all share."""
    generator = torch.Generator().manual_seed(0)
    content, context, others, elsewhere = torch.randn(4, count, size, generator=generator)
    offset = 5 * torch.randn(size, generator=generator)
    pairs = ((content, context), (content, elsewhere), (others, context))
    return [offset + content_weight * a + context_weight * b for a, b in pairs]


@pytest.mark.parametrize(
    ("weights", "leak"), [((1, 0), 0.0), ((0, 1), 1.0), ((1, 1), 0.5), ((2, 1), 0.2), ((1, 3), 0.9)]
)
def test_the_leak_is_the_share_of_the_surroundings(weights, leak):
    # cos = w² / (w² + v²) for independent parts, so leak = v² / (w² + v²).
    assert context_leak(*build_features(*weights)).leak == pytest.approx(leak, abs=0.03)


def test_cosines_are_those_of_a_slow_loop():
    a, b, c = build_features(2, 1, count=9)
    mean = (a.sum(0) + b.sum(0) + c.sum(0)) / 27

    def mean_cosine(others):
        pairs = [(x - mean, y - mean) for x, y in zip(a, others, strict=True)]
        return sum(float(x @ y / (x.norm() * y.norm())) for x, y in pairs) / len(pairs)

    result = context_leak(a, b, c)
    assert result.content == pytest.approx(mean_cosine(b), abs=1e-5)
    assert result.context == pytest.approx(mean_cosine(c), abs=1e-5)
    assert result.leak == pytest.approx(result.context / (result.context + result.content))


def test_a_negative_cosine_counts_as_none():
    a = torch.eye(4)
    result = context_leak(a, a, -a)
    assert result.context < 0
    assert result.leak == 0
    assert context_leak(a, -a, a).leak == 1
    assert math.isnan(context_leak(a, -a, -a).leak)


def test_rotation_and_one_scale_change_nothing():
    features = build_features(2, 1)
    turn = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(1))).Q
    assert context_leak(*[7 * rows @ turn for rows in features]).leak == pytest.approx(
        context_leak(*features).leak, abs=1e-5
    )


@pytest.mark.parametrize("scale", [1e-10, 1e-30, 1e10])
def test_features_of_any_size_leak_alike(scale):
    features = build_features(2, 1.2)
    same = context_leak(*[scale * rows.double() for rows in features])
    assert same.leak == pytest.approx(context_leak(*features).leak, abs=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_collapsed_embedding_gives_no_number(noise):
    generator = torch.Generator().manual_seed(0)
    rows = 1 + noise * torch.randn(3, 50, 8, generator=generator)
    result = context_leak(rows[0], rows[0], rows[2])  # the noise would say: content
    assert math.isnan(result.leak)
    assert (result.content, result.context) == (0, 0)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="the same"):
        context_leak(torch.ones(3, 4), torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="NaN"):
        context_leak(torch.ones(3, 4), torch.ones(3, 4), torch.full((3, 4), float("nan")))
