"""The training path on real photos, where a folder with some is at hand (see CONTRIBUTING.md)."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import training.pretrain as pretrain
from tests.real_data import COCO_MULTIOBJECT as DATA
from tests.training.runs import small_run
from training.data.batches import RegionDataset
from training.data.sources import open_images
from training.recipe import Recipe, ViewArguments
from training.views.sampling import VIEW_RULES

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no folder with real photos")


def test_every_photo_gives_valid_views():
    dataset = RegionDataset(open_images(DATA, "validation"), ViewArguments(view_size_px=64), list(VIEW_RULES))
    assert dataset.source.region_source == "objects"
    batch = dataset.__getitems__([(0, index) for index in range(0, 420, 7)])
    for name, view in batch.views.items():
        boxes = view.boxes[view.valid_regions]
        assert (boxes[:, 2:] > boxes[:, :2]).all(), name
        assert boxes.min() >= 0, name
        assert boxes.max() <= 1, name
        assert view.pixel_values.flatten(1).float().std(1).min() > 1, f"{name}: a blank picture"
    assert batch.views["crop"].valid_regions.any(1).all()
    assert batch.views["crop"].valid_regions.sum(1).float().mean() > 2


def test_on_photos_too_rigid_foregrounds_often_have_nowhere_to_go():
    """Why the default scales the foreground: the paper's rigid size leaves many photos without slack."""
    share = {}
    for kind in ("scaled", "paper"):
        dataset = RegionDataset(
            open_images(DATA, "validation"),
            ViewArguments(view_size_px=64, repositioning=kind),
            ["crop", "repositioned"],
        )
        batch = dataset.__getitems__([(0, index) for index in range(0, 420, 4)])
        share[kind] = float(batch.can_move.float().mean()), float(batch.slack.mean())
    assert share["scaled"][0] == 1.0
    assert share["paper"][0] < 0.98
    assert share["scaled"][1] > share["paper"][1] + 0.1


def test_a_step_on_photos_is_finite_and_moves_the_student(make_recipe: Callable[..., Recipe]):
    run, data = small_run(make_recipe(data=str(DATA)))
    before = run.net.projector[0].weight.clone()
    logged = pretrain.training_step(run, [data.__getitems__([(0, index) for index in range(8)])])
    assert torch.isfinite(logged["loss"])
    assert np.isfinite(float(logged["embedding_std"]))
    assert not torch.equal(run.net.projector[0].weight, before)
