"""What the models' forward passes take beside pixels: hidden states when asked, and nothing that nobody knows."""

from __future__ import annotations

import pytest
import torch
from transformers import EfficientNetConfig

from modeling_decodepos import DecodePosBackbone, DecodePosModel
from tests.modeling.conftest import BACKBONES, pretraining_model, shake, tiny_config, tiny_views

BOXES = [torch.tensor([[0.1, 0.2, 0.6, 0.9]])]


@pytest.mark.parametrize("kind", BACKBONES)
def test_hidden_states_end_in_the_last_state_and_pass_through_the_map(kind: str) -> None:
    config, side = BACKBONES[kind]
    model = shake(DecodePosModel(tiny_config(config))).eval()
    pixels = torch.randn(1, 3, side, side)
    found, plain = model(pixels, output_hidden_states=True), model(pixels)
    assert plain.hidden_states is None
    assert len(found.hidden_states) == len(config.stage_names)
    torch.testing.assert_close(found.feature_map, plain.feature_map)
    if model.config.splits_backbone:
        assert found.hidden_states[-1] is found.last_hidden_state
        of_regions = model(pixels, regions=BOXES, output_hidden_states=True)
        torch.testing.assert_close(of_regions.hidden_states, found.hidden_states[:-1])
        torch.testing.assert_close(of_regions.hidden_states[-1], of_regions.feature_map)
    some = model(pixels, output_hidden_states=[0, -1]).hidden_states
    assert [state is None for state in some[1:-1]] == [True] * (len(some) - 2)
    torch.testing.assert_close([some[0], some[-1]], [found.hidden_states[0], found.hidden_states[-1]])
    model.config.output_hidden_states = True
    assert len(model(pixels).hidden_states) == len(config.stage_names)
    assert model(pixels, output_hidden_states=False).hidden_states is None


def test_hidden_states_of_a_network_without_a_backbone_class() -> None:
    config = EfficientNetConfig(width_coefficient=0.2, depth_coefficient=0.1, image_size=64, hidden_dim=256)
    for kind in (DecodePosModel, DecodePosBackbone):
        found = kind(tiny_config(config)).eval()(torch.randn(1, 3, 64, 64), output_hidden_states=True)
        assert len(found.hidden_states) > 2


def test_a_mistyped_argument_is_refused_with_what_is_taken() -> None:
    pixels = torch.randn(1, 3, 64, 64)
    model, backbone = DecodePosModel(tiny_config()).eval(), DecodePosBackbone(tiny_config()).eval()
    with pytest.raises(TypeError, match="DecodePosModel takes no argument 'region'; expected one of .*regions"):
        model(pixels, region=BOXES)
    with pytest.raises(TypeError, match="DecodePosBackbone takes no argument 'out_features'"):
        backbone(pixels, out_features=["stage4"])
    with pytest.raises(TypeError, match="DecodePosForPreTraining takes no argument 'objectives'"):
        pretraining_model()(tiny_views(), objectives=None)


def test_what_is_not_given_is_not_promised() -> None:
    pixels = torch.randn(1, 3, 64, 64)
    model = DecodePosModel(tiny_config()).eval()
    with pytest.raises(ValueError, match="gives no attentions"):
        model(pixels, output_attentions=True)
    assert model(pixels, output_attentions=False).feature_map is not None  # as detectors pass it
    with pytest.raises(ValueError, match="ask its `.decodepos`"):
        pretraining_model()(tiny_views(), output_hidden_states=True)
