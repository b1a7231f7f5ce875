"""Folders of models as they are found after a cut download, a careless edit or an attack, in every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.hostile.conftest import SMALL_RUN
from tests.hostile.running import refused, run

Damage = Callable[[Path], None]


def weights(change: Callable[[dict[str, Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        values = load_file(file)
        values = change(values) or values
        save_file({key: value.contiguous() for key, value in values.items()}, file, {"format": "pt"})

    return damage


def config(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return damage


def write(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data) and None


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model": print}, folder / "pytorch_model.bin")


def a_tenth_missing(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for number, (key, value) in enumerate(values.items()) if number % 10}


def one_row(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value[:1] if value.ndim == 4 else value for key, value in values.items()}


# The damage, and what a message must name beside the folder.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "cut": (cut, "weights of .*cannot be used"),
    "empty": (write("model.safetensors", b""), "weights of .*cannot be used"),
    "zeros": (write("model.safetensors", bytes(2000)), "weights of .*cannot be used"),
    "a page": (write("model.safetensors", b"<!doctype html><p>Not found"), "weights of .*cannot be used"),
    "weights missing": (weights(a_tenth_missing), r"lacks \d+ weights"),
    "other shapes": (weights(one_row), r"has \d+ weights of another shape"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"weights|model\.safetensors"),
    "a pickle of code": (only_a_pickle, "weights of .*cannot be used"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config"),
    "config cut": (write("config.json", b'{"model_type": "res'), "config"),
    "config a list": (write("config.json", b"[1, 2]"), "config"),
    "config binary": (write("config.json", b"\xff\xfe\x00\x80" * 9), "config"),
    "config too deep": (write("config.json", b"[" * 100_000), "config.*RecursionError|config.*nested"),
    "config unknown": (config(lambda values: values.update(model_type="evilnet")), "config"),
    "config a number": (write("config.json", b"7"), "config"),
}
OF_OURS: dict[str, tuple[Damage, str]] = {
    "bins below zero": (config(lambda values: values.update(region_bins=-1)), "config.*region_bins is -1"),
    "bins a word": (config(lambda values: values.update(region_bins="many")), "config.*region_bins"),
    "an extra stage": (
        weights(lambda values: values.update({"decodepos.backbone.encoder.stages.9.x": torch.ones(1)})),
        "weights that a .* has no place for",
    ),
}
PLAIN = {
    "more weights than layers": (
        weights(lambda values: values.update({"encoder.stages.0.layers.7.convolution.weight": torch.ones(1)})),
        "has 1 weights that a .* has no place for, first encoder.stages.0.layers.7",
    ),
}
CASES = [(kind, name) for kind in ("plain", "ours") for name in DAMAGES] + [("plain", name) for name in PLAIN]
CASES += [("ours", name) for name in OF_OURS]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_damaged_folder_is_named_by_every_command(
    kind: str, name: str, copy_model: Callable[[str], Path], tmp_path: Path, squares: Path, scenes: Path
) -> None:
    folder = copy_model(kind)
    damage, says = (DAMAGES | OF_OURS | PLAIN)[name]
    damage(folder)
    out = tmp_path / "out"
    small = ("--size_px", 64, "--device", "cpu")
    refused("export", [folder, "--output", out], folder.name, says)
    if kind == "ours":
        refused("export", [folder, "--output", out, "--format", "pretraining"], folder.name, says)
    refused("evaluate", ["object_knn", "--model", folder, "--data", squares, "--output", out, *small], says)
    refused("diagnose", [folder, "--output", out, "--size", 64, "--images", 8], says)
    refused("pretrain", [*SMALL_RUN, "--data", scenes, "--output_dir", out, "--backbone", folder], folder.name, says)
    assert not out.exists() or not list(out.rglob("*.safetensors"))


def test_code_beside_a_model_is_neither_run_nor_asked_about(tmp_path: Path, squares: Path, scenes: Path) -> None:
    folder = tmp_path / "remote"
    folder.mkdir()
    own = {"model_type": "evilnet", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(own))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    out = tmp_path / "out"
    refused("export", [folder, "--output", out], "remote", "custom code")
    refused("evaluate", ["object_knn", "--model", folder, "--data", squares, "--output", out], "custom code")
    refused("diagnose", [folder, "--output", out], "custom code")
    refused("pretrain", [*SMALL_RUN, "--data", scenes, "--output_dir", out, "--backbone", folder], "custom code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--backbone", "vit_tiny", "--view_size_px", 64, "--centre_cells"), "centre_cells is true, but the cells"),
        (("--backbone", "nothing/here"), "nothing/here"),
        (("--backbone", "resnet_tiny", "--teacher", "frozen"), "teacher is frozen"),
    ],
)
def test_models_that_cannot_be_built(flags: tuple, says: str, scenes: Path, tmp_path: Path) -> None:
    refused("pretrain", [*SMALL_RUN, "--data", scenes, "--output_dir", tmp_path / "out", *flags], says)


def test_a_backbone_is_no_pretraining_model(whole_models: Path, tmp_path: Path) -> None:
    words = [whole_models / "plain", "--output", tmp_path / "out", "--format", "pretraining"]
    refused("export", words, "plain holds no whole pre-training model .*resnet.*--format backbone")


def test_an_import_without_training_says_so(whole_models: Path, tmp_path: Path) -> None:
    from modeling_decodepos import DecodePosForPreTraining
    from tests.modeling.conftest import tiny_config
    from training.export.folders import export_pretraining

    untrained = export_pretraining(DecodePosForPreTraining(tiny_config(zero_init_residual=False)), tmp_path / "new")
    said = run("export", untrained, "--output", tmp_path / "one").text
    assert "all batch norms have the values they begin with" in said
    assert "begin with" not in run("export", whole_models / "ours", "--output", tmp_path / "two").text


CALLABLES = """
import itertools
import torch
from torch import nn

calls = itertools.count()

def nothing(pixels): return None
def number(pixels): return 3
def empty(pixels): return []
def flat(pixels): return torch.ones(len(pixels), 4)
def one_picture(pixels): return torch.ones(1, 4, 2, 2)
def words(pixels): return ["map"]
def varying(pixels): return torch.ones(len(pixels), 3 + next(calls) % 2, 2, 2)
def fails(pixels): raise KeyError("layer4")
def not_finite(pixels): return torch.full((len(pixels), 4, 2, 2), float("nan"))
class Fails(nn.Module):
    def forward(self, pixels): raise TypeError("expected a dict")
module = Fails()
value = 3
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "returned None|returned NoneType"),
        ("number", "returned int"),
        ("empty", "returned an empty list|no map"),
        ("flat", r"returned \(\d+, 4\)"),
        ("one_picture", r"returned \(1, 4, 2, 2\)"),
        ("words", "returned str"),
        ("varying", "channels"),
        ("fails", "KeyError: 'layer4'"),
        ("not_finite", "NaN or infinite"),
        ("module", "TypeError: expected a dict"),
        ("value", "is a int; expected something callable"),
        ("absent", "cannot import 'absent'"),
    ],
)
def test_callables_that_give_no_maps(
    name: str, says: str, tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_callables.py").write_text(CALLABLES)
    monkeypatch.syspath_prepend(tmp_path)
    spec, out = f"hostile_callables:{name}", tmp_path / "out"
    words = ["object_knn", "--model", spec, "--data", squares, "--output", out, "--size_px", 64, "--device", "cpu"]
    refused("evaluate", words, says, spec)
    refused("diagnose", [spec, "--output", out, "--size", 64, "--images", 8], says, spec)


@pytest.mark.parametrize("device", ["banana", "cuda:99", "cuda", "mps", "meta"])
def test_devices_that_are_not_here(device: str, tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is here")
    refused("diagnose", ["random:resnet_tiny", "--output", tmp_path, "--device", device], f"--device|{device}", "cpu")


def test_an_evaluation_on_a_gpu_that_is_not_there(tmp_path: Path, squares: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is here")
    words = ["object_knn", "--model", "random:resnet_tiny", "--data", squares, "--output", tmp_path / "r.json"]
    refused("evaluate", [*words, "--device", "cuda"], "cuda")
