"""Our backbone inside transformers' segmenters and detectors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoBackbone,
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from modeling_decodepos import DecodePosBackbone, DecodePosConfig
from tests.modeling.conftest import BACKBONES, shake, tiny_config

PIXELS = 64


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_backbone_class_returns_the_maps_of_the_backbone_it_wraps(kind: str) -> None:
    """Maps of the right size are not enough: a second set of recording hooks once returned earlier layers' maps."""
    config, side = BACKBONES[kind]
    names = list(config.stage_names[1:])
    alone_config = copy.deepcopy(config)
    alone_config.out_features = names
    alone = shake(AutoBackbone.from_config(alone_config)).eval()
    ours = DecodePosBackbone(tiny_config(config, out_features=names)).eval()
    ours.backbone.load_state_dict(alone.state_dict())
    pixels = torch.randn(2, 3, side, side)
    expected, found = alone(pixels), ours(pixels, output_hidden_states=True)
    assert len(found.feature_maps) == len(names) == len(ours.channels)
    for channels, one, other in zip(ours.channels, found.feature_maps, expected.feature_maps, strict=True):
        torch.testing.assert_close(one, other)
        assert one.shape[1] == channels
    assert len(found.hidden_states) == len(names) + 1
    assert ours(pixels).hidden_states is None
    tuples = ours(pixels, return_dict=False)
    torch.testing.assert_close(tuples[0][-1], expected.feature_maps[-1])


def test_stages_are_chosen_by_name_or_index() -> None:
    by_name = DecodePosBackbone(tiny_config(out_features=["stage2", "stage4"]))
    by_index = DecodePosBackbone(tiny_config(out_indices=[2, -1]))
    assert by_name.out_indices == [2, 4]
    assert [m.shape[1:] for m in by_index(torch.randn(1, 3, 64, 64)).feature_maps] == [(8, 8, 8), (16, 2, 2)]
    assert DecodePosBackbone(tiny_config()).out_features == ["stage4"]


# --- segmentation


def upernet(config: DecodePosConfig) -> UperNetForSemanticSegmentation:
    channels = DecodePosBackbone(config).channels
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=config,
            hidden_size=16,
            pool_scales=[1, 2],
            auxiliary_channels=8,
            auxiliary_in_channels=channels[-2],
            num_labels=5,
        )
    )


@pytest.mark.parametrize("kind", ["resnet_basic", "convnext", "swin"])
def test_upernet_takes_our_backbone(kind: str, tmp_path: Path) -> None:
    config, side = BACKBONES[kind]
    if kind == "swin":  # UperNet wants four maps
        config = SwinConfig(
            image_size=side, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4
        )
    maps = [1, 2, 3, 4]
    model = upernet(tiny_config(config, out_indices=maps, zero_init_residual=False))
    assert type(model.backbone) is DecodePosBackbone
    pixels, labels = torch.randn(2, 3, side, side), torch.randint(0, 5, (2, side, side))
    output = model.train()(pixels, labels=labels)
    assert output.logits.shape == (2, 5, side, side)
    output.loss.backward()
    assert_gradients_reach(model.backbone)
    assert_survives_the_disk(model, UperNetForSemanticSegmentation, tmp_path, lambda m: m(pixels).logits)


# --- detection

QUERIES = {"num_queries": 6, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
ONE_MAP = {"use_timm_backbone": False, "use_pretrained_backbone": False, **QUERIES, **HEADS}
THREE_MAPS = {
    "num_queries": 6,
    "d_model": 16,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 12, 16],
    "decoder_in_channels": [16, 16, 16],
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "decoder_layers": 2,
    "num_denoising": 2,
    "feat_strides": [8, 16, 32],
}
DETECTORS: dict[str, tuple[type[PreTrainedModel], Callable[[DecodePosConfig], Any], list[int]]] = {
    "detr": (DetrForObjectDetection, lambda b: DetrConfig(backbone_config=b, **ONE_MAP), [4]),
    "conditional_detr": (
        ConditionalDetrForObjectDetection,
        lambda b: ConditionalDetrConfig(backbone_config=b, **ONE_MAP),
        [4],
    ),
    "deformable_detr": (
        DeformableDetrForObjectDetection,
        lambda b: DeformableDetrConfig(backbone_config=b, num_feature_levels=3, **{**ONE_MAP, "d_model": 32}),
        [2, 3, 4],
    ),
    "rt_detr": (RTDetrForObjectDetection, lambda b: RTDetrConfig(backbone_config=b, **THREE_MAPS), [2, 3, 4]),
    "rt_detr_v2": (RTDetrV2ForObjectDetection, lambda b: RTDetrV2Config(backbone_config=b, **THREE_MAPS), [2, 3, 4]),
    "d_fine": (DFineForObjectDetection, lambda b: DFineConfig(backbone_config=b, **THREE_MAPS), [2, 3, 4]),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_take_our_backbone(name: str, tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="the matcher of DETR's loss needs scipy")
    detector, build, maps = DETECTORS[name]
    config = tiny_config(out_indices=maps, zero_init_residual=False)
    model = detector(build(config))
    backbones = [module for module in model.modules() if isinstance(module, DecodePosBackbone)]
    assert len(backbones) == 1
    pixels = torch.randn(2, 3, PIXELS, PIXELS)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.5]])
    labels = [
        {"class_labels": torch.tensor([0, 1]), "boxes": boxes},
        {"class_labels": torch.tensor([1]), "boxes": boxes[:1]},
    ]
    output = model.train()(pixels, labels=labels)
    assert output.loss.isfinite()
    output.loss.backward()
    assert_gradients_reach(backbones[0])
    assert_survives_the_disk(model, AutoModelForObjectDetection, tmp_path, lambda m: m(pixels).pred_boxes)
    assert model(pixels).pred_boxes.shape == (2, 6, 4)


def assert_gradients_reach(backbone: DecodePosBackbone) -> None:
    """Every convolution that the detector does not freeze by itself learns, the last stage among them."""
    trained = {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad and p.ndim > 1}
    assert trained
    reached = [name for name, gradient in trained.items() if gradient is not None and gradient.any()]
    deepest = list(trained)[-1]
    assert deepest in reached
    assert len(reached) > 0.7 * len(trained)
    assert all(gradient.isfinite().all() for gradient in trained.values() if gradient is not None)


def assert_survives_the_disk(
    model: PreTrainedModel, loader: Any, path: Path, run: Callable[[PreTrainedModel], Tensor]
) -> None:
    """The composite comes back with our class inside and the same outputs; the package must be imported for that."""
    shake(model.eval(), 0.01).save_pretrained(path)
    again, report = loader.from_pretrained(path, output_loading_info=True)
    assert not any(report.values())
    assert type(again) is type(model)
    assert any(isinstance(module, DecodePosBackbone) for module in again.modules())
    with torch.no_grad():
        torch.testing.assert_close(run(again.eval()), run(model))
