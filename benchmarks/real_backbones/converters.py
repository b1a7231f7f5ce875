"""Weights as packages carry them, as networks of transformers (or `EfficientNetLite`, where it has no class)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2Model,
    ResNetConfig,
    ResNetModel,
)

from benchmarks.real_backbones.efficientnet_lite import SCALES, EfficientNetLite
from benchmarks.real_backbones.packages import CannotBeHad
from training.views.normalise import IMAGE_MEAN, IMAGE_STD

State = dict[str, Tensor]


@dataclass
class Converted:
    """A network in evaluation mode, the side of the pictures it was trained on, mean and deviation of its pixels."""

    network: Any
    size_px: int = 224
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD

    @property
    def has_head(self) -> bool:
        """Whether it names ImageNet's classes."""
        return hasattr(self.network, "classifier")

    def prepare(self, pixels: Tensor) -> Tensor:
        """Normalised pixels from (B, 3, H, W) uint8."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> Tensor:
        """(B, D) logits of (B, 3, H, W) uint8; the mean of the last map where there is no head."""
        values = self.prepare(pixels)
        if isinstance(self.network, EfficientNetLite):
            return self.network.classify(values)
        output = self.network(values)
        answer: Tensor = output.logits if self.has_head else output.last_hidden_state.mean((2, 3))
        return answer


def read_state(weights: Path) -> State:
    """The tensors of a torch checkpoint, whose pickle may hold nothing else."""
    state: State = torch.load(weights, map_location="cpu", weights_only=True)
    return state


def load_in_order(network: nn.Module, state: State) -> None:
    """Loads a checkpoint that lists the same layers in the same order under other names."""
    names = list(network.state_dict())
    if [name.rpartition(".")[2] for name in names] != [name.rpartition(".")[2] for name in state]:
        raise CannotBeHad(
            f"its {len(state)} tensors are not the {len(names)} of a {type(network).__name__}, in their order"
        )
    try:
        network.load_state_dict(dict(zip(names, state.values(), strict=True)))
    except RuntimeError as error:
        raise CannotBeHad(f"its tensors are not a {type(network).__name__}'s: {error}") from error


def mobilenet_v2(weights: Path) -> Converted:
    """torchvision's, as a model with a classifier or, where the checkpoint has none, without."""
    state = read_state(weights)
    width = len(next(iter(state.values()))) / 32
    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, depth_multiplier=width)
    config.num_labels = 1000
    has_head = any(name.startswith("classifier") for name in state)
    network = MobileNetV2ForImageClassification(config) if has_head else MobileNetV2Model(config)
    load_in_order(network, state)
    return Converted(network.eval())


LITE_SIZES_PX = {"lite0": 224, "lite1": 240, "lite2": 260}


def efficientnet_lite(weights: Path) -> Converted:
    """Of efficientnet-lite-pytorch."""
    network = EfficientNetLite(scale_of(weights))
    load_in_order(network, read_state(weights))
    return Converted(network.eval(), LITE_SIZES_PX[network.scale])


def scale_of(weights: Path) -> str:
    """Such as lite0, from the file's name."""
    return next(scale for scale in SCALES if scale in weights.name)


# --------------------------------------------------------------------------------- a ResNet with its norms folded away


@dataclass(frozen=True)
class Convolution:
    """A convolution with the batch norm in it: the name of what it gives out, kernel and bias."""

    name: str
    kernel: Tensor
    bias: Tensor


CAFFE_MEAN = (104.0, 117.0, 123.0)  # blue, green, red of 255, subtracted from what the network takes


def resnet_from_onnx(weights: Path) -> Converted:
    """A `ResNetModel` that takes RGB, with norms that add a bias: `rebuild_statistics` gives them their statistics."""
    import onnx

    graph = onnx.load(str(weights)).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "Conv":
            kernel, bias = (torch.tensor(onnx.numpy_helper.to_array(tensors[name])) for name in node.input[1:3])
            found.append(Convolution(node.output[0], kernel, bias))
    return Converted(resnet(found), mean=tuple(value / 255 for value in CAFFE_MEAN[::-1]))


def resnet(convolutions: Sequence[Convolution]) -> ResNetModel:
    """The network of these convolutions, each followed by a batch norm that adds the bias and changes nothing else."""
    placed = {_resnet_place(found.name): found for found in convolutions}
    firsts = re.findall(r"stages\.(\d+)\.layers\.\d+\.layer\.0", " ".join(placed))
    depths = [firsts.count(stage) for stage in sorted(set(firsts))]
    widths = [len(placed[f"encoder.stages.{stage}.layers.0.shortcut"].bias) for stage in range(len(depths))]
    stem = len(placed["embedder.embedder"].bias)
    config = ResNetConfig(embedding_size=stem, hidden_sizes=widths, depths=depths, downsample_in_bottleneck=True)
    network = ResNetModel(config).eval()
    state = network.state_dict()
    for place, found in placed.items():
        kernel = found.kernel
        if place == "embedder.embedder":  # from BGR of 255 to RGB of 1 over ImageNet's deviation, less the same mean
            kernel = kernel.flip(1) * 255 * torch.tensor(IMAGE_STD).view(1, 3, 1, 1)
        state |= {f"{place}.convolution.weight": kernel, f"{place}.normalization.bias": found.bias}
        state[f"{place}.normalization.running_var"] = torch.ones_like(found.bias) - nn.BatchNorm2d(1).eps
    network.load_state_dict(state)
    return network


def _resnet_place(name: str) -> str:
    """Where transformers keeps what is called `bn_1/…`, `bn_stage0_block2_branch2a/…` or `…_proj_shortcut/…`."""
    if name.startswith("bn_1/"):
        return "embedder.embedder"
    found = re.match(r"bn_stage(\d+)_block(\d+)_(proj_shortcut|branch2[abc])/", name)
    if not found:
        raise CannotBeHad(f"the convolution {name} is none of a ResNet's")
    stage, block, part = found.groups()
    inner = "shortcut" if part == "proj_shortcut" else f"layer.{'abc'.index(part[-1])}"
    return f"encoder.stages.{stage}.layers.{block}.{inner}"
