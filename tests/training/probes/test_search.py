"""Searching an object in another scene: planted networks that must find it, and that cannot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from modeling_decodepos import DecodePosConfig, DecodePosModel
from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.batch_norms import batch_norms
from modeling_decodepos.region_pooling import pool_regions
from training.probes.find import main
from training.probes.search import (
    OVERLAP,
    cover,
    load,
    overlaps,
    search_objects,
    share_by_chance,
    share_found,
    untrained,
)


class Planted(nn.Module):
    """A network whose feature of a region is what `read` makes of its pixels (B, R, 3, 4, 4) and box (B, R, 4)."""

    def __init__(self, read):
        super().__init__()
        self.read, self.scale = read, nn.Parameter(torch.ones(()))

    def forward(self, pixels: Tensor, regions: list[Tensor]) -> SimpleNamespace:
        most = max(map(len, regions))
        boxes = torch.stack([torch.cat([rows, rows[:1].expand(most - len(rows), 4)]) for rows in regions])
        valid = torch.stack([torch.arange(most) < len(rows) for rows in regions])
        features = self.read(pool_regions(pixels, boxes, 4), boxes)
        return SimpleNamespace(region_embeddings=features, valid_regions=valid)


def content(pooled: Tensor, boxes: Tensor) -> Tensor:
    return pooled.flatten(2)


def place(pooled: Tensor, boxes: Tensor) -> Tensor:
    return torch.cat([boxes, boxes**2], -1)


def test_a_network_that_sees_content_finds_objects_and_one_that_sees_place_does_not():
    seen = search_objects(Planted(content), count=24)
    placed = search_objects(Planted(place), count=24)
    assert share_found(seen).value > 0.9
    assert share_found(placed).value < 0.1
    assert share_by_chance(seen) < 0.1
    assert [s.is_found for s in search_objects(Planted(content), count=3)] == [s.is_found for s in seen[:3]]


def test_boxes_cover_the_scene_and_the_object_is_among_them():
    boxes = cover(torch.tensor([0.25, 0.5]))
    assert torch.allclose(boxes.amin(0)[:2], torch.zeros(2)) and torch.allclose(boxes.amax(0)[2:], torch.ones(2))
    assert torch.allclose(boxes[:, 2:] - boxes[:, :2], torch.tensor([0.25, 0.5]))
    assert boxes[1, 0] > boxes[0, 0] and boxes[1, 1] == boxes[0, 1]  # row by row
    square = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5], [0.5, 0.5, 1.0, 1.0]])
    assert overlaps(square, square[0]).tolist() == pytest.approx([1.0, 1 / 3, 0.0])
    assert all(search.overlap.max() > OVERLAP for search in search_objects(Planted(content), count=8))


def test_an_untrained_twin_has_norms_that_saw_scenes_and_weights_that_learned_nothing():
    model = DecodePosModel(DecodePosConfig(backbone_config=BACKBONES["resnet_mini"](), region_bins=4)).eval()
    twin, again, other = (untrained(model, seed, 64) for seed in (0, 0, 1))
    for key, value in twin.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = DecodePosModel(twin.config)
    assert all(torch.equal(one, two) for one, two in zip(twin.parameters(), fresh.parameters(), strict=True))
    first, last = (norms[k] for norms, k in ((batch_norms(twin), 0), (batch_norms(twin), -1)))
    assert first.running_mean.abs().min() > 0 and last.running_mean.abs().min() > 0
    assert not torch.equal(first.running_mean, batch_norms(other)[0].running_mean)
    assert not any(module.training for module in twin.modules())
    # What the last norm is shown in a search is about what it was fitted to.
    shown = []
    last.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].mean((0, 2, 3))))
    search_objects(twin, count=8, size_px=64)
    found = torch.stack(shown).mean(0)
    assert F.cosine_similarity(found, last.running_mean, dim=0) > 0.7


def test_the_command_compares_with_the_untrained_twin(tmp_path: Path, capsys: pytest.CaptureFixture):
    torch.manual_seed(0)
    folder = tmp_path / "model"
    DecodePosModel(DecodePosConfig(backbone_config=BACKBONES["resnet_tiny"](), region_bins=2)).save_pretrained(folder)
    output = tmp_path / "new" / "found.png"
    main([str(folder), "--output", str(output), "--count", "4", "--untrained", "1"])
    shown = capsys.readouterr().out
    assert "untrained  finds" in shown and "of 4 objects" in shown and "by chance" in shown
    with Image.open(output) as picture:
        assert picture.width > picture.height
    # Beside itself, a network finds what it finds.
    main([str(folder), "--before", str(folder), "--output", str(output), "--count", "4"])
    before, after = capsys.readouterr().out.splitlines()[:2]
    assert before.split() == ["before", *after.split()[1:]] and after.split()[0] == "after"
    with pytest.raises(SystemExit):
        main([str(folder), "--output", str(output), "--count", "1"])
    assert "at least 4" in capsys.readouterr().err
    centred = {name: load(f"random:{name}", True).config.centre_cells for name in ("resnet_tiny", "vit_tiny")}
    assert centred == {"resnet_tiny": True, "vit_tiny": False}
    with pytest.raises(SystemExit, match="error: "):
        main([str(tmp_path / "nothing"), "--output", str(output)])
