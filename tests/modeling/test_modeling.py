"""The model: student and teacher, the split backbone, ragged regions, masks, other backbones, bad input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    DeiTConfig,
    Dinov2Config,
    EfficientNetConfig,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RegNetConfig,
    ResNetBackbone,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

from modeling_decodepos import (
    OBJECTIVES,
    DecodePosBackbone,
    DecodePosConfig,
    DecodePosForPreTraining,
    DecodePosModel,
    View,
    ema_update,
    feature_maps,
    pool_regions,
)
from modeling_decodepos.regions import Regions, check_regions
from tests.modeling.conftest import (
    BACKBONES,
    BOXES,
    pretraining_model,
    shake,
    tiny_config,
    tiny_resnet,
    tiny_views,
)
from training.export.folders import export_backbone

NAN = float("nan")


def region_model(**changes: Any) -> DecodePosModel:
    return shake(DecodePosModel(tiny_config(**changes))).eval()


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


def assert_all_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


# --- student and teacher


def test_targets_come_from_the_teacher_and_predictions_from_the_student() -> None:
    model, views = pretraining_model().eval(), tiny_views()
    before = model(views)
    shake(model.teacher)
    after = model(views)
    for name in OBJECTIVES["both"].student_views:
        assert torch.equal(before.predictions[name], after.predictions[name])
    for name in OBJECTIVES["both"].teacher_views:
        assert not torch.isclose(before.targets[name], after.targets[name], atol=1e-3).all()
    shake(model.decodepos)
    last = model(views)
    for name in OBJECTIVES["both"].teacher_views:
        assert torch.equal(after.targets[name], last.targets[name])
    for name in OBJECTIVES["both"].student_views:
        assert not torch.isclose(after.predictions[name], last.predictions[name], atol=1e-3).all()


def test_a_forward_pass_by_hand() -> None:
    model, views = pretraining_model().eval(), tiny_views()
    output = model(views)
    for name, bins in {"crop_cut_small": 2, "whole_cut": 4, "repositioned": 4}.items():
        view = views[name]
        rows = model.decodepos.embed_regions(
            model.decodepos.feature_map(view.pixel_values), Regions(view.boxes, view.valid_regions), bins
        )
        expected = model.predictor(model.projector(rows)).view(2, 3, 8)
        torch.testing.assert_close(output.predictions[name], expected)
    for name in ("whole_cut", "crop"):
        view, teacher = views[name], model.teacher["decodepos"]
        embeddings = teacher(view.pixel_values, regions=view.boxes).region_embeddings
        torch.testing.assert_close(
            output.targets[name], model.teacher["projector"](embeddings.flatten(0, 1)).view(2, 3, 8)
        )
    total = sum(output.terms.values())
    torch.testing.assert_close(output.loss.detach(), total)
    assert set(output.terms) == {"decoupling", "depositioning"}


def test_the_half_size_view_gets_half_the_bins() -> None:
    """SoCo pools to 14 x 14 at 224 pixels and to 7 x 7 at 112."""
    model = shake(pretraining_model(region_bins=14), 0.2).eval()
    views = tiny_views(sizes={"crop_cut_small": 112, "whole_cut": 224, "crop": 224, "repositioned": 224})
    output, small = model(views), views["crop_cut_small"]
    features = model.decodepos.feature_map(small.pixel_values)
    assert features.shape[-2:] == (7, 7)

    def predicted(bins: int) -> Tensor:
        rows = model.decodepos.embed_regions(features, Regions(small.boxes, small.valid_regions), bins)
        return model.predictor(model.projector(rows)).view(2, 3, 8)

    torch.testing.assert_close(output.predictions["crop_cut_small"], predicted(7))
    assert not torch.allclose(output.predictions["crop_cut_small"], predicted(14), atol=1e-3)


def test_no_gradient_reaches_the_teacher() -> None:
    model = pretraining_model().train()
    model(tiny_views()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # A bias right before a batch norm cancels out; everything else learns.
    assert all(n.endswith(".0.bias") for n in without)
    assert not any(target.requires_grad for target in model(tiny_views()).targets.values())


def test_the_teacher_gathers_its_own_statistics() -> None:
    model = pretraining_model().train()
    before = statistics(model.teacher)
    with torch.no_grad():
        model(tiny_views())
    after = statistics(model.teacher)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    for name, buffer in statistics(model.student).items():
        assert not torch.equal(after[name], buffer)


def test_ema_moves_parameters_by_exactly_one_minus_momentum() -> None:
    model = pretraining_model()
    before = {n: p.detach().double() for n, p in model.teacher.named_parameters()}
    student = {n: p.detach().clone() for n, p in model.student.named_parameters()}
    buffers = statistics(model.teacher)
    model.update_teacher(0.99)
    for name, parameter in model.teacher.named_parameters():
        expected = 0.99 * before[name] + 0.01 * student[name].double()
        torch.testing.assert_close(parameter.double(), expected, atol=1e-7, rtol=1e-6)
        assert not torch.equal(parameter.double(), before[name])
    assert_all_equal(statistics(model.teacher), buffers)  # batch-norm statistics are not copied
    assert_all_equal(dict(model.student.named_parameters()), student)


def test_ema_at_its_two_ends() -> None:
    model = pretraining_model()
    before = {n: p.detach().clone() for n, p in model.teacher.named_parameters()}
    model.update_teacher(1.0)
    assert_all_equal(dict(model.teacher.named_parameters()), before)
    model.update_teacher(0.0)
    assert_all_equal(dict(model.teacher.named_parameters()), dict(model.student.named_parameters()))


def test_ema_works_for_any_two_equal_modules_and_refuses_others() -> None:
    teacher, student = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        teacher.weight.copy_(torch.tensor([[1.0, 2.0]]))
        student.weight.copy_(torch.tensor([[3.0, -2.0]]))
    ema_update(teacher, student, 0.75)
    assert teacher.weight.tolist() == [[1.5, 1.0]]
    with pytest.raises(ValueError, match=r"differ in .*bias"):
        ema_update(teacher, nn.Linear(2, 1, bias=False), 0.9)
    with pytest.raises(ValueError, match=r"differ in .*bias.*weight"):
        ema_update(nn.Linear(2, 4), nn.Linear(2, 1), 0.9)  # would broadcast
    for momentum in (1.5, -0.1, NAN):
        with pytest.raises(ValueError, match="momentum is"):
            ema_update(teacher, student, momentum)


def test_a_fresh_teacher_equals_the_student_and_is_frozen() -> None:
    model = DecodePosForPreTraining(tiny_config())
    assert_all_equal(model.teacher.state_dict(), model.student.state_dict())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert all(p.requires_grad for p in model.student.parameters())
    memory = {p.data_ptr() for p in model.student.parameters()}
    assert not memory & {p.data_ptr() for p in model.teacher.parameters()}


def test_without_a_predictor_the_projection_is_compared() -> None:
    model, views = pretraining_model(use_predictor=False).eval(), tiny_views()
    assert not list(model.predictor.parameters())
    view = views["whole_cut"]
    embeddings = model.decodepos(view.pixel_values, regions=view.boxes).region_embeddings
    expected = model.projector(embeddings.flatten(0, 1)).view(2, 3, 8)
    torch.testing.assert_close(model(views).predictions["whole_cut"], expected)


def test_initial_weights() -> None:
    model = DecodePosForPreTraining(tiny_config(tiny_resnet(hidden_sizes=[32, 64, 64, 64], depths=[1, 1, 1, 1])))
    last, first = [], []
    for module in model.modules():
        if type(module).__name__ == "ResNetBasicLayer":
            first.append(module.layer[0].normalization.weight)
            last.append(module.layer[-1].normalization.weight)
    assert len(last) == 8
    assert not any(weight.any() for weight in last)
    assert all((weight == 1).all() for weight in first)
    convolution = model.decodepos.backbone.encoder.stages[1].layers[0].layer[1].convolution.weight
    assert convolution.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # Kaiming, fan out
    linear = model.projector[0]
    assert linear.weight.abs().max().item() == pytest.approx(1 / 64**0.5, rel=0.05)  # torch's own default
    assert linear.bias.any()

    plain = DecodePosForPreTraining(tiny_config(zero_init_residual=False))
    blocks = [m for m in plain.modules() if type(m).__name__ == "ResNetBasicLayer"]
    assert all((block.layer[-1].normalization.weight == 1).all() for block in blocks)


# --- the split backbone


@pytest.mark.parametrize("kind", ["resnet_basic", "resnet_bottleneck"])
def test_one_region_over_the_whole_image_is_the_plain_resnet(kind: str) -> None:
    model = region_model(backbone_config=BACKBONES[kind][0])
    plain = ResNetModel(model.backbone.config)
    plain.load_state_dict(model.backbone.state_dict(), strict=True)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain.eval()(pixels)
        output = model(pixels)
        regions = model(pixels, regions=torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]).expand(2, 1, 4))
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(output.pooler_output, expected.pooler_output.flatten(1))
    assert output.region_embeddings is None
    assert output.feature_map.shape == (2, 12, 4, 4)  # stage 3: stride 16
    torch.testing.assert_close(
        regions.region_embeddings[:, 0], expected.pooler_output.flatten(1), atol=1e-5, rtol=1e-5
    )
    assert regions.last_hidden_state is None
    assert torch.equal(regions.feature_map, output.feature_map)


def test_the_backbone_is_a_plain_resnet_key_by_key() -> None:
    config = tiny_resnet()
    assert DecodePosModel(tiny_config()).backbone.state_dict().keys() == ResNetModel(config).state_dict().keys()


def test_a_region_stage_runs_on_the_region_alone() -> None:
    """Pooling first and running stage 4 after it keeps neighbours out of the stage; the other order lets them in."""
    model = region_model()
    boxes = torch.tensor([[[0.0, 0.0, 0.25, 0.25]]])
    features = torch.randn(1, 12, 4, 4)
    changed = features.clone()
    changed[..., 2:] += 1.0  # out of reach of the box's bilinear samples
    checked = check_regions(boxes, 1)
    one, other = (model.embed_regions(f, checked, 4) for f in (features, changed))
    assert torch.equal(one, other)
    assert not torch.allclose(
        model.apply_region_stage(features)[..., 0, 0], model.apply_region_stage(changed)[..., 0, 0]
    )


@pytest.mark.parametrize("bins", [7, 14])
def test_bins_are_a_choice(bins: int) -> None:
    model = region_model(region_bins=bins)
    output = model(torch.randn(2, 3, 96, 96), regions=BOXES)
    pooled = pool_regions(output.feature_map, BOXES, bins).flatten(0, 1)
    expected = model.backbone.encoder.stages[-1](pooled).mean((2, 3)).view(2, 3, 16)
    torch.testing.assert_close(output.region_embeddings, expected)


@pytest.mark.parametrize("changes", [{}, {"downsample_in_first_stage": True}])
def test_centred_cells_are_read_where_they_look(changes: dict[str, Any]) -> None:
    model = region_model(backbone_config=tiny_resnet(**changes), centre_cells=True)
    pixels = torch.randn(2, 3, 128, 128)
    stride = 128 // model.feature_map(pixels).shape[-1]
    assert model.config.map_stride == stride
    # A box moved by half a stride less half a pixel, read as always, is the box read at the centres.
    moved = (BOXES + (stride - 1) / 2 / 128).clamp(max=1)
    inside = (BOXES[..., 2:] + stride / 128 < 1).all(-1)
    assert inside.sum() >= 2
    centred = model(pixels, regions=BOXES).region_embeddings
    model.config.centre_cells = False
    torch.testing.assert_close(centred[inside], model(pixels, regions=moved).region_embeddings[inside])
    assert not torch.allclose(centred, model(pixels, regions=BOXES).region_embeddings, atol=1e-4)


@pytest.mark.parametrize("kind", ["convnext", "dinov2", "swin"])
def test_patches_have_their_centres_already(kind: str) -> None:
    with pytest.raises(Exception, match="centre_cells is true, but the cells of"):
        tiny_config(BACKBONES[kind][0], centre_cells=True)


def test_without_a_region_stage_regions_are_read_from_the_last_map_of_the_plain_backbone() -> None:
    model, pixels = region_model(region_stage=False), torch.randn(2, 3, 128, 128)
    plain = ResNetModel(model.config.backbone_config).eval()
    plain.load_state_dict(model.backbone.state_dict())
    last = plain(pixels).last_hidden_state
    torch.testing.assert_close(model.feature_map(pixels), last)
    expected = pool_regions(last, BOXES, model.config.region_bins).mean((3, 4))
    torch.testing.assert_close(model(pixels, regions=BOXES).region_embeddings, expected)
    assert not torch.allclose(region_model()(pixels, regions=BOXES).region_embeddings, expected, atol=1e-3)
    with pytest.raises(Exception, match="centre_cells is true"):
        region_model(region_stage=False, centre_cells=True)


# --- ragged regions


def test_ragged_lists_equal_images_on_their_own() -> None:
    model, pixels = region_model(), torch.randn(3, 3, 64, 64)
    ragged = [BOXES[0], torch.zeros(0, 4), BOXES[1, :1]]
    output = model(pixels, regions=ragged)
    assert output.valid_regions.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    for image in (0, 2):
        alone = model(pixels[image : image + 1], regions=[ragged[image]]).region_embeddings[0]
        torch.testing.assert_close(output.region_embeddings[image, : len(alone)], alone, atol=1e-5, rtol=1e-5)
    assert not output.region_embeddings[~output.valid_regions].any()


def test_the_order_of_regions_and_images_does_not_matter() -> None:
    model, pixels = region_model(), torch.randn(2, 3, 64, 64)
    output = model(pixels, regions=BOXES).region_embeddings
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(pixels, regions=BOXES[:, order]).region_embeddings, output[:, order])
    torch.testing.assert_close(model(pixels.flip(0), regions=BOXES.flip(0)).region_embeddings, output.flip(0))
    assert not torch.allclose(output[:, 0], output[:, 1], atol=1e-3)


def run(model: DecodePosForPreTraining, views: dict[str, View], **kwargs: Any) -> tuple[dict[str, Tensor], ...]:
    """Loss and outputs, gradients and statistics of one training step from the model's present state."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train().zero_grad(set_to_none=True)
    output = model(views, **kwargs)
    output.loss.backward()
    values = (
        {"loss": output.loss.detach()}
        | {f"p {n}": p.detach() for n, p in output.predictions.items()}
        | {f"t {n}": t for n, t in output.targets.items()}
    )
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    gathered = statistics(model)
    model.load_state_dict(state)
    return values, gradients, gathered


GARBAGE = [[NAN, NAN, NAN, NAN], [-5.0, float("inf"), 100.0, 2.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]


def test_padding_rows_never_leak() -> None:
    """Not into values, gradients or any batch statistic, whatever they hold and however many there are."""
    model, boxes = pretraining_model(), BOXES[:, :2]
    views = tiny_views(boxes)
    plain = run(model, views)
    for row in GARBAGE:
        padding = torch.tensor(row).expand(2, 3, 4)
        valid = torch.tensor([[True, False, True, False, False]] * 2)
        places = valid[0].nonzero()[:, 0]
        padded = torch.cat([boxes[:, :1], padding[:, :1], boxes[:, 1:], padding[:, 1:]], dim=1)
        values, gradients, gathered = run(model, tiny_views(padded, valid))
        assert all(not value[:, ~valid[0]].any() for name, value in values.items() if name != "loss")
        kept = {name: v if name == "loss" else v[:, places] for name, v in values.items()}
        for found, expected in zip((kept, gradients, gathered), plain, strict=True):
            assert found.keys() == expected.keys()
            for name, value in found.items():  # equal but for the order of sums
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_ragged_training_equals_a_run_region_by_region() -> None:
    """The region stage sees the statistics of the real regions, where images have 3 and 1 of them."""
    model = pretraining_model().train()
    valid = torch.tensor([[True, True, True], [False, True, False]])
    boxes = BOXES.masked_fill(~valid[..., None], NAN)
    view = tiny_views(boxes, valid)["crop"]
    rows = [BOXES[0, 0], BOXES[0, 1], BOXES[0, 2], BOXES[1, 1]]
    reference, model_rows = shake(DecodePosModel(model.config)), None
    reference.load_state_dict(model.decodepos.state_dict())
    reference.train()
    features = reference.feature_map(view.pixel_values)
    pooled = [
        pool_regions(features[image : image + 1], box[None, None], 4)[0]
        for image, box in zip((0, 0, 0, 1), rows, strict=True)
    ]
    expected = reference.backbone.encoder.stages[-1](torch.cat(pooled)).mean((2, 3))
    output = model.decodepos(view.pixel_values, regions=boxes, valid_regions=valid)
    model_rows = output.region_embeddings[valid]
    torch.testing.assert_close(model_rows, expected, atol=1e-5, rtol=1e-5)
    for (name, one), other in zip(statistics(model.decodepos).items(), statistics(reference).values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize(("columns", "synchronised"), [(3, False), (0, False), (3, True)])
def test_a_batch_without_any_region(columns: int, synchronised: bool) -> None:
    model = pretraining_model()
    if synchronised:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    views = tiny_views(BOXES[:, :columns], torch.zeros(2, columns, dtype=torch.bool))
    before = statistics(model)
    values, gradients, gathered = run(model, views)
    assert values["loss"] == 0
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained  # distributed training waits for every one of them
    assert not any(gradient.any() for gradient in gradients.values())
    heads = {n for n in gathered if "projector" in n or "predictor" in n or "stages.3" in n or synchronised}
    assert heads
    assert_all_equal({n: gathered[n] for n in heads}, {n: before[n] for n in heads})
    assert all(statistic.isfinite().all() for statistic in gathered.values())
    with torch.no_grad():
        output = model.decodepos(torch.randn(2, 3, 64, 64), regions=[torch.zeros(0, 4)] * 2)
    assert output.region_embeddings.shape == (2, 0, 16)


@pytest.mark.parametrize("region_bins", [1, 2, 4, 14])
def test_a_batch_with_a_single_region(region_bins: int) -> None:
    """Even where the region stage leaves one cell, and so no variance to normalise by."""
    model = pretraining_model(region_bins=region_bins)
    valid = torch.tensor([[False, True, False], [False, False, False]])
    values, gradients, gathered = run(model, tiny_views(valid=valid))
    assert -8 <= values["loss"] <= 8
    assert values["loss"] != 0
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["decodepos.backbone.embedder.embedder.convolution.weight"].any()
    assert all(statistic.isfinite().all() for statistic in gathered.values())
    assert all(module.training for module in model.modules())


def test_a_view_of_some_images_only() -> None:
    """The mixed view may exist for a share of the batch: then it counts for these images and for no other."""
    model, views = pretraining_model().eval(), tiny_views()
    full = model(views)
    moved = views["repositioned"]
    rows = torch.tensor([1])
    views["repositioned"] = View(moved.pixel_values[rows], moved.boxes[rows], moved.valid_regions[rows], rows)
    part = model(views)
    torch.testing.assert_close(part.predictions["repositioned"][1], full.predictions["repositioned"][1])
    assert not part.predictions["repositioned"][0].any()
    assert torch.equal(part.terms["decoupling"], full.terms["decoupling"])
    views["repositioned"] = moved
    moved.valid_regions[0] = False
    torch.testing.assert_close(model(views).terms["depositioning"], part.terms["depositioning"])
    # No image has it: the other term goes on.
    views["repositioned"] = View(moved.pixel_values[:0], moved.boxes[:0], moved.valid_regions[:0], rows[:0])
    nobody = model(views)
    assert nobody.terms["depositioning"] == 0
    assert torch.equal(nobody.terms["decoupling"], full.terms["decoupling"])
    values, gradients, _ = run(model, views)
    assert values["loss"].isfinite()
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}


def test_num_pairs_make_split_batches_add_up() -> None:
    """With statistics fixed, two halves with the global counts give the loss and the gradients of the whole batch."""
    model = pretraining_model().eval()
    valid = torch.tensor([[True, True, True], [False, True, False]])
    views = tiny_views(valid=valid)
    objective = OBJECTIVES["both"]
    counts = {pair: valid.sum() for term in objective.terms for pair in term.pairs}
    model(views).loss.backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = []
    for image in (0, 1):
        half = {
            name: View(*(part[image : image + 1] for part in (v.pixel_values, v.boxes, v.valid_regions)))
            for name, v in views.items()
        }
        losses.append(model(half, num_pairs=counts).loss)
        losses[-1].backward()
    torch.testing.assert_close(sum(losses), model(views).loss)
    for name, gradient in whole.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-4, msg=name)


# --- masks


def box_mask(box: tuple[int, int, int, int], side: int = 32) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.mark.parametrize("kind", ["resnet_basic", "convnext"])
def test_a_mask_that_fills_its_box_is_the_box(kind: str) -> None:
    model = region_model(backbone_config=BACKBONES[kind][0])
    pixels = torch.randn(2, 3, 64, 64)
    ragged = [[(4, 2, 20, 26), (0, 0, 32, 32)], [(7, 9, 10, 10)]]
    masks = [torch.stack([box_mask(box) for box in boxes]) for boxes in ragged]
    boxes = [torch.tensor(boxes) / 32 for boxes in ragged]
    of_masks, of_boxes = model(pixels, regions=masks), model(pixels, regions=boxes)
    assert torch.equal(of_masks.valid_regions, of_boxes.valid_regions)
    torch.testing.assert_close(of_masks.region_embeddings, of_boxes.region_embeddings, atol=1e-5, rtol=1e-5)


def test_a_mask_averages_what_it_covers() -> None:
    """Without a region stage: the mean over the covered bins only, whatever lies in the rest of the box."""
    model = region_model(backbone_config=BACKBONES["convnext"][0], region_bins=8)
    features = torch.zeros(1, 16, 8, 8)
    features[..., 4:] = 1.0
    left, right = box_mask((0, 0, 16, 32)), box_mask((16, 0, 32, 32))
    corners = torch.zeros(32, 32, dtype=torch.bool)
    corners[0, 0] = corners[31, 31] = True
    left_with_corner = left | corners
    masks = torch.stack([left_with_corner, right | corners, left | right])[None]
    checked = check_regions(masks, 1)
    assert checked.boxes[0].tolist() == [[0.0, 0.0, 1.0, 1.0]] * 3
    mostly_left, mostly_right, both = model.embed_regions(features, checked, 8)[:, 0].tolist()
    assert mostly_left == pytest.approx(1 / (16 * 32 + 1), abs=1e-4)
    assert mostly_right == pytest.approx(1 - 1 / (16 * 32 + 1), abs=1e-4)
    assert both == pytest.approx(0.5)


def test_what_a_mask_leaves_out_does_not_count() -> None:
    model = region_model(backbone_config=BACKBONES["convnext"][0], region_bins=4)
    shape = box_mask((0, 0, 16, 32)) | box_mask((0, 0, 32, 8))  # an L
    features = torch.randn(1, 16, 4, 4)
    changed = features.clone()
    changed[..., 1:, 2:] = 100.0
    checked = check_regions([shape[None]], 1)
    assert torch.equal(model.embed_regions(features, checked, 4), model.embed_regions(changed, checked, 4))
    box = check_regions([torch.tensor([[0.0, 0.0, 1.0, 1.0]])], 1)
    assert not torch.allclose(model.embed_regions(features, box, 4), model.embed_regions(changed, box, 4))
    half = region_model()
    pixels = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(
        half(pixels, regions=[shape[None]]).region_embeddings,
        half(pixels, regions=box.boxes).region_embeddings,
        atol=1e-4,
    )


def test_masks_may_have_their_own_resolution_and_garbage_in_padding() -> None:
    model, pixels = region_model(), torch.randn(2, 3, 64, 64)
    small = [torch.stack([box_mask((4, 2, 20, 26))]), torch.zeros(0, 32, 32, dtype=torch.bool)]
    large = [mask.repeat_interleave(4, 1).repeat_interleave(4, 2) for mask in small]
    one, other = (model(pixels, regions=masks).region_embeddings for masks in (small, large))
    torch.testing.assert_close(one, other)
    padded = torch.rand(2, 2, 32, 32) < 0.5
    padded[1] = False
    padded[0, 0] = small[0][0]
    valid = torch.tensor([[True, False], [False, False]])
    output = model(pixels, regions=padded, valid_regions=valid).region_embeddings
    torch.testing.assert_close(output[0, 0], one[0, 0])
    assert not output[~valid].any()


# --- other backbones


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_backbone_trains_from_a_config(kind: str) -> None:
    config, side = BACKBONES[kind]
    model = shake(DecodePosForPreTraining(tiny_config(config)))
    small = side // 2
    sizes = {"crop_cut_small": small, "whole_cut": side, "crop": side, "repositioned": side}
    values, gradients, _ = run(model, tiny_views(sizes=sizes))
    assert -8 <= values["loss"] <= 8
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    without = {n for n, p in model.named_parameters() if p.requires_grad} - gradients.keys()
    # No map depends on DINO's mask token, nor on the norm of Swin's classifier.
    assert all("mask_token" in name or "swin.layernorm" in name for name in without)
    first = next(iter(dict(model.decodepos.backbone.named_parameters())))
    assert gradients.get(f"decodepos.backbone.{first}", torch.ones(1)).any()
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_a_dictionary_builds_the_same_backbone_and_is_left_alone() -> None:
    config = BACKBONES["dinov2"][0]
    dictionary = config.to_dict()
    before = dict(dictionary)
    torch.manual_seed(3)
    one = DecodePosModel(tiny_config(config))
    torch.manual_seed(3)
    other = DecodePosModel(DecodePosConfig(backbone_config=dictionary, region_bins=4))
    assert dictionary == before
    assert_all_equal(one.state_dict(), other.state_dict())


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Swin and DINOv3 keep their weights one level deeper in the backbone class than in the plain one."""
    return {re.sub(r"^(swin|model|resnet|convnext|dinov2)\.", "", name): value for name, value in state.items()}


@pytest.mark.parametrize("form", ["backbone", "model"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_every_backbone_starts_from_a_checkpoint(kind: str, form: str, tmp_path: Path) -> None:
    config, side = BACKBONES[kind]
    mapping = MODEL_FOR_BACKBONE_MAPPING if form == "backbone" else MODEL_MAPPING
    source: PreTrainedModel = shake(mapping[type(config)](config)).eval()
    source.save_pretrained(tmp_path)
    model = DecodePosForPreTraining.from_backbone(tmp_path, region_bins=4, projector_hidden_size=24, projection_size=8)
    model.eval()
    given, taken = without_prefix(source.state_dict()), without_prefix(model.decodepos.backbone.state_dict())
    fresh = {name for name in taken if name not in given}
    assert all(name.startswith("hidden_states_norms") for name in fresh)
    assert len(taken) > 15
    assert_all_equal({n: v for n, v in taken.items() if n in given}, {n: v for n, v in given.items() if n in taken})
    assert_all_equal(model.teacher.state_dict(), model.student.state_dict())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    pixels = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected = source(pixels)
        output = model.decodepos(pixels)
    if form == "backbone":
        torch.testing.assert_close(output.last_hidden_state, expected.feature_maps[-1])
    elif kind.startswith("resnet"):
        torch.testing.assert_close(output.pooler_output, expected.pooler_output.flatten(1))


def test_starting_from_a_classifier_a_loaded_model_or_one_of_ours(tmp_path: Path) -> None:
    from transformers import ResNetForImageClassification, SwinModel

    heads = {"projector_hidden_size": 24, "projection_size": 8}
    classifier = shake(ResNetForImageClassification(tiny_resnet()))
    classifier.save_pretrained(tmp_path / "classifier")
    model = DecodePosForPreTraining.from_backbone(tmp_path / "classifier", **heads)
    assert_all_equal(model.decodepos.backbone.state_dict(), classifier.resnet.state_dict())

    for loaded in (shake(ResNetModel(tiny_resnet())), shake(ResNetBackbone(tiny_resnet(out_features=["stage2"])))):
        model = DecodePosForPreTraining.from_backbone(loaded, **heads)
        assert_all_equal(model.decodepos.backbone.state_dict(), loaded.state_dict())
        assert_all_equal(model.teacher["decodepos"].backbone.state_dict(), loaded.state_dict())
        assert loaded.config.out_features == loaded.out_features if isinstance(loaded, ResNetBackbone) else True

    ours = pretraining_model()
    ours.save_pretrained(tmp_path / "ours")
    model = DecodePosForPreTraining.from_backbone(tmp_path / "ours", **heads)
    assert_all_equal(model.decodepos.state_dict(), ours.decodepos.state_dict())  # the student's, with fresh heads
    assert not torch.equal(model.projector[0].weight, ours.projector[0].weight)

    with pytest.raises(ValueError, match=r"SwinModel do not fit a SwinBackbone.*folder or Hub id"):
        DecodePosModel.from_backbone(SwinModel(BACKBONES["swin"][0]))


def test_the_backbone_class_keeps_the_norms_of_every_map(tmp_path: Path) -> None:
    """ConvNeXt's backbone class normalises each map it returns; such weights of a checkpoint must not get lost."""
    from transformers import ConvNextBackbone, ConvNextConfig

    names = ["stage1", "stage2", "stage3", "stage4"]
    config = ConvNextConfig(hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], out_features=names)
    source = shake(ConvNextBackbone(config)).eval()
    source.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    for given in (tmp_path, source):
        backbone = DecodePosBackbone.from_backbone(given, out_features=names).eval()
        maps = backbone(pixels).feature_maps
        for ours, theirs in zip(maps, source(pixels).feature_maps, strict=True):
            torch.testing.assert_close(ours, theirs)


SMALL_TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
# Networks without a backbone class, the side of their pictures, and the stride of their map.
MAP_NETWORKS: dict[str, tuple[PreTrainedConfig, int, int]] = {
    "mobilenet_v2": (MobileNetV2Config(depth_multiplier=0.25), 64, 32),
    "efficientnet": (EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320), 64, 32),
    "regnet": (
        RegNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], groups_width=4),
        64,
        32,
    ),
    "vit": (ViTConfig(image_size=32, patch_size=8, **SMALL_TRANSFORMER), 64, 8),
    "deit": (DeiTConfig(image_size=32, patch_size=8, **SMALL_TRANSFORMER), 32, 8),
}


def test_a_network_is_tried_out_once_for_its_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    try_out = feature_maps._try_out
    monkeypatch.setattr(feature_maps, "_CHANNELS", {})
    monkeypatch.setattr(feature_maps, "_try_out", lambda config: tried.append(config) or try_out(config))
    widths = [[8, 8, 12, 16], [8, 8, 12, 24]]
    for number, hidden_sizes in enumerate(widths):
        config = RegNetConfig(embedding_size=8, hidden_sizes=hidden_sizes, depths=[1, 1, 1, 1], groups_width=4)
        AutoModel.from_config(config).save_pretrained(tmp_path / str(number))
        for _ in range(2):
            model = DecodePosModel.from_backbone(tmp_path / str(number))
            assert model.config.map_channels == hidden_sizes[-1]
        assert len(tried) == number + 1


@pytest.mark.parametrize("kind", MAP_NETWORKS)
def test_networks_without_a_backbone_class_give_their_last_hidden_state(kind: str, tmp_path: Path) -> None:
    config, side, stride = MAP_NETWORKS[kind]
    source: PreTrainedModel = shake(AutoModel.from_config(config)).eval()
    source.save_pretrained(tmp_path / "source")
    (tmp_path / "source/preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 1, 1]}'
    )
    model = DecodePosForPreTraining.from_backbone(tmp_path / "source", region_bins=4, use_heads=False).eval()
    assert_all_equal(model.decodepos.backbone.state_dict(), source.state_dict())
    assert_all_equal(model.teacher["decodepos"].backbone.state_dict(), source.state_dict())
    assert list(model.config.image_mean) == [0.5, 0.4, 0.3]
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        output = model.decodepos(pixels)
        resized = {"interpolate_pos_encoding": True} if kind in ("vit", "deit") else {}
        expected = source(pixels, **resized).last_hidden_state
    cells = side // stride
    assert output.last_hidden_state.shape == (2, model.config.hidden_size, cells, cells)
    if expected.ndim == 3:  # one token per patch, row by row, after the class token and others
        expected = expected[:, -cells * cells :].transpose(1, 2).reshape(2, -1, cells, cells)
    assert torch.equal(output.last_hidden_state, expected)
    # A checkpoint comes back without the network it was made from, and what comes out loads where the start did.
    model.save_pretrained(tmp_path / "checkpoint")
    again = DecodePosModel.from_pretrained(tmp_path / "checkpoint")
    assert_all_equal(again.state_dict(), model.decodepos.state_dict())
    maps = DecodePosBackbone.from_pretrained(tmp_path / "checkpoint").eval()
    assert torch.equal(maps(pixels).feature_maps[0], output.last_hidden_state) and maps.channels == [
        again.config.hidden_size
    ]
    export_backbone(again, tmp_path / "export")
    plain, report = AutoModel.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert type(plain) is type(source) and not any(report.values())
    assert_all_equal(plain.state_dict(), source.state_dict())


def test_checkpoints_that_are_no_backbone_are_refused(tmp_path: Path) -> None:
    words = BertModel(BertConfig(**SMALL_TRANSFORMER))
    words.save_pretrained(tmp_path / "words")
    for given in (tmp_path / "words", words):
        with pytest.raises(ValueError, match=r"'bert' model.*gives no feature maps"):
            DecodePosModel.from_backbone(given)
    # Of a classifier that is already loaded, the keys are others.
    with pytest.raises(ValueError, match=r"MobileNetV2ForImageClassification do not fit a MobileNetV2Model"):
        DecodePosModel.from_backbone(MobileNetV2ForImageClassification(MAP_NETWORKS["mobilenet_v2"][0]))
    with pytest.raises(OSError, match="nowhere"):
        DecodePosModel.from_backbone(tmp_path / "nowhere")


BAD_CONFIGS: dict[str, tuple[Any, str]] = {
    "a text model": (BertConfig(**SMALL_TRANSFORMER), "'bert' model gives no feature maps.*for example resnet"),
    "a text model as a dictionary": ({"model_type": "bert"}, "'bert' model gives no feature maps"),
    "unknown": ({"model_type": "resnext9000"}, r"model_type'\] is 'resnext9000'"),
    "no type": ({"depths": [1, 1]}, r"model_type'\] is None"),
    "decodepos": (tiny_config(), "itself a 'decodepos' configuration"),
    "decodepos as a dictionary": (tiny_config().to_dict(), "itself a 'decodepos' configuration"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_backbone_that_cannot_be_built_is_named(name: str) -> None:
    config, message = BAD_CONFIGS[name]
    with pytest.raises(ValueError, match=message):
        DecodePosConfig(backbone_config=config)


def test_a_config_class_without_a_backbone_class_is_refused() -> None:
    class StagedConfig(ResNetConfig):
        model_type = "staged"

    with pytest.raises(ValueError, match="'staged' model gives no feature maps"):
        DecodePosModel(DecodePosConfig(backbone_config=StagedConfig()))


@pytest.mark.parametrize(
    ("field", "value"),
    [("region_bins", 0), ("region_sampling_ratio", -1), ("projection_size", 0), ("region_bins", 3.5)],
)
def test_sizes_must_make_sense(field: str, value: Any) -> None:
    with pytest.raises(Exception, match=field):
        tiny_config(**{field: value})


def test_configs_survive_the_disk(tmp_path: Path) -> None:
    for name, (backbone_config, _) in BACKBONES.items():
        config = tiny_config(backbone_config, out_indices=[1, 2], use_predictor=False)
        config.save_pretrained(tmp_path / name)
        again = AutoConfig.from_pretrained(tmp_path / name)
        assert type(again) is DecodePosConfig
        assert {**again.to_dict(), "_name_or_path": ""} == config.to_dict()
        assert type(again.backbone_config) is type(backbone_config)
        assert again.out_features == [backbone_config.stage_names[i] for i in (1, 2)]


def test_hidden_size_is_the_size_of_an_embedding() -> None:
    for config, side in BACKBONES.values():
        model = DecodePosModel(tiny_config(config)).eval()
        output = model(torch.randn(1, 3, side, side), regions=BOXES[:1])
        assert output.region_embeddings.shape == (1, 3, model.config.hidden_size)


# --- bad input


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    for kind, side in {"dinov2": 13, "dinov3_vit": 15, "swin": 3, "convnext": 31}.items():
        model = DecodePosModel(tiny_config(BACKBONES[kind][0]))
        with pytest.raises(ValueError, match=f"at least {side + 1} pixels"):
            model(torch.randn(1, 3, 64, side))
        model.eval()(torch.randn(1, 3, side + 1, side + 1))


def test_regions_need_an_image_that_the_patches_cover() -> None:
    """Otherwise the map ends before the image does, and every box would point to the wrong place."""
    for kind, side, step in (("dinov2", 60, 14), ("dinov3_vit", 72, 16), ("convnext", 80, 32), ("swin", 72, 16)):
        model = DecodePosModel(tiny_config(BACKBONES[kind][0])).eval()
        pixels = torch.randn(1, 3, step * 3, side)
        with pytest.raises(ValueError, match=f"multiples of {step}"):
            model(pixels, regions=BOXES[:1])
        assert model(pixels).feature_map.isfinite().all()  # without regions it does not matter


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 64, 64), (1, 1, 3, 64, 64)])
def test_pixels_of_a_wrong_rank_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, channels, height, width\)"):
        region_model()(torch.randn(shape))


def test_regions_that_do_not_fit_the_batch_are_refused() -> None:
    model, pixels = region_model(), torch.randn(2, 3, 64, 64)
    for regions, message in (
        ([BOXES[0]], "given for 1 images, but pixel_values holds 2"),
        (BOXES[0], r"regions has shape \(3, 4\); expected boxes"),
        (torch.cat([BOXES, BOXES]), "given for 4 images"),
        ([BOXES[0], BOXES[1] * 64], "box 0 of image 1 .*divide pixel boxes"),
        ([BOXES[0], torch.tensor([[0.1, NAN, 0.5, 0.5]])], "not finite"),
        ([BOXES[0], torch.tensor([[0.1, 0.1, 0.1, 0.5]])], "no area"),
    ):
        with pytest.raises(ValueError, match=message):
            model(pixels, regions=regions)


def test_bad_views_are_refused_before_they_become_nan() -> None:
    model = pretraining_model()
    views = tiny_views()
    with pytest.raises(ValueError, match="missing: repositioned"):
        model({name: view for name, view in views.items() if name != "repositioned"})
    spoiled = BOXES.clone()
    spoiled[1, 2, 0] = NAN
    with pytest.raises(ValueError, match=r"box 2 of image 1 .*not finite"):
        model(tiny_views(spoiled))
    with pytest.raises(ValueError, match="divide pixel boxes"):
        model(tiny_views(BOXES * 64))
    view = views["crop"]
    for wrong in (
        View(view.pixel_values, view.boxes[:1], view.valid_regions[:1]),
        View(view.pixel_values, view.boxes, view.valid_regions[:, :2]),
        View(view.pixel_values[:1], view.boxes[:1], view.valid_regions[:1]),
        View(view.pixel_values, view.boxes[:, :2], view.valid_regions[:, :2]),
    ):
        with pytest.raises(ValueError, match=r"images|valid_regions|must match|same regions"):
            model({**views, "crop": wrong})


def test_regions_work_in_half_precision_and_under_autocast() -> None:
    model, pixels = region_model(), torch.randn(2, 3, 64, 64)
    exact = model(pixels, regions=BOXES).region_embeddings
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(pixels, regions=BOXES).region_embeddings
        loss = pretraining_model().train()(tiny_views()).loss
    assert loss.isfinite()
    half = model.bfloat16()(pixels.bfloat16(), regions=BOXES).region_embeddings
    for approximate in (mixed, half):
        assert (approximate.float() - exact).norm() < 0.03 * exact.norm()


def test_tuples_on_request() -> None:
    model, pixels = region_model(), torch.randn(1, 3, 64, 64)
    output = model(pixels, regions=BOXES[:1])
    feature_map, embeddings, valid = model(pixels, regions=BOXES[:1], return_dict=False)
    assert torch.equal(feature_map, output.feature_map)
    assert torch.equal(embeddings, output.region_embeddings)
    assert valid.all()


def test_dinov2_takes_views_of_any_multiple_of_its_patch() -> None:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14)
    model = DecodePosModel(tiny_config(config)).eval()
    assert model(torch.randn(1, 3, 28, 70), regions=BOXES[:1]).feature_map.shape == (1, 16, 2, 5)
