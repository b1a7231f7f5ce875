"""What each protocol can be told. Every field is a flag; what changes a number is part of the protocol's id.

A docstring is what `--help` says of the protocol. This file imports no torch, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from modeling_decodepos.commands.settings import check, key
from modeling_decodepos.diagnosis.models.readings import READINGS, choose_reading

STAGES = ("regions", "map")

_COUNT, _FROM_ZERO, _SIDE = (1, 2**31), (0, 2**31), (8, 16_384)


@dataclass(frozen=True)
class Common:
    """What all protocols can be told."""

    model: str = key(
        MISSING, "folder or Hub id; random:NAME or random:FOLDER, an untrained network; timm:NAME; module:function"
    )
    data: str = key(MISSING, "folder or Hub id in the layout of modeling_decodepos/data/schema.py")
    seed: int = key(0, "of everything that is drawn", within=_FROM_ZERO)
    size_px: int = key(224, "side that images are resized to", within=_SIDE)
    region_bins: int = key(0, "bins per side of a region; 0: the checkpoint's own, or 14", within=(0, 1000))
    reading: str = key(
        "own", "where cells lie: " + "; ".join(f"{n} ({t})" for n, t in READINGS.items()), choices=tuple(READINGS)
    )
    centre_cells: bool = key(False, "the same as the reading known, which it was called before")
    stage: str = key(
        STAGES[0],
        "what regions of a ResNet are: regions (its last stage runs on regions of the map before, as in the paper) or "
        "map (pooled from the last map, as those of all other networks)",
        choices=STAGES,
    )
    train_split: str = key("train", "split that galleries and heads learn from")
    validation_split: str = key("validation", "split that is measured")
    train_images: int = key(0, "take only this many training images; 0: all", within=_FROM_ZERO)
    validation_images: int = key(0, "measure on only this many images; 0: all", within=_FROM_ZERO)
    batch_size: int = key(64, "images at a time through a frozen network; no number depends on it", within=_COUNT)
    num_workers: int = key(0, "processes that read images", within=(0, 1000))

    def __post_init__(self) -> None:
        check(self)
        choose_reading(self.reading, self.centre_cells)


@dataclass(frozen=True)
class ObjectKnnSettings:
    """Weighted k-NN over object features: as they are, re-contextualised, re-positioned, alone."""

    neighbours: tuple[int, ...] = key((10, 20, 100, 200), "numbers of neighbours, k", within=_COUNT)
    temperature: float = key(0.07, "a neighbour votes with exp(cosine / this)", above=0)
    variants: bool = key(True, "whether to re-contextualise, re-position and show objects alone too")


@dataclass(frozen=True)
class ObjectLinearSettings:
    """Linear classifier on frozen object features, best of a few learning rates."""

    learning_rates: tuple[float, ...] = key(
        (0.01, 0.03, 0.1, 0.3), "peaks to choose from, for 256 objects per update", above=0
    )
    epochs: int = key(28, "passes over the training objects", within=_COUNT)
    objects_per_update: int = key(256, "batch size of the classifier", within=_COUNT)
    weight_decay: float = key(1e-4, "of SGD", within=_FROM_ZERO)


@dataclass(frozen=True)
class LinearSegmentationSettings:
    """Frozen backbone, one 1x1 convolution; mIoU."""

    steps: int = key(4000, "updates of the head", within=_COUNT)
    head_batch_size: int = key(16, "images per update", within=_COUNT)
    learning_rate: float = key(1e-3, "peak, of AdamW", above=0)
    weight_decay: float = key(1e-4, "of AdamW", within=_FROM_ZERO)


@dataclass(frozen=True)
class PatchRetrievalSettings:
    """Segmentation by nearest patches of training images, nothing is trained; mIoU."""

    neighbours: int = key(30, "neighbours of a patch", within=_COUNT)
    temperature: float = key(0.02, "a neighbour counts softmax(cosine / this)", above=0)
    memory_patches: int = key(1_000_000, "most patches in the memory, drawn evenly", within=_COUNT)


@dataclass(frozen=True)
class UperNetSettings:
    """Fine-tuned inside UperNet; mIoU."""

    steps: int = key(20_000, "updates", within=_COUNT)
    images_per_update: int = key(16, "batch size over all processes", within=_COUNT)
    learning_rate: float = key(1e-4, "peak, of AdamW", above=0)
    weight_decay: float = key(0.01, "of AdamW", within=_FROM_ZERO)
    head_width: int = key(512, "channels of the UperNet head", within=_COUNT)


@dataclass(frozen=True)
class DetectionSettings:
    """Fine-tuned inside Deformable DETR; COCO average precision."""

    steps: int = key(90_000, "updates", within=_COUNT)
    images_per_update: int = key(16, "batch size over all processes", within=_COUNT)
    learning_rate: float = key(2e-4, "peak, of AdamW; the backbone's is a tenth", above=0)
    weight_decay: float = key(1e-4, "of AdamW", within=_FROM_ZERO)
    maps: int = key(3, "feature maps of the backbone; a ViT gives its last one", within=(1, 100))
    width: int = key(256, "channels of the detector", within=_COUNT)
    layers: int = key(6, "layers of its encoder, and of its decoder", within=_COUNT)
    queries: int = key(300, "boxes per image that it proposes", within=_COUNT)
