"""`detection`: the backbone fine-tuned inside transformers' Deformable DETR. COCO average precision of boxes.

Deformable DETR takes maps of any number and stride, so CNNs and plain ViTs fit in, and it needs neither torchvision
nor timm. It is not the paper's detector: docs/detectron2.md says how to run that one. AdamW on everything, the
backbone at a tenth of the learning rate, mirrored images as the only augmentation; batch norms keep learning.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrConvEncoder

from training.evaluation.annotated_images import AnnotatedImages, Picture, count_classes
from training.evaluation.coco_ap import ImageDetections, ImageTruth, average_precision, check_tools
from training.evaluation.evaluation import Evaluation
from training.evaluation.finetuning import build_backbone, choose_maps, fine_tune
from training.evaluation.results import Measured
from training.evaluation.segmentation_data import read_batches, stack_pixels
from training.evaluation.settings import DetectionSettings

_MOST_DETECTIONS = 100  # per image, as COCO counts them


def run(evaluation: Evaluation, settings: DetectionSettings) -> Mapping[str, Measured]:
    """Average precision of one seed."""
    if settings.width % 32 or settings.width < 32:
        raise ValueError(
            f"width is {settings.width}; expected a multiple of 32 (the detector's group norms), such as 256."
        )
    if settings.layers < 2:
        raise ValueError(f"layers is {settings.layers}; expected at least 2: boxes are refined from layer to layer.")
    check_tools()
    if importlib.util.find_spec("scipy") is None:
        raise ValueError(
            "detection needs scipy for its matcher, not installed here: pip install 'decodepos[evaluation]'."
        )
    train, validation = evaluation.images("train"), evaluation.images("validation")
    classes = count_classes(train, validation)
    net = build_detector(evaluation, classes, settings)
    train_detector(evaluation, net, train, settings)
    truth, found = detect(evaluation, net, validation)
    precision = average_precision(truth, found, classes)
    return {name: Measured(value, None, len(truth)) for name, value in precision.items()}


def build_detector(evaluation: Evaluation, classes: int, settings: DetectionSettings) -> Any:
    """Deformable DETR around the model's backbone; the rest starts from the seed."""
    source = evaluation.model.backbone()
    # Layers of one resolution hold no other scales: the last one is enough.
    maps = settings.maps if getattr(source.config, "depths", None) else 1
    backbone = build_backbone(evaluation.model, maps)
    torch.manual_seed(evaluation.seed)
    config: Any = DeformableDetrConfig(
        backbone_config=backbone.config,
        num_queries=settings.queries,
        num_feature_levels=len(choose_maps(source.config, maps)),
        d_model=settings.width,
        encoder_layers=settings.layers,
        decoder_layers=settings.layers,
        encoder_ffn_dim=4 * settings.width,
        decoder_ffn_dim=4 * settings.width,
        with_box_refine=True,
        auxiliary_loss=True,
        disable_custom_kernels=True,
    )
    config.num_labels = classes
    net: Any = DeformableDetrForObjectDetection(config)
    start_modestly(net)
    # transformers freezes batch norms, which would leave an untrained network with no statistics at all.
    (holder,) = [part for part in net.modules() if isinstance(part, DeformableDetrConvEncoder)]
    holder.model = backbone
    return net.to(evaluation.model.device)


@torch.no_grad()
def start_modestly(net: Any) -> None:
    """Start as the original does, which transformers leaves to its checkpoints: rare objects, boxes at their anchors.

    Without, every query begins by seeing every class with probability 1/2, and short trainings only unlearn that.
    """
    for layer in net.class_embed:
        layer.bias.fill_(-math.log(99.0))  # a probability of 1 %
    for layer in net.bbox_embed:
        last = layer.layers[-1]
        last.weight.zero_()
        last.bias.zero_()
    net.bbox_embed[0].layers[-1].bias[2:] = -2.0


def train_detector(evaluation: Evaluation, net: Any, images: AnnotatedImages, settings: DetectionSettings) -> None:
    """Train in place."""
    count = evaluation.processes.count
    slow = {id(p) for part in net.modules() if isinstance(part, DeformableDetrConvEncoder) for p in part.parameters()}
    groups = [
        {"params": [p for p in net.parameters() if id(p) in slow], "lr": settings.learning_rate / 10},
        {"params": [p for p in net.parameters() if id(p) not in slow], "lr": settings.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)

    def loss(batch: list[Picture], pixels: Tensor, flips: list[bool]) -> tuple[Tensor, Tensor]:
        targets = [target(picture, flip, net.device) for picture, flip in zip(batch, flips, strict=True)]
        # transformers divides by the boxes of all processes, as a mean over processes.
        return net(pixels, labels=targets).loss / count, torch.tensor(1.0 / count)

    fine_tune(evaluation, net, optimizer, loss, images, settings, least=1, clip=0.1)


def target(picture: Picture, flip: bool, device: torch.device) -> dict[str, Tensor]:
    """The boxes of a picture as transformers' detectors want them: centre and size in [0, 1]."""
    x1, y1, x2, y2 = picture.boxes.unbind(1)
    if flip:
        x1, x2 = 1 - x2, 1 - x1
    boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
    real = (boxes[:, 2:] > 0).all(1)
    return {"class_labels": picture.labels[real].to(device), "boxes": boxes[real].to(device)}


@torch.no_grad()
def detect(
    evaluation: Evaluation, net: Any, images: AnnotatedImages
) -> tuple[list[ImageTruth], list[ImageDetections]]:
    """Annotations and detections of every image of a split, in the order of ids."""
    processes = evaluation.processes
    own: list[tuple[str, ImageTruth, ImageDetections]] = []
    truths = {images.ids[place]: truth_of(images, place) for place in processes.own(range(len(images)))}
    for batch in read_batches(evaluation, images, "detections"):
        output = net(evaluation.model.prepare(stack_pixels(batch)))
        for scores, boxes, picture in zip(output.logits.sigmoid().cpu(), output.pred_boxes.cpu(), batch, strict=True):
            own.append((picture.image_id, truths[picture.image_id], best(scores, boxes, picture.size)))
    # A stable order, though an image that cannot be read may be missing from a process's part.
    every = sorted((row for part in processes.collect([own]) for row in part), key=lambda row: row[0])
    return [truth for _, truth, _ in every], [found for _, _, found in every]


def truth_of(images: AnnotatedImages, place: int) -> ImageTruth:
    """The stored annotations of an image, crowds among them."""
    images.annotations(place)  # refuses boxes without classes
    values = images.raw_objects(place)
    height, width = images.source.size(images.indices[place])
    crowd = values["iscrowd"] or [False] * len(values["bbox"])
    return ImageTruth(width, height, values["bbox"], values["category"], [bool(flag) for flag in crowd])


def best(scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> ImageDetections:
    """The best detections of an image, from (Q, C) scores and (Q, 4) boxes as centre and size in [0, 1]."""
    height, width = size
    classes = scores.shape[1]
    values, places = scores.flatten().topk(min(_MOST_DETECTIONS, scores.numel()))
    x, y, w, h = boxes[places // classes].unbind(1)
    rows = torch.stack([(x - w / 2) * width, (y - h / 2) * height, w * width, h * height], 1)
    return ImageDetections(rows.tolist(), (places % classes).tolist(), values.tolist())
