"""Starting from what others released: every known layout, what else lies in its files, and files that are none."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ResNetModel

from modeling_decodepos import DecodePosForPreTraining
from tests.modeling.conftest import shake, tiny_resnet
from training.export.__main__ import main
from training.export.layouts import BARE, C4, FPN, LAYOUTS, PIXEL_FORMS, Prefix, to_layout
from training.export.loading import load_foreign, load_network
from training.recipe import ModelArguments
from training.run.model import build_model
from training.views.normalise import normalise

Weights = dict[str, Tensor]
BOTTLENECKS = tiny_resnet(layer_type="bottleneck", depths=[1, 2, 1, 1])


def network(seed: int = 0, **changes: Any) -> ResNetModel:
    torch.manual_seed(seed)
    model = shake(ResNetModel(tiny_resnet(layer_type="bottleneck", depths=[1, 2, 1, 1], **changes))).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(seed + len(name))
    return model


def renamed(model: ResNetModel, layout: str, prefix: Prefix = BARE) -> Weights:
    return to_layout(model.state_dict(), replace(LAYOUTS[layout], prefixes=(prefix,)))


def behind(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def linear(name: str, count: int = 4) -> Weights:
    return {f"{name}.weight": torch.randn(count, 16), f"{name}.bias": torch.randn(count)}


def torchvision_old(student: ResNetModel, teacher: ResNetModel) -> Any:
    """Files of 2017 and 2018 have no counters of batches."""
    weights = renamed(student, "torchvision") | linear("fc", 1000)
    return {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}


def timm_average(student: ResNetModel, teacher: ResNetModel) -> Any:
    return {
        "state_dict": behind("_orig_mod.module.", renamed(student, "timm") | linear("fc")),
        "state_dict_ema": renamed(teacher, "timm") | linear("fc"),
        "epoch": 3,
        "args": argparse.Namespace(model="resnet50", model_ema=True),
    }


def detectron2_bare(student: ResNetModel, teacher: ResNetModel) -> Any:
    """What the converters of MoCo and torchvision write, with everything outside the stages behind `stem.`."""
    weights = renamed(student, "detectron2") | behind("stem.", linear("fc.0"))
    return {"model": weights, "__author__": "MOCO", "matching_heuristics": True}


def detectron2_c4(student: ResNetModel, teacher: ResNetModel) -> Any:
    weights = renamed(student, "detectron2", C4)
    heads = linear("proposal_generator.rpn_head.conv") | linear("roi_heads.box_predictor.cls_score")
    heads |= linear("roi_heads.mask_head.deconv") | {"pixel_mean": torch.zeros(3, 1, 1)}
    frozen = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    return {"model": frozen | heads, "optimizer": {}, "iteration": 89999}


def detectron2_fpn(student: ResNetModel, teacher: ResNetModel) -> Any:
    weights = renamed(student, "detectron2", FPN)
    return {"model": weights | linear("backbone.fpn_lateral2") | linear("roi_heads.box_head.fc1")}


FLAGS = ["--stride_in", "3x3", "--pixels", "imagenet"]
RELEASES: dict[str, tuple[str, Callable[[ResNetModel, ResNetModel], Any], list[str], bool]] = {
    "torchvision_old": ("torchvision", torchvision_old, [], False),
    "timm_average": ("timm", timm_average, [], True),
    "detectron2_bare": ("detectron2", detectron2_bare, FLAGS, False),
    "detectron2_c4": ("detectron2", detectron2_c4, FLAGS, False),
    "detectron2_fpn": ("detectron2", detectron2_fpn, FLAGS, False),
}


@pytest.mark.parametrize("name", RELEASES)
def test_releases_become_backbones(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, write, flags, has_teacher = RELEASES[name]
    student, teacher = network(1), network(2)
    loaded = write(student, teacher)
    torch.save(loaded, tmp_path / "release.pth")
    command = [str(tmp_path / "release.pth"), "--from", layout, *flags, "--output"]
    for which, expected in (("student", student), ("teacher", teacher)):
        output = tmp_path / which
        if which == "teacher" and not has_teacher:
            with pytest.raises(SystemExit, match="teacher"):
                main([*command, str(output), "--network", which])
            continue
        main([*command, str(output), "--network", which])
        said = capsys.readouterr().out
        found, state = load_file(output / "model.safetensors"), expected.state_dict()
        assert found.keys() == state.keys()
        counted = any(str(key).endswith("num_batches_tracked") for key in _all_keys(loaded))
        for key, value in state.items():
            if key.endswith("num_batches_tracked") and not counted:
                assert found[key] == 0
            else:
                assert torch.equal(found[key], value), key
        config = json.loads((output / "config.json").read_text())
        assert config["model_type"] == "resnet"
        assert not config["downsample_in_bottleneck"]
        # Whatever else was there has been named.
        beside = [key for key in loaded if not isinstance(loaded[key], dict) or not loaded[key]]
        assert all(str(key) in said for key in beside if not isinstance(loaded[key], Tensor))


def _all_keys(loaded: Any) -> list[str]:
    return [inner for key, value in loaded.items() for inner in ([key, *value] if isinstance(value, dict) else [key])]


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    torch.save(detectron2_c4(network(1), network(2)), tmp_path / "detector.pth")
    loaded = load_foreign(tmp_path / "detector.pth", "detectron2", "student", "3x3", "imagenet")
    assert loaded.notes[:-1] == [
        "left out: 1 tensors of pixel_mean",
        "left out: 2 tensors of proposal_generator",
        "left out: 4 tensors of roi_heads",
        "left out beside the weights: optimizer, iteration",
    ]
    assert "num_batches_tracked were missing and are 0" in loaded.notes[-1]


def test_a_run_starts_from_an_imported_folder(tmp_path: Path) -> None:
    student = network(1)
    torch.save(renamed(student, "torchvision"), tmp_path / "resnet50.pth.tar")
    main([str(tmp_path / "resnet50.pth.tar"), "--from", "torchvision", "--output", str(tmp_path / "start")])
    arguments = ModelArguments(backbone=str(tmp_path / "start"), projector_hidden_size=8, projection_size=4)
    run: DecodePosForPreTraining = build_model(arguments, seed=0)
    for extractor in (run.decodepos, run.teacher["decodepos"]):
        state = extractor.backbone.state_dict()
        assert all(torch.equal(state[key], value) for key, value in student.state_dict().items())
    assert (tmp_path / "start" / "preprocessor_config.json").is_file()


def test_the_lines_of_the_page_make_a_moco_checkpoint_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    both = behind("encoder_q.", renamed(network(1), "torchvision") | linear("fc.0"))
    both |= behind("encoder_k.", renamed(network(2), "torchvision")) | {"queue": torch.randn(8, 32)}
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 200, "state_dict": behind("module.", both)}, "moco_v2_800ep_pretrain.pth.tar")
    exec(lines, {})
    read = load_foreign(Path("moco.pth"), "torchvision", "student", None, None).extractor.backbone.state_dict()
    assert all(torch.equal(read[key], value) for key, value in network(1).state_dict().items())


@pytest.mark.parametrize("name", ["moco", "mmdet", "detectron2-fpn", "anything"])
def test_a_name_that_is_not_known_is_answered_with_those_that_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--from", "--format") if name != "detectron2-fpn" else ("--from",):  # it can be written
        with pytest.raises(SystemExit):
            main([str(tmp_path), flag, name, "--output", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert f"argument {flag}: invalid choice: '{name}'" in said
        assert all(known in said for known in ("torchvision", "timm", "detectron2"))


def test_half_precision_is_widened_and_said(tmp_path: Path) -> None:
    half = {
        key: value.half() if value.is_floating_point() else value
        for key, value in torchvision_old(network(1), network(2)).items()
    }
    save_file(half, tmp_path / "half.safetensors")
    loaded = load_foreign(tmp_path / "half.safetensors", "torchvision", "student", None, None)
    assert any("torch.float16; converted to torch.float32" in note for note in loaded.notes)
    assert loaded.extractor.dtype == torch.float32


# --- stride and pixels, which no tensor tells


def test_what_no_tensor_tells_has_to_be_said(tmp_path: Path) -> None:
    torch.save(detectron2_c4(network(1), network(2)), tmp_path / "model.pth")
    for said in ((None, None), ("3x3", None), (None, "imagenet")):
        with pytest.raises(ValueError, match=r"no tensor tells which(.|\n)*STRIDE_IN_1X1: True(.|\n)*BGR"):
            load_foreign(tmp_path / "model.pth", "detectron2", "student", *said)  # type: ignore[arg-type]
    loaded = load_foreign(tmp_path / "model.pth", "detectron2", "student", "1x1", "imagenet")
    assert loaded.extractor.backbone.config.downsample_in_bottleneck
    torch.save(torchvision_old(network(1), network(2)), tmp_path / "tv.pth")
    with pytest.raises(ValueError, match="stride in the 3x3 convolution and take RGB"):
        load_foreign(tmp_path / "tv.pth", "torchvision", "student", "1x1", None)


@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
@pytest.mark.parametrize("form", PIXEL_FORMS)
def test_foreign_pixels_give_the_same_features(form: str, stride_in: str, tmp_path: Path) -> None:
    """The source sees images its own way, the import sees them ours: both must see the same, borders included."""
    theirs = network(3, downsample_in_bottleneck=stride_in == "1x1")
    if form == "caffe":  # its pixels are some 58 times as large
        with torch.no_grad():
            theirs.embedder.embedder.convolution.weight /= 58
    torch.save(detectron2_c4(theirs, network(2)), tmp_path / "model.pth")
    loaded = load_foreign(tmp_path / "model.pth", "detectron2", "student", stride_in, form)  # type: ignore[arg-type]
    images = torch.randint(0, 256, (2, 3, 65, 48), dtype=torch.uint8)
    mean, std = (torch.tensor(getattr(PIXEL_FORMS[form], name)).view(3, 1, 1) for name in ("mean", "std"))
    ordered = images.flip(1) if form != "imagenet" else images
    with torch.no_grad():
        expected = theirs((ordered.float() - mean) / std).last_hidden_state
        found = loaded.extractor(normalise(images)).last_hidden_state
        unadapted = theirs(normalise(images)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    if form != "imagenet":
        assert not torch.allclose(unadapted, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def test_timm_folders_are_read_with_their_description(tmp_path: Path) -> None:
    save_file(renamed(network(1), "timm"), tmp_path / "model.safetensors")
    description: dict[str, Any] = {"architecture": "resnetblur50", "pretrained_cfg": {}}
    for change, reason in (
        ({}, "'resnetblur50' is not one of resnet18"),
        ({"architecture": "resnet50", "pretrained_cfg": {"std": [0.5, 0.5, 0.5]}}, r"with std \[0.5, 0.5, 0.5\]"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(description | change))
        with pytest.raises(ValueError, match=reason):
            load_foreign(tmp_path, "timm", "student", None, None)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50", "pretrained_cfg": {}}))
    assert load_foreign(tmp_path, "timm", "student", None, None).origin["file"] == "model.safetensors"


# --- what is refused


def refuse(weights: Any, layout: str, path: Path) -> str:
    torch.save(weights, path / "model.pth")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_foreign(path / "model.pth", layout, "student", None, None)
    return str(caught.value)


def test_keys_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    weights = renamed(network(1), "torchvision")
    message = refuse(weights | {"layer1.0.se.fc1.weight": torch.ones(1)}, "torchvision", tmp_path)
    assert "1 keys are no part of a ResNet in the layout 'torchvision': layer1.0.se.fc1.weight" in message
    assert "Nothing was converted" in message


def test_missing_and_misshapen_tensors_are_refused_by_name(tmp_path: Path) -> None:
    weights = renamed(network(1), "torchvision")
    del weights["layer2.1.bn2.running_var"]
    message = refuse(weights, "torchvision", tmp_path)
    assert 'Missing key(s) in state_dict: "encoder.stages.1.layers.1.layer.1.normalization.running_var"' in message
    weights = renamed(network(1), "torchvision")
    weights["layer2.1.conv2.weight"] = weights["layer2.1.conv2.weight"][:, :1]  # as in a ResNeXt
    message = refuse(weights, "torchvision", tmp_path)
    assert re.search(r"stages.1.layers.1.layer.1.convolution.weight: .*\[2, 1, 3, 3\].*\[2, 2, 3, 3\]", message)
    weights = renamed(network(1), "torchvision")
    weights["conv1.weight"] = torch.randn(8, 3, 3, 3)
    assert "expected a stem of one 7x7 convolution over 3 channels, found one of shape (8, 3, 3, 3)" in refuse(
        weights, "torchvision", tmp_path
    )


def test_a_hole_in_the_stages_is_refused(tmp_path: Path) -> None:
    weights = {key: value for key, value in renamed(network(1), "torchvision").items() if "layer2" not in key}
    assert "found stages [1, 3, 4]" in refuse(weights, "torchvision", tmp_path)


@pytest.mark.parametrize(
    ("given", "said", "suggested"),
    [
        (detectron2_c4, "torchvision", "--from detectron2"),
        (torchvision_old, "detectron2", "--from torchvision"),
    ],
)
def test_a_wrong_layout_is_seen_and_the_right_one_named(
    given: Callable[[ResNetModel, ResNetModel], Any], said: str, suggested: str, tmp_path: Path
) -> None:
    weights = given(network(1), network(2))
    assert suggested in refuse(weights, said, tmp_path)
    with pytest.raises(ValueError, match=f"is a file.*{suggested}"):
        load_network(str(tmp_path / "model.pth"), "student")


@pytest.mark.parametrize("prefix", ["encoder_q.", "backbone."])  # as of MoCo and of OpenMMLab
def test_a_layout_that_is_not_known_is_refused(prefix: str, tmp_path: Path) -> None:
    message = refuse(behind(prefix, renamed(network(1), "torchvision")), "torchvision", tmp_path)
    assert "that would have conv1.weight" in message
    assert "of no layout known here (torchvision, timm, detectron2)" in message


def test_a_second_network_in_the_file_is_refused(tmp_path: Path) -> None:
    weights = renamed(network(1), "detectron2", C4) | renamed(network(3), "detectron2", FPN)
    assert "are no part of a ResNet in the layout 'detectron2'" in refuse(weights, "detectron2", tmp_path)


def test_native_keys_need_no_layout(tmp_path: Path) -> None:
    message = refuse(network(1).state_dict(), "torchvision", tmp_path)
    assert "transformers' own ResNet: give its folder without --from" in message


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    weights = renamed(network(1), "torchvision")
    weights["layer3.0.conv1.weight"][0, 0] = torch.inf
    assert "NaN or infinite values in 1 tensors" in refuse(weights, "torchvision", tmp_path)


class Trap:
    """What a hostile pickle is made of: opening it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_opening_a_file_runs_nothing(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"model": Trap(sprung)}))
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Trap(sprung)}))
    torch.save({"state_dict": {}, "extra": Trap(sprung)}, tmp_path / "torch.pth")
    torch.save({"extra": Trap(sprung)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("plain.pkl", "plain.pth", "torch.pth", "legacy.pth"):
        with pytest.raises(ValueError, match=r"is not a checkpoint.*which is not done here"):
            load_foreign(tmp_path / name, "torchvision", "student", None, None)
        assert not sprung.exists()
    with (tmp_path / "plain.pkl").open("rb") as file:  # the trap works
        pickle.load(file)
    assert sprung.exists()


@pytest.mark.parametrize("name", ["page.pth", "page.safetensors", "cut.pth", "empty.pth", "empty.safetensors"])
def test_files_that_are_no_checkpoints(name: str, tmp_path: Path) -> None:
    torch.save(renamed(network(1), "torchvision"), tmp_path / "whole.pth")
    content = {
        "page": b"<!DOCTYPE html><html>Google Drive: quota exceeded</html>",
        "cut": (tmp_path / "whole.pth").read_bytes()[:5000],
        "empty": b"",
    }
    (tmp_path / name).write_bytes(content[name.split(".")[0]])
    with pytest.raises(ValueError, match=f"{name} is not a checkpoint"):
        load_foreign(tmp_path / name, "torchvision", "student", None, None)


def test_checkpoints_without_tensors_by_name(tmp_path: Path) -> None:
    assert "found the keys epoch, optimizer" in refuse({"epoch": 1, "optimizer": {}}, "timm", tmp_path)
    assert "found a list" in refuse([1, 2], "timm", tmp_path)
    mixed = refuse(renamed(network(1), "torchvision") | {"epoch": 3}, "torchvision", tmp_path)
    assert "found tensors and the keys epoch;" in mixed


def test_folders_with_several_files_ask_which(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one file of weights in .*, found none"):
        load_foreign(tmp_path, "timm", "student", None, None)
    for name in ("a.pth", "b.pth"):
        torch.save({}, tmp_path / name)
    with pytest.raises(ValueError, match="found a.pth, b.pth"):
        load_foreign(tmp_path, "timm", "student", None, None)
    with pytest.raises(ValueError, match="no file and no folder"):
        load_foreign(tmp_path / "nowhere.pth", "timm", "student", None, None)


def test_the_command_refuses_flags_that_mean_nothing(tmp_path: Path) -> None:
    network(1).save_pretrained(tmp_path / "model")
    out = ["--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="they go with --from"):
        main([str(tmp_path / "model"), "--pixels", "caffe", *out])
    with pytest.raises(SystemExit, match="leave out --from and --network"):
        main([str(tmp_path / "model"), "--format", "pretraining", "--network", "teacher", *out])
    with pytest.raises(SystemExit, match="has no configuration.*folder or a reachable Hub id"):
        main(["org/no-such-model", *out])
