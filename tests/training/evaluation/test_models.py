"""What can be evaluated, and what is refused with a reason."""

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

import modeling_decodepos
from modeling_decodepos import DecodePosConfig, DecodePosModel
from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.diagnosis import load_model as load_features
from modeling_decodepos.imagenet import IMAGE_MEAN
from training.evaluation.models import MapModel, load_model

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BOXES = [torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]), torch.zeros(0, 4), torch.ones(1, 4).cumsum(1) / 4]
BOXES[2][:, :2] = 0


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def save_resnet(folder: Path, **changes: object) -> Path:
    torch.manual_seed(3)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic")
    net = ResNetModel(config).eval()
    with torch.no_grad():
        for name, value in changes.items():
            net.get_parameter(name.replace("__", ".")).fill_(value)
    net.save_pretrained(folder)
    return folder


def test_a_plain_checkpoint_gives_features_of_regions_and_a_map(tmp_path: Path, pixels: torch.Tensor):
    model = load_model(str(save_resnet(tmp_path / "net")), 0)
    features, dense = model.embed(pixels, BOXES), model.dense(pixels)
    assert features.shape == (3, 24)
    assert dense.shape == (3, 24, 4, 4)  # a cell per 16 pixels
    for number, (one, box) in enumerate(zip(pixels, BOXES, strict=True)):  # whatever else is in the batch
        assert torch.allclose(model.dense(one[None]), dense[number : number + 1], atol=1e-5)
        if len(box):
            assert torch.allclose(
                model.embed(one[None], [box]), features[:2] if number == 0 else features[2:], atol=1e-5
            )


def test_a_model_without_a_backbone_class_is_read_through_its_tokens(tmp_path: Path, pixels: torch.Tensor):
    clip = CLIPVisionModel(CLIPVisionConfig(**SMALL, patch_size=16, image_size=64)).eval()
    clip.save_pretrained(tmp_path / "clip")
    # AutoModel gives the vision tower of such a folder.
    model = load_model(str(tmp_path / "clip"), 0)
    tokens = clip(model.prepare(pixels)).last_hidden_state
    dense = model.dense(pixels)
    assert dense.shape == (3, 24, 4, 4)
    assert torch.allclose(dense[1, :, 2, 3], tokens[1, 1 + 2 * 4 + 3], atol=1e-6)
    assert model.embed(pixels, BOXES).shape == (3, 24)
    with pytest.raises(ValueError, match="cannot be fine-tuned inside a segmenter or detector. object_knn"):
        model.backbone()


def test_untrained_networks_come_from_names_and_checkpoints_and_differ_by_seed(tmp_path: Path, pixels: torch.Tensor):
    folder = save_resnet(tmp_path / "net")
    trained, first, again, other = (
        load_model(name, seed).dense(pixels)
        for name, seed in ((str(folder), 0), (f"random:{folder}", 0), (f"random:{folder}", 0), (f"random:{folder}", 1))
    )
    assert torch.equal(first, again)
    assert first.shape == trained.shape
    assert not torch.allclose(first, trained, atol=1e-2)
    assert not torch.allclose(first, other, atol=1e-2)
    net = load_model("random:resnet_tiny", 0).net
    assert isinstance(net, DecodePosModel)
    assert net.backbone.config.hidden_sizes == BACKBONES["resnet_tiny"]().hidden_sizes


@pytest.mark.parametrize("name", ["nobody/no-such-model", "random:nobody/no-such-model", "/no/such/folder"])
def test_unknown_models_are_named_while_offline(name: str):
    missing = name.removeprefix("random:")
    with pytest.raises(FileNotFoundError, match=f"{missing}' is neither a folder nor .* random:resnet50"):
        load_model(name, 0)


def test_an_architecture_is_no_model():
    with pytest.raises(ValueError, match="'resnet18' names an architecture, not weights; say random:resnet18"):
        load_model("resnet18", 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_found(tmp_path: Path, pixels: torch.Tensor, value: float):
    name = "encoder__stages__3__layers__0__layer__1__convolution__weight"
    model = load_model(str(save_resnet(tmp_path / "net", **{name: value})), 0)
    for call in (lambda: model.embed(pixels, BOXES), lambda: model.dense(pixels)):
        with pytest.raises(ValueError, match="gives NaN or infinite features; there is nothing to measure"):
            call()


def test_a_model_that_reads_no_pictures_is_refused(tmp_path: Path):
    BertModel(BertConfig(**SMALL, vocab_size=50)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="a BertModel takes input_ids, not pixel_values"):
        load_model(str(tmp_path / "bert"), 0)


def test_pictures_of_another_size_reach_a_vit_that_can_take_them(tmp_path: Path):
    CLIPVisionModel(CLIPVisionConfig(**SMALL, patch_size=16, image_size=64)).save_pretrained(tmp_path / "clip")
    model = load_model(str(tmp_path / "clip"), 0)
    assert model.dense(torch.zeros(1, 3, 96, 96, dtype=torch.uint8)).shape == (1, 24, 6, 6)


def colours(pixels: torch.Tensor) -> list[torch.Tensor]:
    """Two maps of cells of 16 pixels; the last one is what evaluation takes."""
    found = torch.nn.functional.avg_pool2d(pixels, 16)
    return [found[:, :1], found]


NET = torch.nn.Conv2d(3, 5, 3, stride=16, padding=1)


def vision_instance() -> ViTModel:
    return ViTModel(ViTConfig(**SMALL, patch_size=16, image_size=64)).eval()


@pytest.mark.parametrize(
    "spec",
    [
        "random:resnet_tiny",
        "random:vit_small",
        "random:convnext",
        "colours_of:colours",
        colours,
        NET,
        vision_instance(),
        load_features(NET, size_px=64),
    ],
    ids=lambda spec: spec if isinstance(spec, str) else type(spec).__name__,
)
def test_both_commands_take_the_same_models_by_the_same_words(spec, tmp_path: Path, pixels, monkeypatch):
    (tmp_path / "colours_of.py").write_text(f"from {__name__} import colours\n")
    monkeypatch.chdir(tmp_path)  # where a function is looked for
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "colours_of", raising=False)
    maps = load_features(spec, size_px=64)(pixels)
    model = load_model(spec, 0)
    assert model.dense(pixels).shape[:2] == maps[-1].shape[:2]
    assert model.embed(pixels, BOXES).shape == (3, maps[-1].shape[1])
    assert (model.net if isinstance(model.net, MapModel) else model.net.config).region_bins == 14


def test_an_instance_gives_what_its_folder_gives_and_is_left_as_it_is(tmp_path: Path, pixels: torch.Tensor):
    torch.manual_seed(0)
    small = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic")
    ours = DecodePosModel(DecodePosConfig(backbone_config=small, region_bins=6, zero_init_residual=False)).eval()
    for number, instance in enumerate((ours, ResNetModel(small).eval(), vision_instance())):
        folder = str(tmp_path / str(number))
        instance.save_pretrained(folder)
        for bins in (0, 5):
            one, other = (load_model(spec, 0, region_bins=bins) for spec in (instance, folder))
            assert torch.equal(one.embed(pixels, BOXES), other.embed(pixels, BOXES))
            assert torch.equal(one.dense(pixels), other.dense(pixels))
    assert ours.config.region_bins == 6
    few, own = (load_model(ours, 0, region_bins=bins).embed(pixels, BOXES) for bins in (2, 0))
    assert not torch.equal(few, own)


def test_pixels_are_normalised_as_the_checkpoint_says_by_whatever_word_it_is_named(tmp_path: Path):
    folder = save_resnet(tmp_path / "net")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}')
    loaded = ResNetModel.from_pretrained(folder)
    for spec in (str(folder), f"random:{folder}", loaded):
        for model in (load_model(spec, 0), load_features(spec, size_px=64), load_features(spec, size_px=64).fresh(1)):
            assert (model.mean, model.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load_model("random:resnet_tiny", 0).mean == IMAGE_MEAN


@pytest.mark.parametrize("spec", ["random:convnext", colours], ids=["convnext", "function"])
def test_what_is_known_of_patches_is_that_they_are_aligned(spec, pixels):
    aligned, known = (load_model(spec, 0, reading=reading).embed(pixels, BOXES) for reading in ("aligned", "known"))
    assert torch.equal(aligned, known)


def test_readings_of_a_map_and_of_a_region_stage(tmp_path, pixels):
    """What is known of a ResNet is what its checkpoints are trained with as `centre_cells`."""
    maps = {
        reading: load_model(NET, 0, reading=reading).embed(pixels, BOXES) for reading in ("own", "aligned", "known")
    }
    assert torch.equal(maps["own"], maps["aligned"]) and not torch.allclose(maps["known"], maps["aligned"], atol=1e-3)
    torch.manual_seed(0)
    small = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic")
    for centred in (False, True):
        config = DecodePosConfig(backbone_config=small, region_bins=6, zero_init_residual=False, centre_cells=centred)
        torch.manual_seed(1)
        net = DecodePosModel(config).eval()
        expected = net(load_model(net, 0).prepare(pixels), regions=BOXES)
        expected = expected.region_embeddings[expected.valid_regions]
        named = {True: "known", False: "aligned"}[centred]
        for reading in ("own", named):
            assert torch.allclose(load_model(net, 0, reading=reading).embed(pixels, BOXES), expected, atol=1e-6)
        other = {True: "aligned", False: "known"}[centred]
        assert not torch.allclose(load_model(net, 0, reading=other).embed(pixels, BOXES), expected, atol=1e-3)
        # The same through the diagnosis' view of the network.
        features = load_features(net, size_px=64)
        assert torch.allclose(load_model(features, 0).embed(pixels, BOXES), expected, atol=1e-6)
    pooled = load_model(net, 0, stage="map", reading="aligned")
    last = net(pooled.prepare(pixels)).last_hidden_state
    assert torch.allclose(pooled.dense(pixels), last, atol=1e-5)
    assert pooled.embed(pixels, BOXES).shape == expected.shape


def test_an_instance_of_remote_code_is_read_as_one_of_ours(pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch):
    """`trust_remote_code` makes classes of another package out of the same files."""
    package = types.ModuleType("copied")
    package.__path__ = [str(Path(modeling_decodepos.__file__).parent)]
    monkeypatch.setitem(sys.modules, "copied", package)
    theirs = importlib.import_module("copied.modeling_decodepos")
    small = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic")
    ours = DecodePosModel(DecodePosConfig(backbone_config=small, region_bins=6, zero_init_residual=False)).eval()
    copied = theirs.DecodePosModel(theirs.DecodePosConfig.from_dict(ours.config.to_dict())).eval()
    copied.load_state_dict(ours.state_dict())
    assert not isinstance(copied, DecodePosModel)
    one, other = (load_model(spec, 0) for spec in (ours, copied))
    assert torch.equal(one.embed(pixels, BOXES), other.embed(pixels, BOXES))
    assert torch.equal(one.dense(pixels), other.dense(pixels))
    assert load_features(copied, size_px=64).stages == load_features(ours, size_px=64).stages
    wrapped = load_model(load_features(ours, size_px=64), 0)
    assert wrapped.embed(pixels, BOXES).shape == one.embed(pixels, BOXES).shape
