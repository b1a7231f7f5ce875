"""A network as a graph that runs without its code: ONNX, and PyTorch's own export format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from modeling_decodepos.modeling_decodepos import DecodePosModel
from training.export.folders import Readme
from training.export.layouts import rgb_pixels

OPSET = 18
# Greatest difference in fp32, as a share of the greatest value: the runtimes order their sums differently.
TOLERANCE = 1e-4
OUTPUTS = ("last_hidden_state", "pooler_output")
BATCHES = (1, 3)  # what a graph is tried with; it is traced with two images

Graph = Callable[[Tensor], tuple[Tensor, ...]]


class ImageFeatures(nn.Module):
    """The last map of whole images, (B, D, H, W), and its mean, (B, D)."""

    def __init__(self, extractor: DecodePosModel):
        super().__init__()
        self.extractor = extractor

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Both, for (B, 3, H, W) normalised pixels."""
        last = self.extractor.apply_region_stage(self.extractor.feature_map(pixel_values))
        return last, last.mean((2, 3))


def write_graph(extractor: DecodePosModel, form: str, folder: Path, place: str, image_size_px: int) -> Readme:
    """Write `model.onnx` (form "onnx") or `model.pt2` ("torch_export"); raises if it computes something else."""
    example = torch.zeros(2, 3, image_size_px, image_size_px)
    extractor.check_map_covers(example)
    network = ImageFeatures(extractor).float().eval()
    facts: dict[str, Any]
    if form == "onnx":
        graph = _onnx(network, example, folder / "model.onnx")
        title, facts, runtime = "ONNX", {"opset": OPSET}, f"onnxruntime {version('onnxruntime')}"
        code = (
            f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{place}/model.onnx")\n'
            'last_hidden_state, pooler_output = session.run(None, {"pixel_values": pixel_values})  # float32, NumPy'
        )
    else:
        program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False)
        torch.export.save(program, folder / "model.pt2")
        graph = torch.export.load(folder / "model.pt2").module()
        title, facts, runtime = "torch.export", {"torch": torch.__version__}, "torch.export"
        code = (
            f'import torch\n\nmodel = torch.export.load("{place}/model.pt2").module()\n'
            "last_hidden_state, pooler_output = model(pixel_values)"
        )
    backbone: Any = extractor.config.backbone_config
    return Readme(
        code,
        f"{backbone.model_type} backbone as {title}",
        facts={
            "input": f"pixel_values, float32, (batch, 3, {image_size_px}, {image_size_px})",
            "outputs": ", ".join(OUTPUTS),
            "batch": "dynamic",
            "pixels": asdict(rgb_pixels(extractor.config.image_mean, extractor.config.image_std)),
            **facts,
            "greatest_difference": {runtime: check_graph(network, graph, image_size_px)},
            "tolerance": TOLERANCE,
        },
        lines=[f"The size of the images is fixed at {image_size_px} pixels; the number of images is free."],
    )


def run_onnx(file: Path) -> Graph:
    """The graph of a file, run by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(list(OUTPUTS), {"pixel_values": pixel_values.numpy()})))

    return run


@torch.no_grad()
def check_graph(network: nn.Module, graph: Graph, image_size_px: int) -> float:
    """Greatest difference between a graph and its network, as a share of the greatest value; `TOLERANCE` at most."""
    worst = 0.0
    for batch in BATCHES:
        generator = torch.Generator().manual_seed(batch)
        pixels = torch.randn(batch, 3, image_size_px, image_size_px, generator=generator)
        for found, expected in zip(graph(pixels), network(pixels), strict=True):
            if found.shape != expected.shape:
                raise ValueError(
                    f"the graph gives {tuple(found.shape)} where the network gives {tuple(expected.shape)}."
                )
            share = float((found - expected).abs().max() / expected.abs().max())
            if not share <= TOLERANCE:  # nor NaN
                raise ValueError(
                    f"the graph differs from the network by {share:.2g} of its greatest value; at most {TOLERANCE:g}."
                )
            worst = max(worst, share)
    return worst


def _onnx(network: nn.Module, example: Tensor, file: Path) -> Graph:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {', '.join(missing)}: pip install 'decodepos[export]'.")
    torch.onnx.export(
        network,
        (example,),
        file,
        input_names=["pixel_values"],
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=({0: Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    return run_onnx(file)
