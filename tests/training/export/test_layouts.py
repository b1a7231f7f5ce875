"""Exports to other libraries: equal outputs, nothing lost on the way, and a clear no where there is no layout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model, ResNetModel

from modeling_decodepos import DecodePosModel
from tests.modeling.conftest import pretraining_model, shake, tiny_resnet
from tests.training.export import foreign_resnets
from tests.training.export import parity as export_parity
from tests.training.export.foreign_resnets import Detectron2ResNet, SideBySideResNet, prepare_pixels
from tests.training.export.parity import compare, difference, export_to, images, own_map, resnet
from training.export.__main__ import main
from training.export.layouts import C4, LAYOUTS, from_layout, key_table, to_layout
from training.export.loading import LoadedNetwork, load_foreign
from training.export.resnets import BATCH_NORM, NAMED, build_resnet
from training.export.writing import export

# The reference adds and multiplies in another order: in fp32 that is some 1e-6 of the greatest value.
TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def short_resnet50(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a ResNet with one bottleneck per stage pass for a ResNet-50, which takes seconds to build."""
    monkeypatch.setitem(NAMED, "resnet50", (50, "bottleneck", (1, 1, 1, 1)))
    monkeypatch.setitem(export_parity.BLOCKS, 50, [1, 1, 1, 1])
    monkeypatch.setitem(foreign_resnets.BLOCKS, 50, (1, 1, 1, 1))


@pytest.mark.usefixtures("short_resnet50")
@pytest.mark.parametrize("library", LAYOUTS)
def test_outputs_equal_those_of_the_layout_rebuilt_and_the_file_comes_back(library: str, tmp_path: Path) -> None:
    depth = 50 if library == "detectron2" else 18  # its C4 head knows bottlenecks only
    for row in compare(library, depth, tmp_path / library):
        assert row.difference is None or row.difference < TOLERANCE, row
    is_ambiguous = library.startswith("detectron2")
    layout = "detectron2" if library == "detectron2-fpn" else library
    stride_in = "3x3" if depth == 50 else None
    source = load_foreign(tmp_path / library, layout, "student", stride_in, "imagenet" if is_ambiguous else None)
    assert not [note for note in source.notes if not note.startswith("left out beside the weights")]
    torch.manual_seed(depth)
    model, back = resnet(depth), source.extractor.backbone.state_dict()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("library", LAYOUTS)
def test_outputs_of_a_resnet50_equal_those_of_the_layout_rebuilt(library: str, tmp_path: Path) -> None:
    for row in compare(library, 50, tmp_path / library):
        assert row.difference is None or row.difference < TOLERANCE, row


@pytest.mark.usefixtures("short_resnet50")
def test_the_place_of_the_stride_goes_with_the_weights(tmp_path: Path) -> None:
    """The same tensors load with the stride in either convolution; only the configuration keeps them apart."""
    for row in compare("detectron2", 50, tmp_path / "d2", stride_in_1x1=True):
        assert row.difference is not None and row.difference < TOLERANCE
    settings = yaml.safe_load((tmp_path / "d2" / "detectron2.yaml").read_text())
    assert settings["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is True
    state = torch.load(tmp_path / "d2" / "model.pth", weights_only=True)["model"]
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    maps = []
    for stride_in_1x1 in (True, False):
        network = Detectron2ResNet(50, "c4", stride_in_1x1)
        network.load_state_dict(state, strict=True)
        with torch.no_grad():
            maps.append(network.eval()(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))))
    assert difference(*maps) > 1e-2
    model = resnet(50, stride_in_1x1=True)
    for library in ("torchvision", "timm"):
        with pytest.raises(ValueError, match="stride in the 1x1 convolutions.*Export it for detectron2"):
            export_to(model, library, tmp_path / library)
        assert not (tmp_path / library).exists()


def test_a_c4_detector_of_basic_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resnet18 has no place in it.*detectron2-fpn"):
        export_to(resnet(18), "detectron2", tmp_path / "d2")
    assert not (tmp_path / "d2").exists()


def test_pixels_as_the_written_configuration_says(tmp_path: Path) -> None:
    """detectron2's own defaults are BGR without a deviation; with them the same weights compute something else."""
    model = resnet(18)
    export_to(model, "detectron2-fpn", tmp_path / "d2")
    settings = yaml.safe_load((tmp_path / "d2" / "detectron2.yaml").read_text())
    assert settings["MODEL"]["WEIGHTS"] == "d2/model.pth"
    assert settings["MODEL"]["RESNETS"]["RES2_OUT_CHANNELS"] == 64  # detectron2 asks for it below 50 layers
    network = Detectron2ResNet(18, "fpn", False).eval()
    state = torch.load(tmp_path / "d2" / "model.pth", weights_only=True)["model"]
    network.load_state_dict({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, strict=True)
    written = (settings["INPUT"]["FORMAT"], settings["MODEL"]["PIXEL_MEAN"], settings["MODEL"]["PIXEL_STD"])
    default = ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0])
    expected = own_map(model, images())
    with torch.no_grad():
        assert difference(network(prepare_pixels(images(), *written)), expected) < TOLERANCE
        assert difference(network(prepare_pixels(images(), *default)), expected) > 0.1


def test_batch_norms_have_the_same_settings(tmp_path: Path) -> None:
    """The same eps: shown where variances are as small as it. The same momentum: shown by a step of training."""
    model = resnet(18)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(BATCH_NORM["eps"], BATCH_NORM["momentum"])}
    with torch.no_grad():
        model.embedder.embedder.normalization.running_var.fill_(1e-5)
    expected = own_map(model, images())
    export_to(model, "torchvision", tmp_path / "tv")
    weights = load_file(tmp_path / "tv" / "model.safetensors")
    pixels = prepare_pixels(images(), "RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    for eps, is_equal in ((1e-5, True), (1e-3, False)):
        network = SideBySideResNet(18, eps=eps)
        network.load_state_dict(weights, strict=True)
        with torch.no_grad():
            assert (difference(network.eval()(pixels), expected) < TOLERANCE) == is_equal
    network = SideBySideResNet(18)
    network.load_state_dict(weights, strict=True)
    network.train()(pixels)
    model.train()(pixels)
    trained = to_layout(model.state_dict(), LAYOUTS["torchvision"])
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, trained[key], rtol=1e-3, atol=1e-4)
        assert not key.endswith("running_mean") or not torch.allclose(value, weights[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_there_and_back_is_the_same_bit_for_bit(name: str, layer_type: str) -> None:
    model = shake(ResNetModel(tiny_resnet(layer_type=layer_type)))
    state = model.state_dict()
    renamed = to_layout(state, LAYOUTS[name])
    assert len(renamed) == len(state)
    back, left_out = from_layout(renamed, name)
    assert not left_out
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    again = build_resnet(back, stride_in_1x1=False)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert {key: getattr(again.config, key) for key in ("depths", "hidden_sizes", "embedding_size", "layer_type")} == {
        key: getattr(model.config, key) for key in ("depths", "hidden_sizes", "embedding_size", "layer_type")
    }


def test_every_name_is_known_and_no_two_are_one() -> None:
    """Also where numbers have two digits, and where the last stage has a home of its own."""
    keys = set(ResNetModel(tiny_resnet(depths=[1, 1, 12, 1], layer_type="bottleneck")).state_dict())
    for layout in LAYOUTS.values():
        for prefix in layout.prefixes:
            table = key_table(layout, prefix)
            assert keys <= set(table.values()) and len(set(table.values())) == len(table)
    c4 = key_table(LAYOUTS["detectron2"], C4)
    assert "roi_heads.res5.0.conv1.norm.weight" in c4
    assert not {"backbone.res5.0.conv1.weight", "roi_heads.res4.0.conv1.weight"} & c4.keys()


def test_a_folder_says_what_it_is(tmp_path: Path) -> None:
    folder = export_to(resnet(18), "timm", tmp_path / "my-weights")
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "README.md", "export.json"}
    description = json.loads((folder / "export.json").read_text())
    for name, digest in description["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert set(description["sha256"]) == {"model.safetensors", "config.json"}
    assert description["pixels"]["channels"] == "RGB"
    page = (folder / "README.md").read_text()
    assert 'timm.create_model("local-dir:my-weights", pretrained=True)' in page
    assert ".writing_" not in page + json.dumps(description)
    assert str(tmp_path) not in page + json.dumps(description)
    assert not list(tmp_path.glob(".writing_*"))


# --- what cannot be


def test_only_named_resnets_have_layouts(tmp_path: Path) -> None:
    tiny = ResNetModel(tiny_resnet())
    vit = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28))
    vit.save_pretrained(tmp_path / "vit")
    for library in LAYOUTS:
        with pytest.raises(ValueError, match=f"{library} knows resnet18.*backbone, onnx or torch_export"):
            export_to(tiny, library, tmp_path / "out")
        with pytest.raises(SystemExit, match=f"{library} has no layout for a dinov2 backbone.*onnx"):
            main([str(tmp_path / "vit"), "--format", library, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"downsample_in_first_stage": True}])
def test_a_named_resnet_with_another_computation_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    model = resnet(18)
    for key, value in change.items():
        setattr(model.config, key, value)
    with pytest.raises(ValueError, match="knows resnet18 with .*; this one has"):
        export_to(ResNetModel(model.config), "torchvision", tmp_path / "out")


def test_another_eps_is_refused(tmp_path: Path) -> None:
    extractor = DecodePosModel.from_backbone(resnet(18))
    extractor.backbone.embedder.embedder.normalization.eps = 1e-3
    with pytest.raises(ValueError, match="has {'eps': 0.001"):
        export(LoadedNetwork(extractor, {}), "torchvision", tmp_path / "out")


def test_broken_weights_are_not_exported(tmp_path: Path) -> None:
    model = pretraining_model()
    with torch.no_grad():
        model.teacher["decodepos"].backbone.encoder.stages[1].layers[0].layer[0].convolution.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), "--format", "backbone", "--output"]
    main([*arguments, str(tmp_path / "student")])
    with pytest.raises(SystemExit, match=r"NaN or infinite values in 1 tensors, first .*stages\.1\.layers\.0"):
        main([*arguments, str(tmp_path / "teacher"), "--network", "teacher"])
    assert not (tmp_path / "teacher").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists. Give another --output"):
        export_to(resnet(18), "timm", folder)
    assert [file.name for file in folder.iterdir()] == ["precious.txt"]


# --- students and teachers


def test_student_and_teacher_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = pretraining_model()
    model.save_pretrained(tmp_path / "model")
    for network, extractor in (("student", model.decodepos), ("teacher", model.teacher["decodepos"])):
        output = tmp_path / network
        main([str(tmp_path / "model"), "--network", network, "--output", str(output)])
        assert f'AutoModel.from_pretrained("{network}")' in capsys.readouterr().out
        found = load_file(output / "model.safetensors")
        assert found.keys() == extractor.backbone.state_dict().keys()
        assert all(torch.equal(found[key], value) for key, value in extractor.backbone.state_dict().items())
        assert json.loads((output / "export.json").read_text())["from"] == {"model": "model", "network": network}


def test_a_model_without_a_teacher_has_none(tmp_path: Path) -> None:
    model = pretraining_model()
    model.decodepos.save_pretrained(tmp_path / "extractor")
    model.decodepos.backbone.save_pretrained(tmp_path / "plain")
    for name, reason in (("extractor", "holds no whole teacher"), ("plain", "has no teacher")):
        with pytest.raises(SystemExit, match=reason):
            main([str(tmp_path / name), "--network", "teacher", "--output", str(tmp_path / "out")])
        main([str(tmp_path / name), "--output", str(tmp_path / f"{name}-again")])
        again = load_file(tmp_path / f"{name}-again" / "model.safetensors")
        assert all(torch.equal(again[key], value) for key, value in model.decodepos.backbone.state_dict().items())
