"""What can be evaluated, and what is refused with a reason."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel, ResNetConfig, ResNetModel

from modeling_decodepos import DecodePosModel
from modeling_decodepos.backbones import BACKBONES
from training.evaluation.models import load_model

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
    CLIPVisionModel(CLIPVisionConfig(**SMALL, patch_size=16, image_size=64)).save_pretrained(tmp_path / "clip")
    # AutoModel gives the vision tower of such a folder.
    model = load_model(str(tmp_path / "clip"), 0)
    tokens = model.net.net(model.prepare(pixels)).last_hidden_state
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
    with pytest.raises(ValueError, match=f"no folder and no reachable Hub id '{name.removeprefix('random:')}'"):
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
    with pytest.raises(ValueError, match="this is a 'bert' model, which reads input_ids, not pictures"):
        load_model(str(tmp_path / "bert"), 0)


def test_pictures_of_a_size_that_a_vit_cannot_take_are_refused(tmp_path: Path):
    CLIPVisionModel(CLIPVisionConfig(**SMALL, patch_size=16, image_size=64)).save_pretrained(tmp_path / "clip")
    model = load_model(str(tmp_path / "clip"), 0)
    with pytest.raises(ValueError, match=r"96\*96.*64\*64"):
        model.dense(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
