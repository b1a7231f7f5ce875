"""Graphs: what ONNX and torch.export files compute, for one image and for several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Dinov2Config

from modeling_decodepos import DecodePosModel
from tests.modeling.conftest import shake, tiny_config, tiny_resnet
from training.export.graphs import TOLERANCE, check_graph, run_onnx
from training.export.loading import LoadedNetwork
from training.export.writing import export

KINDS = {
    "resnet": (tiny_resnet(), 64),
    "dinov2": (
        Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14),
        56,
    ),
}


def source(kind: str) -> tuple[LoadedNetwork, int]:
    torch.manual_seed(0)
    config, side = KINDS[kind]
    model = shake(DecodePosModel(tiny_config(config)), 0.2).eval()
    return LoadedNetwork(model, {"model": "tiny"}), side


@pytest.mark.parametrize("kind", KINDS)
def test_a_torch_export_computes_the_same_for_any_number_of_images(kind: str, tmp_path: Path) -> None:
    exported, side = source(kind)
    readme = export(exported, "torch_export", tmp_path / "graph", side)
    graph = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    for batch in (1, 2, 5):
        pixels = torch.randn(batch, 3, side, side)
        with torch.no_grad():
            expected = exported.extractor(pixels)
        last, pooled = graph(pixels)
        torch.testing.assert_close(last, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-4, atol=1e-5)
    description = json.loads((tmp_path / "graph" / "export.json").read_text())
    assert description["greatest_difference"]["torch.export"] <= TOLERANCE
    assert readme.facts["batch"] == "dynamic"


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_the_same_for_any_number_of_images(kind: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    exported, side = source(kind)
    readme = export(exported, "onnx", tmp_path / "graph", side)
    model = onnx.load(tmp_path / "graph" / "model.onnx")
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")] == [
        readme.facts["opset"]
    ]
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert [output.name for output in model.graph.output] == ["last_hidden_state", "pooler_output"]
    run = run_onnx(tmp_path / "graph" / "model.onnx")
    for batch in (1, 4):
        pixels = torch.randn(batch, 3, side, side)
        with torch.no_grad():
            expected = exported.extractor(pixels)
        last, pooled = run(pixels)
        torch.testing.assert_close(last, expected.last_hidden_state, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-3, atol=1e-4)


def test_without_onnx_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.export.graphs.find_spec", lambda name: None)
    exported, side = source("resnet")
    with pytest.raises(ValueError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'decodepos\[export\]'"):
        export(exported, "onnx", tmp_path / "graph", side)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_refused() -> None:
    class Features(nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return pixels, pixels.mean((2, 3))

    network = Features()
    assert check_graph(network, network, 8) == 0.0
    with pytest.raises(ValueError, match="differs from the network by 0.001"):
        check_graph(network, lambda pixels: (pixels * 1.001, pixels.mean((2, 3))), 8)
    with pytest.raises(ValueError, match="differs from the network by nan"):
        check_graph(network, lambda pixels: (pixels * torch.nan, pixels.mean((2, 3))), 8)
    with pytest.raises(ValueError, match="gives .2, 3, 8, 8. where the network gives .1, 3, 8, 8."):
        check_graph(network, lambda pixels: (pixels.expand(2, 3, 8, 8), pixels.mean((2, 3))), 8)


def test_images_must_fit_the_patches(tmp_path: Path) -> None:
    exported, _ = source("dinov2")
    with pytest.raises(ValueError, match="multiples of 14"):
        export(exported, "torch_export", tmp_path / "graph", 64)
