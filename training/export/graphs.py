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
from training.export.folders import Page
from training.export.pixel_forms import PIXEL_FORMS

OPSET = 18
# Greatest difference in fp32, as a share of the greatest value: the runtimes order their sums differently.
TOLERANCE = 1e-4
OUTPUTS = ("last_hidden_state", "pooler_output")
BATCHES = (1, 3)  # what a graph is tried with; it is traced with two images

Runner = Callable[[Tensor], tuple[Tensor, ...]]


class ImageFeatures(nn.Module):
    """The last map of whole images, (B, D, H, W), and its mean, (B, D)."""

    def __init__(self, extractor: DecodePosModel):
        super().__init__()
        self.extractor = extractor

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Both, for (B, 3, H, W) normalised pixels."""
        last = self.extractor.apply_region_stage(self.extractor.feature_map(pixel_values))
        return last, last.mean((2, 3))


def write_torch_export(extractor: DecodePosModel, folder: Path, place: str, image_size_px: int) -> Page:
    """Write `model.pt2`, and compare what it computes with the network."""
    network, example = _prepare(extractor, image_size_px)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    file = folder / "model.pt2"
    torch.export.save(program, file)
    difference = check_graph(network, torch.export.load(file).module(), image_size_px)
    code = (
        f'import torch\n\nmodel = torch.export.load("{place}/model.pt2").module()\n'
        "last_hidden_state, pooler_output = model(pixel_values)"
    )
    facts = {"torch": torch.__version__, "greatest_difference": {"torch.export": difference}}
    return _page("torch.export", code, extractor, image_size_px, facts)


def write_onnx(extractor: DecodePosModel, folder: Path, place: str, image_size_px: int) -> Page:
    """Write `model.onnx`, and compare what onnxruntime computes with the network."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {', '.join(missing)}: pip install 'decodepos[export]'.")
    network, example = _prepare(extractor, image_size_px)
    file = folder / "model.onnx"
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
    difference = check_graph(network, run_onnx(file), image_size_px)
    code = (
        f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{place}/model.onnx")\n'
        'last_hidden_state, pooler_output = session.run(None, {"pixel_values": pixel_values})  # float32, NumPy'
    )
    facts = {"opset": OPSET, "greatest_difference": {f"onnxruntime {version('onnxruntime')}": difference}}
    return _page("ONNX", code, extractor, image_size_px, facts)


def run_onnx(file: Path) -> Runner:
    """What onnxruntime makes of a file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(list(OUTPUTS), {"pixel_values": pixel_values.numpy()})))

    return run


@torch.no_grad()
def check_graph(network: nn.Module, graph: Runner, image_size_px: int) -> float:
    """Greatest difference between a graph and its network, as a share of the greatest value.

    Raises:
        ValueError: It is more than `TOLERANCE`.
    """
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


def _prepare(extractor: DecodePosModel, image_size_px: int) -> tuple[ImageFeatures, Tensor]:
    example = torch.zeros(2, 3, image_size_px, image_size_px)
    extractor.check_map_covers(example)
    return ImageFeatures(extractor).float().eval(), example


def _page(form: str, code: str, extractor: DecodePosModel, image_size_px: int, facts: dict[str, Any]) -> Page:
    backbone: Any = extractor.config.backbone_config
    return Page(
        f"{backbone.model_type} backbone as {form}",
        code,
        facts={
            "input": f"pixel_values, float32, (batch, 3, {image_size_px}, {image_size_px})",
            "outputs": ", ".join(OUTPUTS),
            "batch": "dynamic",
            "pixels": asdict(PIXEL_FORMS["imagenet"]),
            **facts,
            "tolerance": TOLERANCE,
        },
        lines=[f"The size of the images is fixed at {image_size_px} pixels; the number of images is free."],
    )
