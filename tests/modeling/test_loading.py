"""Saving and loading: every class, every path, with and without this package."""

from __future__ import annotations

import hashlib
import json
import logging
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    PreTrainedModel,
    ResNetModel,
)

from modeling_decodepos import DecodePosBackbone, DecodePosConfig, DecodePosForPreTraining, DecodePosModel
from tests.hub_server import HubServer, run_python
from tests.image_processors import needs_auto_image_processor
from tests.modeling.conftest import BACKBONES, BOXES, pretraining_model, shake, tiny_config, tiny_resnet, tiny_views
from training.export.folders import export_backbone, export_pretraining

REPORT_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def load(loader: Any, path: Path, **kwargs: Any) -> tuple[Any, dict[str, list[str]]]:
    model, report = loader.from_pretrained(path, output_loading_info=True, **kwargs)
    return model, {key: sorted(report[key]) for key in REPORT_KEYS if report[key]}


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def assert_frozen(model: DecodePosForPreTraining) -> None:
    assert list(model.teacher.parameters())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert all(p.requires_grad for p in model.student.parameters())
    assert all(p.requires_grad for p in model.predictor.parameters())


def assert_teacher_is_student(model: DecodePosForPreTraining) -> None:
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    assert not [name for name in teacher if not torch.equal(teacher[name], student[name])]


def assert_teacher_is_not_student(model: DecodePosForPreTraining) -> None:
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    equal = [
        name for name in teacher if teacher[name].is_floating_point() and torch.equal(teacher[name], student[name])
    ]
    assert not equal


@pytest.fixture
def trained(tmp_path: Path) -> tuple[DecodePosForPreTraining, Path]:
    model = pretraining_model()
    model.save_pretrained(tmp_path / "trained")
    return model, tmp_path / "trained"


# --- with the package


@pytest.mark.parametrize("loader", [DecodePosForPreTraining, AutoModelForPreTraining])
def test_the_pretraining_model_comes_back_whole(loader: Any, trained: tuple[DecodePosForPreTraining, Path]) -> None:
    model, path = trained
    again, report = load(loader, path)
    assert type(again) is DecodePosForPreTraining
    assert not report
    assert_same_weights(again, model)
    assert_frozen(again)
    assert_teacher_is_not_student(again)  # it was in the file, and is not overwritten
    views = tiny_views()
    torch.testing.assert_close(again.eval()(views).loss, model.eval()(views).loss)


@pytest.mark.parametrize("loader", [DecodePosModel, AutoModel])
def test_the_feature_extractor_of_a_pretraining_checkpoint_is_the_student(
    loader: Any, trained: tuple[DecodePosForPreTraining, Path], tmp_path: Path
) -> None:
    model, path = trained
    extractor, report = load(loader, path)
    assert type(extractor) is DecodePosModel
    assert not report
    assert_same_weights(extractor, model.decodepos)
    assert not torch.equal(
        extractor.state_dict()["backbone.embedder.embedder.convolution.weight"],
        model.teacher.state_dict()["decodepos.backbone.embedder.embedder.convolution.weight"],
    )
    extractor.save_pretrained(tmp_path / "extractor")
    again, report = load(loader, tmp_path / "extractor")
    assert not report
    assert_same_weights(again, extractor)
    pixels = torch.randn(2, 3, 64, 64)
    expected = model.decodepos.eval()(pixels, regions=BOXES).region_embeddings
    torch.testing.assert_close(again(pixels, regions=BOXES).region_embeddings, expected)


def test_the_backbone_class_loads_every_kind_of_checkpoint(
    trained: tuple[DecodePosForPreTraining, Path], tmp_path: Path
) -> None:
    model, path = trained
    model.decodepos.save_pretrained(tmp_path / "extractor")
    for folder in (path, tmp_path / "extractor"):
        backbone, report = load(DecodePosBackbone, folder, out_indices=[2, 3, 4])
        assert not report
        assert backbone.out_features == ["stage2", "stage3", "stage4"]
        assert backbone.channels == [8, 12, 16]
        assert_same_weights(backbone.backbone, model.decodepos.backbone)
    backbone.save_pretrained(tmp_path / "backbone")
    again, report = load(DecodePosBackbone, tmp_path / "backbone")
    assert not report
    assert again.out_features == ["stage2", "stage3", "stage4"]
    pixels = torch.randn(1, 3, 64, 64)
    for one, other in zip(again.eval()(pixels).feature_maps, backbone.eval()(pixels).feature_maps, strict=True):
        assert torch.equal(one, other)
    # The other way: a backbone's file fills a feature extractor.
    extractor, report = load(DecodePosModel, tmp_path / "backbone")
    assert not report
    assert_same_weights(extractor, model.decodepos)


def test_auto_backbone_builds_ours_from_a_config() -> None:
    backbone = AutoBackbone.from_config(tiny_config(out_features=["stage3"]))
    assert type(backbone) is DecodePosBackbone
    assert [tuple(m.shape) for m in backbone(torch.randn(1, 3, 64, 64)).feature_maps] == [(1, 12, 4, 4)]


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_backbone_survives_the_disk(kind: str, tmp_path: Path) -> None:
    model = shake(DecodePosForPreTraining(tiny_config(BACKBONES[kind][0])))
    model.save_pretrained(tmp_path)
    for loader, part in ((DecodePosForPreTraining, model), (AutoModel, model.decodepos)):
        again, report = load(loader, tmp_path)
        assert not report
        assert_same_weights(again, part)


def test_a_teacher_that_is_not_in_the_file_starts_as_the_student(
    trained: tuple[DecodePosForPreTraining, Path], tmp_path: Path
) -> None:
    model, _ = trained
    model.decodepos.save_pretrained(tmp_path / "extractor")
    again, report = load(DecodePosForPreTraining, tmp_path / "extractor")
    assert set(report) == {"missing_keys"}
    assert {key.split(".")[0] for key in report["missing_keys"]} == {"teacher", "projector", "predictor"}
    assert_same_weights(again.decodepos, model.decodepos)
    assert_teacher_is_student(again)
    assert_frozen(again)
    heads = [p for part in (again.projector, again.predictor) for p in part.parameters()]
    assert all(p.isfinite().all() and p.abs().max() <= 1 for p in heads)  # fresh weights, not uninitialised memory


def test_new_bytes_are_old_bytes(trained: tuple[DecodePosForPreTraining, Path], tmp_path: Path) -> None:
    _, path = trained
    for loader in (DecodePosForPreTraining, DecodePosModel, DecodePosBackbone):
        first, second = tmp_path / f"{loader.__name__}-1", tmp_path / f"{loader.__name__}-2"
        loader.from_pretrained(path).save_pretrained(first)
        loader.from_pretrained(first).save_pretrained(second)
        hashes = [
            {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
            for folder in (first, second)
        ]
        assert hashes[0] == hashes[1]
        assert set(hashes[0]) == {"config.json", "model.safetensors"}
        if loader is DecodePosForPreTraining:
            same_weights = (path / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
            assert same_weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads(
    dtype: torch.dtype, trained: tuple[DecodePosForPreTraining, Path], tmp_path: Path
) -> None:
    model, path = trained
    half, report = load(DecodePosForPreTraining, path, dtype=dtype)
    assert not report
    floating = {name: value for name, value in half.state_dict().items() if value.is_floating_point()}
    assert {value.dtype for value in floating.values()} == {dtype}
    full = model.state_dict()
    assert all(torch.equal(value, full[name].to(dtype)) for name, value in floating.items())
    assert_frozen(half)
    half.save_pretrained(tmp_path / "half")
    assert DecodePosModel.from_pretrained(tmp_path / "half").dtype == dtype
    exact, report = load(DecodePosModel, tmp_path / "half", dtype=torch.float32)
    pixels = torch.randn(2, 3, 64, 64)
    expected = model.decodepos.eval()(pixels, regions=BOXES).region_embeddings
    assert (exact(pixels, regions=BOXES).region_embeddings - expected).norm() < 0.03 * expected.norm()


def test_zeroed_residuals_never_overwrite_trained_weights(trained: tuple[DecodePosForPreTraining, Path]) -> None:
    _, path = trained
    for loader in (DecodePosForPreTraining, DecodePosModel, DecodePosBackbone):
        for module in loader.from_pretrained(path).modules():
            if type(module).__name__ == "ResNetBasicLayer":
                assert module.layer[-1].normalization.weight.any()


def rewrite(path: Path, change: Any) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def test_missing_and_extra_weights_are_reported_by_name(trained: tuple[DecodePosForPreTraining, Path]) -> None:
    _, path = trained
    lost = "decodepos.backbone.encoder.stages.1.layers.0.layer.0.convolution.weight"

    def spoil(weights: dict[str, Tensor]) -> None:
        del weights[lost], weights["predictor.3.bias"]
        weights["decodepos.backbone.stray"] = torch.ones(2)

    rewrite(path, spoil)
    _, report = load(DecodePosForPreTraining, path)
    assert report == {"missing_keys": [lost, "predictor.3.bias"], "unexpected_keys": ["decodepos.backbone.stray"]}
    _, report = load(DecodePosModel, path)
    assert report["missing_keys"] == [lost.removeprefix("decodepos.")]


def test_weights_of_another_shape_are_an_error(
    trained: tuple[DecodePosForPreTraining, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = trained
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # older releases keep it to themselves
    rewrite(path, lambda weights: weights.update({"projector.0.weight": torch.ones(3, 3)}))
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        DecodePosForPreTraining.from_pretrained(path)
    assert "projector.0.weight" in caplog.text


def test_starting_from_a_checkpoint_with_a_hole_is_an_error(tmp_path: Path) -> None:
    shake(ResNetModel(tiny_resnet())).save_pretrained(tmp_path)
    name = "encoder.stages.2.layers.0.layer.0.convolution.weight"
    rewrite(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"lacks 1 weights of its ResNetBackbone, first {name}"):
        DecodePosForPreTraining.from_backbone(tmp_path)


def test_another_models_folder_is_not_taken_for_ours(tmp_path: Path) -> None:
    """transformers would go on with a warning, a default ResNet-50 and random weights."""
    ResNetModel(tiny_resnet()).save_pretrained(tmp_path)
    for loader in (DecodePosModel, DecodePosForPreTraining, DecodePosBackbone, DecodePosConfig):
        with pytest.raises(ValueError, match=r"configuration of a 'resnet' model.*from_backbone"):
            loader.from_pretrained(tmp_path)


# --- exported folders


@pytest.fixture
def exported(tmp_path: Path) -> tuple[DecodePosForPreTraining, Path]:
    model = pretraining_model().eval()
    export_backbone(model, str(tmp_path / "backbone"))
    export_pretraining(model, tmp_path / "pretraining")
    return model, tmp_path


def test_an_exported_backbone_is_a_plain_resnet(exported: tuple[DecodePosForPreTraining, Path]) -> None:
    model, path = exported
    names = {file.name for file in (path / "backbone").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    config = json.loads((path / "backbone" / "config.json").read_text())
    assert config["architectures"] == ["ResNetModel"]
    assert config["model_type"] == "resnet"
    assert "auto_map" not in config
    plain, report = load(AutoModel, path / "backbone")
    assert type(plain) is ResNetModel
    assert not report
    pixels = torch.randn(2, 3, 64, 64)
    expected = model.decodepos(pixels)
    torch.testing.assert_close(plain(pixels).last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(plain(pixels).pooler_output.flatten(1), expected.pooler_output)


@pytest.mark.parametrize("kind", [kind for kind in BACKBONES if not kind.startswith("resnet")])
def test_other_exported_backbones_load_without_our_code(kind: str, tmp_path: Path) -> None:
    config, side = BACKBONES[kind]
    model = shake(DecodePosForPreTraining(tiny_config(config))).eval()
    export_backbone(model, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == config.model_type
    again, report = load(type(model.decodepos.backbone), tmp_path)
    assert not report
    pixels = torch.randn(1, 3, side, side)
    torch.testing.assert_close(again(pixels).feature_maps[-1], model.decodepos(pixels).last_hidden_state)
    AutoModel.from_pretrained(tmp_path)


def test_an_exported_pretraining_folder_is_complete(exported: tuple[DecodePosForPreTraining, Path]) -> None:
    model, path = exported
    files = {file.name for file in (path / "pretraining").iterdir()}
    code = {name for name in files if name.endswith(".py")}
    assert files - code == {"config.json", "model.safetensors", "preprocessor_config.json"}
    auto_map = json.loads((path / "pretraining" / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_decodepos.DecodePosConfig",
        "AutoModel": "modeling_decodepos.DecodePosModel",
        "AutoBackbone": "modeling_decodepos.DecodePosBackbone",
        "AutoModelForPreTraining": "modeling_decodepos.DecodePosForPreTraining",
    }
    assert {f"{reference.split('.')[0]}.py" for reference in auto_map.values()} <= code
    # Exporting changes nothing about the model: the next checkpoint of the run looks as before.
    assert not getattr(model.config, "auto_map", None)
    # With the package imported, its own classes win and nobody is asked for trust.
    again, report = load(AutoModelForPreTraining, path / "pretraining")
    assert type(again) is DecodePosForPreTraining
    assert not report
    assert_same_weights(again, model)
    assert type(AutoModel.from_pretrained(path / "pretraining")) is DecodePosModel
    again.save_pretrained(path / "again")
    assert DecodePosForPreTraining.from_pretrained(path / "again").config.model_type == "decodepos"


@needs_auto_image_processor
def test_both_folders_have_a_preprocessor(exported: tuple[DecodePosForPreTraining, Path]) -> None:
    _, path = exported
    for name in ("backbone", "pretraining"):
        processor = AutoImageProcessor.from_pretrained(path / name, backend="pil")
        pixels = processor(torch.zeros(3, 50, 40, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
        assert pixels.shape[-1] == pixels.shape[-2] == 224
        # Black, normalised with the ImageNet statistics.
        torch.testing.assert_close(
            pixels[0, :, 0, 0], -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
        )


# --- without the package: one interpreter for all checks, since starting it is what costs

STRANGER = """
import importlib.util, json, sys

class NotInstalled:
    '''Whatever happens to be installed here, this process does not know the project.'''
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_decodepos", "training", "dataset_scripts", "tests", "benchmarks"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
try:
    import modeling_decodepos
    raise SystemExit("the project can be imported")
except ModuleNotFoundError:
    pass

from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForPreTraining

folder, answers = Path(FOLDER), {}
inputs = load_file(folder / "inputs.safetensors")
pixels, boxes = inputs["pixels"], inputs["boxes"]

def report_of(report):
    return {key: sorted(map(str, report[key])) for key in report if report[key]}

def close(one, other):
    return bool(torch.allclose(one, other, atol=1e-5, rtol=1e-4))

with torch.no_grad():
    plain, report = AutoModel.from_pretrained(folder / "backbone", output_loading_info=True)
    answers["plain"] = {
        "class": f"{type(plain).__module__}.{type(plain).__name__}",
        "report": report_of(report),
        "equal": close(plain.eval()(pixels).pooler_output.flatten(1), inputs["pooled"]),
        "remote code": any(name.startswith("transformers_modules") for name in sys.modules),
    }
    try:
        AutoModel.from_pretrained(folder / "pretraining", trust_remote_code=False)
    except ValueError as error:
        answers["untrusted"] = str(error)

    for where, source in (("local", folder / "pretraining"), ("hub", "org/decodepos-tiny")):
        config = AutoConfig.from_pretrained(source, trust_remote_code=True)
        extractor, report = AutoModel.from_pretrained(source, trust_remote_code=True, output_loading_info=True)
        output = extractor.eval()(pixels, regions=[boxes[0], boxes[1, :1]])
        answers[f"{where} extractor"] = {
            "model_type": config.model_type,
            "remote": type(extractor).__module__.startswith("transformers_modules."),
            "report": report_of(report),
            "equal": close(output.region_embeddings[output.valid_regions], inputs["embeddings"]),
        }
        model, report = AutoModelForPreTraining.from_pretrained(
            source, trust_remote_code=True, output_loading_info=True
        )
        teacher, student = model.teacher.state_dict(), model.student.state_dict()
        answers[f"{where} pretraining"] = {
            "report": report_of(report),
            "frozen": not any(p.requires_grad for p in model.teacher.parameters()),
            "student trains": all(p.requires_grad for p in model.student.parameters()),
            "own teacher": not torch.equal(teacher["projector.0.weight"], student["projector.0.weight"]),
            "teacher": close(model.teacher["decodepos"].eval()(pixels).pooler_output, inputs["teacher"]),
        }

    maps = {}
    backbone = AutoBackbone.from_pretrained("org/decodepos-tiny", trust_remote_code=True, out_indices=[2, 3])
    maps["hub backbone"] = backbone.eval()(pixels).feature_maps
    local = type(backbone).from_pretrained(folder / "pretraining", out_indices=[2, 3])
    maps["local backbone"] = local.eval()(pixels).feature_maps
    for name, found in maps.items():
        answers[name] = [list(m.shape) for m in found] + [close(found[1], inputs["map"])]
    again = folder / "saved by a stranger"
    model.save_pretrained(again)
    answers["saved again"] = sorted(json.loads((again / "config.json").read_text())["auto_map"])

answers["imported"] = sorted({name.partition(".")[0] for name in sys.modules} & {"modeling_decodepos", "torchvision"})
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process that never heard of this project finds in the exported folders, and on a Hub."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    model = pretraining_model().eval()
    export_backbone(model, folder / "backbone")
    export_pretraining(model, folder / "pretraining")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        output = model.decodepos(pixels, regions=[BOXES[0], BOXES[1, :1]])
        inputs = {
            "pixels": pixels,
            "boxes": BOXES,
            "pooled": model.decodepos(pixels).pooler_output,
            "map": output.feature_map,
            "embeddings": output.region_embeddings[output.valid_regions],
            "teacher": model.teacher["decodepos"](pixels).pooler_output,
        }
    save_file({name: value.contiguous() for name, value in inputs.items()}, folder / "inputs.safetensors")
    with HubServer() as hub:
        hub.add_repo("org/decodepos-tiny", folder / "pretraining")
        printed = run_python(f"FOLDER = {str(folder)!r}\n" + textwrap.dedent(STRANGER), hub.env(folder / "home"))
    return json.loads(printed.split("ANSWERS")[1])


def test_the_exported_backbone_needs_no_code_of_ours(stranger: dict[str, Any]) -> None:
    assert stranger["plain"] == {
        "class": "transformers.models.resnet.modeling_resnet.ResNetModel",
        "report": {},
        "equal": True,
        "remote code": False,
    }
    assert stranger["imported"] == []


@pytest.mark.parametrize("where", ["local", "hub"])
def test_remote_code_gives_the_same_models(where: str, stranger: dict[str, Any]) -> None:
    assert stranger[f"{where} extractor"] == {"model_type": "decodepos", "remote": True, "report": {}, "equal": True}
    assert stranger[f"{where} pretraining"] == {
        "report": {},
        "frozen": True,
        "student trains": True,
        "own teacher": True,
        "teacher": True,
    }
    assert stranger[f"{where} backbone"] == [[2, 8, 8, 8], [2, 12, 4, 4], True]


def test_without_trust_nothing_runs(stranger: dict[str, Any]) -> None:
    assert "trust_remote_code=True" in stranger["untrusted"]


def test_a_strangers_own_checkpoint_keeps_the_map(stranger: dict[str, Any]) -> None:
    assert stranger["saved again"] == ["AutoBackbone", "AutoConfig", "AutoModel", "AutoModelForPreTraining"]
