import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from modeling_decodepos.diagnosis import load_debias
from modeling_decodepos.diagnosis.measures.debias import (
    LEAST_OBJECTS,
    RemovalPoint,
    StrengthPoint,
    choose_count,
    choose_strength,
    find_themselves,
    fit_layer,
    project_out,
    save_layer,
    spread_within,
)
from modeling_decodepos.diagnosis.measures.position import Subspace, positional_subspace


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(channels):
    """A layer that centres and nothing else."""
    return project_out(positional_subspace(noise(4, 9, channels)), 0)


def changed(objects=80, channels=8, nuisance=3.0):
    """Objects that differ in the first half of channels, and change in the last."""
    content = noise(objects, 1, channels, seed=1)
    content[..., channels // 2 :] = 0
    change = nuisance * noise(objects, 4, channels, seed=2)
    change[..., : channels // 2] = 0
    return content + change + 0.01 * noise(objects, 4, channels, seed=3)


def test_what_changes_is_shrunk_and_what_stays_is_kept():
    layer, points = fit_layer(changed(), plain(8))
    kept, shrunk = layer.weight.diagonal().view(2, 4)
    assert choose_strength(points) >= 3
    assert kept.min() > 0.95 and shrunk.max() < 0.25


def test_without_anything_to_gain_the_layer_centres_only():
    layer, points = fit_layer(noise(60, 1, 8, seed=1) + 0.01 * noise(60, 4, 8, seed=2), plain(8))
    assert choose_strength(points) == 0
    torch.testing.assert_close(layer.weight, torch.eye(8, dtype=torch.float64))


def test_the_strength_is_not_chosen_on_the_objects_that_gave_the_spread():
    # Changes are the same in all directions: only the objects that were fitted seem to gain.
    views = noise(40, 1, 60, seed=1) + 2 * noise(40, 4, 60, seed=2)
    assert choose_strength(fit_layer(views, plain(60))[1]) == 0


def test_views_of_different_objects_say_nothing():
    views = changed(nuisance=1.0)
    shuffled = torch.stack([views[:, view].roll(view, 0) for view in range(4)], 1)
    held_out = changed(nuisance=1.0).flip(0)
    right, wrong = (find_themselves(fit_layer(part, plain(8))[0](held_out)).mean() for part in (views, shuffled))
    assert right > wrong + 0.02


def test_few_objects_choose_no_strength():
    layer, points = fit_layer(changed(LEAST_OBJECTS - 1), plain(8))
    assert points == [] and torch.equal(layer.weight, torch.eye(8, dtype=torch.float64))


def test_the_least_strength_within_the_error_of_the_best_is_chosen():
    start = StrengthPoint(0.0, 0.80, 0.0)
    curve = [start, StrengthPoint(0.3, 0.82, 0.01), StrengthPoint(1.0, 0.825, 0.01), StrengthPoint(3.0, 0.81, 0.01)]
    assert choose_strength(curve) == 0.3
    assert choose_strength([start, StrengthPoint(0.3, 0.81, 0.001), StrengthPoint(1.0, 0.825, 0.001)]) == 1.0
    assert choose_strength([start, StrengthPoint(0.3, 0.82, 0.03)]) == 0.0


def test_as_many_directions_go_as_objects_can_do_without():
    # Place in five channels, of which the last alone tells objects apart.
    subspace = Subspace(torch.eye(8)[:5], torch.full((5,), 0.2), torch.zeros(8))
    views = 3 * noise(40, 1, 8, seed=8) * (torch.arange(8) == 4) + noise(40, 4, 8, seed=9)
    curve = [RemovalPoint(0, 0.8, None), RemovalPoint(2, 0.3, None), RemovalPoint(4, 0.295, None)]
    assert choose_count([*curve, RemovalPoint(5, 0.0, None)], subspace, views) == 2  # 5 would cost too much
    assert choose_count([*curve, RemovalPoint(5, 0.0, None)], subspace, noise(40, 4, 8)) == 5
    assert choose_count([curve[0], RemovalPoint(4, 0.9, None)], subspace, views) == 0


def test_objects_find_themselves_as_often_as_by_hand():
    views = noise(7, 3, 5)
    centred = views - views.mean((0, 1))
    for number, row in enumerate(find_themselves(views)):
        wins = []
        for view in (1, 2):
            cosines = torch.cosine_similarity(centred[number, view][None], centred[:, 0], dim=1)
            wins += [float(cosines[number] > cosine) for other, cosine in enumerate(cosines) if other != number]
        assert float(row) == pytest.approx(sum(wins) / len(wins))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_and_rotation_of_the_features_change_no_strength_and_no_shrinkage(scale):
    views = changed()
    turn = torch.linalg.qr(noise(8, 8, seed=5))[0]
    layer, points = fit_layer(views, plain(8))
    other, others = fit_layer(scale * views @ turn, plain(8))
    assert [point.same_object for point in points] == pytest.approx([point.same_object for point in others])
    torch.testing.assert_close(turn.T @ layer.weight @ turn, other.weight)


def test_more_channels_than_views_are_shrunk_where_they_vary():
    views = noise(16, 3, 100)
    spread = spread_within(views)
    assert len(spread.directions) == 32  # of each object, one view is what the others leave
    torch.testing.assert_close(spread.variances.sum(), torch.tensor(100.0, dtype=torch.float64))
    eigenvalues = torch.linalg.eigvalsh(spread.shrink(1.0))
    torch.testing.assert_close(eigenvalues[-68:], torch.ones(68, dtype=torch.float64))


def test_a_saved_layer_may_be_read_by_whom_the_umask_lets(tmp_path):
    layer = project_out(positional_subspace(torch.randn(5, 9, 6)), 1).to_conv()
    before = os.umask(0o022)
    try:
        save_layer(layer, tmp_path / "layer.safetensors", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "layer.safetensors").stat().st_mode) == 0o644
    torch.testing.assert_close(load_debias(tmp_path / "layer.safetensors").weight, layer.weight)


def test_a_file_of_the_projection_of_before_is_read(tmp_path):
    weight, bias = torch.randn(6, 6, 1, 1), torch.randn(6)
    metadata = {"format": "pt", "decodepos": '{"protocol": "debias-projection/1", "directions": 2}'}
    save_file({"weight": weight, "bias": bias}, tmp_path / "debias_0.safetensors", metadata)
    layer = load_debias(tmp_path / "debias_0.safetensors")
    assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)


def test_the_convolution_does_what_the_layer_does():
    layer, _ = fit_layer(changed(), plain(8))
    maps = torch.randn(2, 8, 3, 4)
    expected = layer(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer.to_conv()(maps), expected, rtol=1e-4, atol=1e-5)
