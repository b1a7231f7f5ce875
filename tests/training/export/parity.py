"""How near exports are to what they came from: `python -m tests.training.export.parity` prints the table.

Every row exports a network with random weights and statistics to a folder, loads it the way that folder's README says,
and compares the last map on the same pixels. Rows of libraries that are not installed say so.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from modeling_decodepos import DecodePosModel
from tests.modeling.conftest import shake
from tests.training.export.foreign_resnets import Detectron2ResNet, SideBySideResNet, prepare_pixels
from training.export.loading import LoadedNetwork
from training.export.writing import export
from training.views.normalise import normalise

SIZES = {18: ("basic", [64, 128, 256, 512]), 50: ("bottleneck", [256, 512, 1024, 2048])}
BLOCKS = {18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}


@dataclass
class Row:
    """One comparison; the difference is the greatest one, as a share of the greatest value."""

    layout: str
    network: str
    compared_with: str
    difference: float | None


def resnet(depth: int, stride_in_1x1: bool = False) -> ResNetModel:
    """A ResNet with random weights, statistics and counters, none of them at its default."""
    kind, widths = SIZES[depth]
    config = ResNetConfig(
        depths=BLOCKS[depth], hidden_sizes=widths, layer_type=kind, downsample_in_bottleneck=stride_in_1x1
    )
    model = shake(ResNetModel(config), 0.02).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(1 + len(name))
    return model


def images(count: int = 2, side: int = 64) -> Tensor:
    """(B, 3, H, W) random RGB images of 8 bits."""
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def export_to(model: ResNetModel, library: str, folder: Path, image_size_px: int = 64) -> Path:
    export(
        LoadedNetwork(DecodePosModel.from_backbone(model).eval(), {"model": "test"}), library, folder, image_size_px
    )
    return folder


def own_map(model: ResNetModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(normalise(pixels)).last_hidden_state


def load_reference(library: str, folder: Path, depth: int) -> Callable[[Tensor], Tensor]:
    """Our own rebuilding of a library's network with the exported file in it, strictly, from raw images to its map."""
    if library in ("torchvision", "timm"):
        network: nn.Module = SideBySideResNet(depth)
        network.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        form = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    else:
        settings = yaml.safe_load((folder / "detectron2.yaml").read_text())
        assert settings["MODEL"]["RESNETS"]["DEPTH"] == depth
        in_1x1 = settings["MODEL"]["RESNETS"]["STRIDE_IN_1X1"]
        network = Detectron2ResNet(depth, "fpn" if library == "detectron2-fpn" else "c4", in_1x1)
        state = torch.load(folder / "model.pth", weights_only=True)["model"]
        counters = {key for key in state if key.endswith("num_batches_tracked")}  # a frozen batch norm has none
        network.load_state_dict({key: state[key] for key in state if key not in counters}, strict=True)
        form = (settings["INPUT"]["FORMAT"], settings["MODEL"]["PIXEL_MEAN"], settings["MODEL"]["PIXEL_STD"])
    network.eval()

    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return network(prepare_pixels(pixels, *form))

    return run


def load_library(library: str, folder: Path, depth: int) -> Callable[[Tensor], Tensor] | None:
    """The exported file in the library itself, as the folder's README loads it; None where it cannot be imported."""
    try:
        module = importlib.import_module(library)
    except (ImportError, RuntimeError):  # a torchvision of another build lacks its operators
        return None
    if library == "timm":
        network = module.create_model(f"local-dir:{folder}", pretrained=True).eval()
        return lambda pixels: network.forward_features(normalise(pixels))
    network = getattr(module.models, f"resnet{depth}")()
    network.fc = nn.Identity()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.eval()
    trunk = nn.Sequential(*list(network.children())[:-2])
    return lambda pixels: trunk(normalise(pixels))


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def compare(library: str, depth: int, folder: Path, stride_in_1x1: bool = False) -> list[Row]:
    """An export beside its rebuilt network, and beside the library where there is one."""
    torch.manual_seed(depth)
    model = resnet(depth, stride_in_1x1)
    expected = own_map(model, images())
    export_to(model, library, folder)
    name = f"resnet{depth}" + (", stride in 1x1" if stride_in_1x1 else "")
    found = load_reference(library, folder, depth)(images())
    rows = [Row(library, name, "rebuilt from its layout", difference(found, expected))]
    if library in ("torchvision", "timm"):
        run = load_library(library, folder, depth)
        with torch.no_grad():
            value = None if run is None else difference(run(images()), expected)
        rows.append(Row(library, name, library_name(library), value))
    return rows


def library_name(library: str) -> str:
    try:
        return f"{library} {importlib.import_module(library).__version__}"
    except (ImportError, RuntimeError):
        return library


CASES = [(library, depth, False) for library in ("torchvision", "timm") for depth in (18, 50)] + [
    (library, depth, stride_in_1x1)
    for library in ("detectron2", "detectron2-fpn")
    for depth, stride_in_1x1 in ((18, False), (50, False), (50, True))
    if (library, depth) != ("detectron2", 18)  # its C4 head knows bottlenecks only
]


def table() -> Iterator[Row]:
    for library, depth, stride_in_1x1 in CASES:
        with tempfile.TemporaryDirectory() as folder:
            yield from compare(library, depth, Path(folder) / library, stride_in_1x1)


def main() -> None:
    print("| layout | network | compared with | greatest difference |\n|---|---|---|---|")
    for row in table():
        value = "not installed here" if row.difference is None else f"{row.difference:.1e}"
        print(f"| {row.layout} | {row.network} | {row.compared_with} | {value} |", flush=True)


if __name__ == "__main__":
    main()
