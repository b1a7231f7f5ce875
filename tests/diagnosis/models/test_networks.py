"""Fresh weights that are a control, and the map that a network gives out."""

import pytest
import torch
from transformers import EfficientNetConfig, EfficientNetModel, MobileNetV2Config, MobileNetV2Model

from modeling_decodepos.diagnosis.models.load import load_model
from modeling_decodepos.diagnosis.models.networks import keep_signal
from training.evaluation.models import load_model as load_evaluated

PIXELS = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small_mobilenet() -> MobileNetV2Model:
    return MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.35, tf_padding=False)).eval()


def small_efficientnet() -> EfficientNetModel:
    return EfficientNetModel(EfficientNetConfig(width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640)).eval()


@torch.no_grad()
@pytest.mark.parametrize("network", [small_mobilenet(), small_efficientnet()], ids=["mobilenet", "efficientnet"])
def test_fresh_weights_leave_something_of_a_picture(network):
    faded = load_model(network, size_px=96)(PIXELS)[-1]
    assert float(faded.std()) < 1e-6  # transformers' own fresh weights
    fresh = load_model(network, size_px=96).fresh(3)
    found = fresh(PIXELS)[-1]
    assert float(found.std()) > 1e-2
    assert float((found[0] - found[1]).std()) > 0.1 * float(found.std())  # and pictures differ
    assert torch.equal(found, load_model(network, size_px=96).fresh(3)(PIXELS)[-1])
    assert not fresh.module.training and all(not part.training for part in fresh.module.modules())


@torch.no_grad()
def test_the_last_stage_is_the_map_that_the_model_gives_out_for_both_commands():
    """A MobileNetV2's hidden states end before its last convolution."""
    network = keep_signal(small_mobilenet())
    model = load_model(network, size_px=96)
    assert model.stages == ("layer4", "layer8", "layer12", "last")
    given = network(model.prepare(PIXELS)).last_hidden_state
    assert torch.equal(model(PIXELS)[-1], given)
    assert torch.allclose(load_evaluated(network, 0).dense(PIXELS), given, atol=1e-3)
