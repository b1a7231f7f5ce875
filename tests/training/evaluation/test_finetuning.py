"""Networks that learn through their backbone: boxes as detectors want them, and small trainings that must learn."""

import importlib.util

import pytest
import torch
from transformers import ConvNextConfig, Dinov2Config, ResNetConfig

from modeling_decodepos import DecodePosConfig, DecodePosModel
from tests.training.evaluation.conftest import SIDE
from training.evaluation import detection, segmentation
from training.evaluation.annotated_images import AnnotatedImages
from training.evaluation.detection import DetectionSettings, best, target
from training.evaluation.evaluation import Common, Evaluation
from training.evaluation.finetuning import build_backbone, choose_maps, flip_some
from training.evaluation.models import EvaluatedModel
from training.evaluation.segmentation import UperNetSettings

needs_scipy = pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="needs scipy")
CONFIGS = {
    "resnet": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1]),
    "dinov2": lambda: Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, patch_size=8, image_size=SIDE, use_mask_token=False
    ),
}


def small(kind: str, squares) -> Evaluation:
    torch.manual_seed(0)
    net = DecodePosModel(DecodePosConfig(backbone_config=CONFIGS[kind](), zero_init_residual=False)).eval()
    built = Evaluation(Common("small", str(squares), size_px=SIDE))
    built.__dict__["model"] = EvaluatedModel("small", net)
    return built


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_weights_inside_are_those_of_the_model_and_learn_apart_from_it(kind, squares):
    model = small(kind, squares).model
    backbone = build_backbone(model, 4)
    before = {name: value.clone() for name, value in model.backbone().state_dict().items()}
    for name, value in backbone.state_dict().items():
        if "hidden_states_norms" not in name:
            assert torch.equal(value, before[name]), name
    assert len(backbone(torch.randn(2, 3, SIDE, SIDE)).feature_maps) == 4
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone().state_dict().items())


def test_maps_are_the_last_stages_or_spaced_layers():
    assert choose_maps(CONFIGS["resnet"](), 3) == ["stage2", "stage3", "stage4"]
    deep = Dinov2Config(num_hidden_layers=12)
    assert choose_maps(deep, 4) == ["stage3", "stage6", "stage9", "stage12"]
    assert choose_maps(deep, 1) == ["stage12"]
    assert choose_maps(Dinov2Config(num_hidden_layers=2), 4) == ["stage1", "stage2"]


def test_boxes_are_mirrored_with_their_pictures(squares):
    picture = AnnotatedImages(str(squares), "train").picture(0, SIDE)
    straight, mirrored = (target(picture, flip, torch.device("cpu"))["boxes"] for flip in (False, True))
    expected = straight.clone()
    expected[:, 0] = 1 - expected[:, 0]
    assert torch.allclose(mirrored, expected)
    x, y, w, h = (straight[0] * SIDE).tolist()
    patch = picture.pixels[:, round(y - h / 2) : round(y + h / 2), round(x - w / 2) : round(x + w / 2)]
    assert len(patch.flatten(1).unique(dim=1).T) == 1  # one colour: the box is the square


def test_flips_depend_on_seed_step_and_item_only():
    pixels = torch.arange(24, dtype=torch.uint8).view(4, 3, 1, 2)
    flipped, flips = flip_some(pixels, 0, 3, [5, 6, 7, 8])
    assert flips == flip_some(pixels[2:], 0, 3, [5, 6])[1] + flip_some(pixels[2:], 0, 3, [7, 8])[1]
    assert torch.equal(flipped, torch.stack([p.flip(-1) if f else p for p, f in zip(pixels, flips, strict=True)]))
    drawn = [flip for step in range(50) for flip in flip_some(pixels, 0, step, [0, 1, 2, 3])[1]]
    assert 0.35 < sum(drawn) / len(drawn) < 0.65


def test_the_best_detections_are_in_pixels_of_the_stored_image():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    boxes = torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.25, 0.5, 0.5, 0.5]])
    found = best(scores, boxes, (100, 200))
    assert found.scores[:2] == pytest.approx([0.9, 0.8])
    assert found.classes[:2] == [1, 0]
    assert found.boxes[0] == pytest.approx([50, 0, 100, 100])
    assert found.boxes[1] == pytest.approx([0, 25, 100, 50])


@needs_scipy
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_detector_of_any_backbone_takes_a_step(kind, squares):
    built = small(kind, squares)
    settings = DetectionSettings(steps=2, images_per_update=4, width=32, layers=2, queries=5)
    images = built.images("train")
    net = detection.build_detector(built, 3, settings)
    before = {name: value.clone() for name, value in net.named_parameters()}
    detection.train_detector(built, net, images, settings)
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert any("backbone" in name for name in moved)
    assert any("class_embed" in name for name in moved)
    truth, found = detection.detect(built, net, built.images("validation"))
    assert len(truth) == len(found) == 12
    assert all(len(image.boxes) == 15 for image in found)


@pytest.mark.slow
@needs_scipy
def test_a_detector_learns_squares(squares):
    pytest.importorskip("pycocotools")
    built = small("resnet", squares)
    settings = DetectionSettings(steps=200, images_per_update=8, learning_rate=4e-3, width=32, layers=2, queries=10)
    found = detection.run(built, settings)
    assert found["ap50"].value > 0.1


def test_what_the_detector_cannot_be_is_refused(squares):
    with pytest.raises(ValueError, match="width is 48; expected a multiple of 32"):
        detection.run(small("resnet", squares), DetectionSettings(width=48))
    with pytest.raises(ValueError, match="layers is 1; expected at least 2"):
        detection.run(small("resnet", squares), DetectionSettings(layers=1))


def test_a_segmenter_learns_squares(squares):
    settings = UperNetSettings(steps=40, images_per_update=8, learning_rate=3e-3, head_width=16)
    found = segmentation.run(small("resnet", squares), settings)
    assert found["miou"].value > 0.5
    assert found["pixel_accuracy"].value > 0.85
