import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.losses import OBJECTIVES
from modeling_decodepos.modeling_decodepos import DecodePosModel
from modeling_decodepos.regions import View
from tests.training.runs import Make, run_here, small_run
from training import pretrain
from training.data.batches import RegionBatch
from training.pretrain import count_pairs, prepare_views
from training.run.anchor import FeatureAnchor
from training.run.model import build_model
from training.run.setup import Run

CPU = torch.device("cpu")


def anchored_run(make_recipe: Make, folder: Path, backbone: str) -> tuple[Run, RegionBatch]:
    """A run that starts from the saved weights of a backbone."""
    torch.manual_seed(0)
    source = build_model(make_recipe(backbone=backbone).model, 0)
    for module in source.modules():  # as after training: statistics that are not those of any batch
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2.0)
    source.decodepos.save_pretrained(folder)
    # 96 pixels: a multiple of the ViT's patches, and so is half of it.
    run, data = small_run(make_recipe(backbone=str(folder), anchor_weight=1.0, view_size_px=96))
    run.anchor = FeatureAnchor(DecodePosModel.from_pretrained(folder), run.objective, 1.0)
    return run, data.__getitems__([(0, i) for i in range(6)])


def anchor_loss(run: Run, batch: RegionBatch) -> torch.Tensor:
    views = prepare_views(batch, CPU)
    pairs = count_pairs(run, [batch])
    assert run.anchor is not None
    return run.anchor.loss(views, run.model(views, objective=run.objective, num_pairs=pairs).features, pairs)


@pytest.mark.parametrize("backbone", ["resnet_tiny", "vit_tiny"])
def test_nothing_is_forgotten_at_the_start(make_recipe: Make, tmp_path: Path, backbone: str):
    run, batch = anchored_run(make_recipe, tmp_path / backbone, backbone)
    run.net.train()
    assert anchor_loss(run, batch).item() == pytest.approx(-2.0, abs=1e-5)


def test_a_synchronised_anchor_uses_the_statistics_of_all_and_keeps_its_own(make_recipe: Make, tmp_path: Path):
    """What synchronised batch norms compute needs GPUs; here, that the anchor has what the student has."""
    run, _ = anchored_run(make_recipe, tmp_path / "start", "resnet_tiny")
    assert run.anchor is not None
    run.anchor.synchronise()
    norms = [m for m in run.anchor.start.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(type(module) is torch.nn.SyncBatchNorm for module in norms)
    assert all(module.training and module.momentum == 0.0 for module in norms)
    assert not any(parameter.requires_grad for parameter in run.anchor.start.parameters())


def test_the_anchor_pulls_the_student_back_and_never_moves(make_recipe: Make, tmp_path: Path):
    run, batch = anchored_run(make_recipe, tmp_path / "start", "resnet_tiny")
    assert run.anchor is not None
    before = {name: value.clone() for name, value in run.anchor.start.state_dict().items()}
    with torch.no_grad():
        for parameter in run.net.decodepos.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    drifted = anchor_loss(run, batch)
    assert drifted.item() > -1.9
    drifted.backward()
    convolution = run.net.decodepos.backbone.embedder.embedder.convolution.weight
    assert convolution.grad is not None and float(convolution.grad.norm()) > 0
    assert run.net.predictor[0].weight.grad is None  # it is about features, not about what the heads make of them
    with torch.no_grad():
        for parameter in run.net.decodepos.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.05 * parameter.grad)
    assert anchor_loss(run, batch).item() < drifted.item()
    for name, value in run.anchor.start.state_dict().items():
        assert torch.equal(value, before[name]) or "num_batches" in name, name


def test_a_single_region_of_a_single_cell_can_be_anchored(make_recipe: Make):
    start = DecodePosModel(build_model(make_recipe(region_bins=2).model, 0).config)
    anchor = FeatureAnchor(start, OBJECTIVES["both"], 1.0)
    view = View(torch.randn(1, 3, 64, 64), torch.tensor([[[0.1, 0.2, 0.6, 0.9]]]), torch.ones(1, 1, dtype=torch.bool))
    with torch.no_grad():
        embedded = anchor.start(view.pixel_values, regions=[view.boxes[0]]).region_embeddings
    pairs = {(anchor.view, anchor.view): torch.tensor(1.0)}
    assert anchor.loss({anchor.view: view}, {anchor.view: embedded}, pairs).item() == pytest.approx(-2.0, abs=1e-5)


@pytest.mark.parametrize("arm", sorted(OBJECTIVES))
def test_every_arm_has_a_view_for_the_anchor(make_recipe: Make, arm: str):
    start = DecodePosModel(build_model(make_recipe().model, 0).config)
    assert FeatureAnchor(start, OBJECTIVES[arm], 1.0).view in OBJECTIVES[arm].student_views


def test_the_anchor_counts_in_the_update(make_recipe: Make, tmp_path: Path):
    run, batch = anchored_run(make_recipe, tmp_path / "start", "resnet_tiny")
    logged = pretrain.training_step(run, [batch])
    total = sum(float(logged[name]) for name in ("decoupling", "depositioning", "anchor"))
    assert float(logged["loss"]) == pytest.approx(total, abs=1e-5)


def test_an_untrained_network_has_nothing_to_hold_on_to(make_recipe: Make):
    for name in BACKBONES:
        with pytest.raises(ValueError, match=f"anchor_weight is 1, but backbone '{name}' starts untrained"):
            build_model(make_recipe(backbone=name, anchor_weight=1.0).model, 0)


def test_a_continued_run_needs_its_first_weights_no_more(
    recipe_values: dict[str, Any], tmp_path: Path, make_recipe: Make
):
    source = tmp_path / "released"
    build_model(make_recipe().model, 3).decodepos.save_pretrained(source)
    values = recipe_values | {"backbone": source, "anchor_weight": 1.0, "save_steps": 3, "max_steps": 6}
    for name in ("straight", "halves"):
        assert run_here(values | {"output_dir": tmp_path / name}) == 0
    # Taken up in a folder of its own, it begins with its source once more.
    elsewhere = values | {"output_dir": tmp_path / "elsewhere"}
    assert run_here(elsewhere | {"resume": tmp_path / "straight/checkpoints/step_0000003"}) == 0
    shutil.rmtree(tmp_path / "halves/checkpoints/step_0000006")
    shutil.rmtree(source)
    assert run_here(values | {"output_dir": tmp_path / "halves"}) == 0
    straight, *others = (
        load_file(tmp_path / n / "export/pretraining/model.safetensors") for n in ("straight", "halves", "elsewhere")
    )
    assert all(torch.equal(straight[name], other[name]) for name in straight for other in others)
    lines = [json.loads(line) for line in (tmp_path / "halves/log.jsonl").read_text().splitlines()]
    assert all(-2.001 <= line["anchor"] < 0 for line in lines if "loss" in line)
