"""Our three classes in transformers' own common tests, around a ResNet, a ConvNeXt and a DINOv2.

`make test-upstream`. What is skipped here is skipped with its reason; everything else must pass.
"""

from __future__ import annotations

import copy
import json
import unittest
from typing import Any

import torch
from transformers import ConvNextConfig, Dinov2Config, PreTrainedConfig

from modeling_decodepos import DecodePosBackbone, DecodePosConfig, DecodePosForPreTraining, DecodePosModel
from tests.modeling.conftest import tiny_config, tiny_resnet, tiny_views
from tests.upstream.mixins import BackboneTesterMixin, ConfigTester, ModelTesterMixin

BACKBONES: dict[str, PreTrainedConfig] = {
    "ResNet": tiny_resnet(depths=[1, 1, 1, 1]),
    "ConvNext": ConvNextConfig(hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1]),
    "Dinov2": Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, mlp_ratio=2
    ),
}
SIDE = 64


class Tester:
    """What the mixins ask of a model: small configurations and inputs."""

    is_training = False
    batch_size = 2

    def __init__(self, kind: str, parent: unittest.TestCase):
        self.backbone, self.parent = BACKBONES[kind], parent
        with torch.no_grad():
            states = DecodePosModel(self.get_config()).eval()(self.pixels(), output_hidden_states=True).hidden_states
        # The mixin knows rows of tokens; of maps these are height and width.
        self.seq_length, self.hidden_size = states[0].shape[-2:]
        self.num_hidden_layers, self.expected_num_hidden_layers = 1, len(states)

    def get_config(self) -> DecodePosConfig:
        """A tiny one, with two maps."""
        names = self.backbone.stage_names
        return tiny_config(copy.deepcopy(self.backbone), out_features=[names[-2], names[-1]])

    def pixels(self) -> torch.Tensor:
        """Random pictures."""
        return torch.randn(self.batch_size, 3, SIDE, SIDE)

    def prepare_config_and_inputs_for_common(self) -> tuple[DecodePosConfig, dict[str, Any]]:
        """As the mixins call it."""
        if self.parent.all_model_classes == (DecodePosForPreTraining,):
            return self.get_config(), {"views": tiny_views()}
        return self.get_config(), {"pixel_values": self.pixels()}


def skipped(reason: str) -> Any:
    """A test of the mixins that says nothing about these classes."""
    return unittest.skip(reason)(lambda self: None)


# Beside what the mixins skip themselves: attentions, text, GPUs, kernels, offloading.
OF_ALL = {
    "test_can_load_ignoring_mismatched_shapes": "of classifiers; it sets every key with _std in its name to a number, "
    "and image_std is three",
    "test_model_get_set_embeddings": "pictures have no table of embeddings",
    "test_capture_outputs_decorator": "asks for whatever the modules inside can record, such as attentions; "
    "what a class of ours does not give, it refuses by name",
}
OF_BACKBONES = {
    "test_retain_grad_hidden_states_attentions": "the first output of a backbone is a tuple of maps, not a tensor",
}
OF_VIEWS = dict.fromkeys(
    (
        *("test_hidden_states_output", "test_model_outputs_equivalence"),
        *("test_retain_grad_hidden_states_attentions", "test_can_capture_specific_layers_hidden_states"),
    ),
    "asks for hidden states: a pre-training model takes several views and has those of its student only",
)


class Common(ModelTesterMixin):
    """What holds for all three classes."""

    has_attentions = False
    test_resize_embeddings = False
    test_torch_exportable = False
    is_encoder_decoder = False
    kind: str

    def setUp(self) -> None:
        """Before every test."""
        torch.manual_seed(0)
        self.model_tester = Tester(self.kind, self)


def build() -> dict[str, type]:
    """A test case for every class around every backbone."""
    cases: dict[str, type] = {}
    for kind in BACKBONES:
        for model in (DecodePosModel, DecodePosBackbone, DecodePosForPreTraining):
            name = f"Test{model.__name__}With{kind}"
            own: dict[str, Any] = {
                "kind": kind,
                "all_model_classes": (model,),
                "config_class": DecodePosConfig,
                "__module__": __name__,
            }
            bases: tuple[type, ...] = (Common, unittest.TestCase)
            reasons = OF_ALL | (OF_VIEWS if model is DecodePosForPreTraining else {})
            if model is DecodePosBackbone:
                bases, reasons = (BackboneTesterMixin, *bases), OF_ALL | OF_BACKBONES
            own |= {"has_attentions": False} | {test: skipped(reason) for test, reason in reasons.items()}
            cases[name] = type(name, bases, own)
    return cases


globals().update(build())


class TestDecodePosConfig(unittest.TestCase):
    """The configuration, around each of the backbones."""

    def test_the_common_tests(self) -> None:
        """All of `ConfigTester`."""
        for kind, backbone in BACKBONES.items():
            with self.subTest(kind):
                self.model_tester = None
                tester = ConfigTester(
                    self,
                    config_class=DecodePosConfig,
                    has_text_modality=False,
                    common_properties=["hidden_size"],
                    backbone_config=json.loads(DecodePosConfig(backbone_config=backbone).to_json_string())[
                        "backbone_config"
                    ],
                    region_bins=3,
                )
                tester.run_common_tests()
