"""The table of protocols. A new one is a file beside this one, its settings, and an entry here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.evaluation.settings import (
    DetectionSettings,
    LinearSegmentationSettings,
    ObjectKnnSettings,
    ObjectLinearSettings,
    PatchRetrievalSettings,
    SegmentationSettings,
)


@dataclass(frozen=True)
class ProtocolEntry:
    """One protocol of the table.

    Attributes:
        name: Of the protocol, and of its file.
        version: Counts up whenever the numbers of equal settings change.
        settings: A dataclass; its fields are flags, and part of the protocol id.
        needs: What the data must have: "objects" (boxes with classes), "masks".
        summary: One line.
        quick: Common and own settings for a look in minutes on a CPU.
    """

    name: str
    version: int
    settings: type[Any]
    needs: str
    summary: str
    quick: dict[str, Any]

    @property
    def run(self) -> Callable[..., Any]:
        """`run(evaluation, settings)`: the numbers of one seed by name. Its file is loaded here, torch with it."""
        run: Callable[..., Any] = importlib.import_module(f"training.evaluation.{self.name}").run
        return run


QUICK = {"size_px": 96, "train_images": 400, "validation_images": 150}
_ENTRIES = (
    ProtocolEntry(
        "object_knn",
        1,
        ObjectKnnSettings,
        "objects",
        "weighted k-NN over object features: as they are, re-contextualised, re-positioned",
        QUICK,
    ),
    ProtocolEntry(
        "object_linear",
        1,
        ObjectLinearSettings,
        "objects",
        "linear classifier on frozen object features, best of a few learning rates",
        QUICK,
    ),
    ProtocolEntry(
        "linear_segmentation",
        1,
        LinearSegmentationSettings,
        "masks",
        "frozen backbone, one 1x1 convolution; mIoU",
        QUICK | {"steps": 300, "learning_rate": 1e-2},
    ),
    ProtocolEntry(
        "patch_retrieval",
        1,
        PatchRetrievalSettings,
        "masks",
        "segmentation by nearest patches of training images, nothing is trained; mIoU",
        QUICK | {"memory_patches": 20_000},
    ),
    ProtocolEntry(
        "segmentation",
        1,
        SegmentationSettings,
        "masks",
        "fine-tuned inside UperNet; mIoU",
        QUICK | {"steps": 150, "head_width": 64, "learning_rate": 1e-3},
    ),
    ProtocolEntry(
        "detection",
        1,
        DetectionSettings,
        "objects",
        "fine-tuned inside Deformable DETR; COCO average precision",
        QUICK | {"steps": 300, "width": 128, "layers": 2, "queries": 50},
    ),
)
PROTOCOLS: dict[str, ProtocolEntry] = {entry.name: entry for entry in _ENTRIES}
