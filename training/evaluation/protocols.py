"""The table of protocols. A new one is a file beside this one and a line here."""

from __future__ import annotations

from training.evaluation import (
    detection,
    linear_segmentation,
    object_knn,
    object_linear,
    patch_retrieval,
    segmentation,
)
from training.evaluation.evaluation import ProtocolEntry

QUICK = {"size_px": 96, "train_images": 400, "validation_images": 150}

PROTOCOLS: dict[str, ProtocolEntry] = {
    "object_knn": ProtocolEntry(
        version=1,
        settings=object_knn.ObjectKnnSettings,
        run=object_knn.run,
        quick=QUICK,
        needs="objects",
        summary="weighted k-NN over object features: as they are, re-contextualised, re-positioned",
    ),
    "object_linear": ProtocolEntry(
        version=1,
        settings=object_linear.ObjectLinearSettings,
        run=object_linear.run,
        quick=QUICK,
        needs="objects",
        summary="linear classifier on frozen object features, best of a few learning rates",
    ),
    "linear_segmentation": ProtocolEntry(
        version=1,
        settings=linear_segmentation.LinearSegmentationSettings,
        run=linear_segmentation.run,
        quick=QUICK | {"steps": 300, "learning_rate": 1e-2},
        needs="masks",
        summary="frozen backbone, one 1x1 convolution; mIoU",
    ),
    "patch_retrieval": ProtocolEntry(
        version=1,
        settings=patch_retrieval.PatchRetrievalSettings,
        run=patch_retrieval.run,
        quick=QUICK | {"memory_patches": 20_000},
        needs="masks",
        summary="segmentation by nearest patches of training images, nothing is trained; mIoU",
    ),
    "segmentation": ProtocolEntry(
        version=1,
        settings=segmentation.UperNetSettings,
        run=segmentation.run,
        quick=QUICK | {"steps": 150, "head_width": 64, "learning_rate": 1e-3},
        needs="masks",
        summary="fine-tuned inside UperNet; mIoU",
    ),
    "detection": ProtocolEntry(
        version=1,
        settings=detection.DetectionSettings,
        run=detection.run,
        quick=QUICK | {"steps": 300, "width": 128, "layers": 2, "queries": 50},
        needs="objects",
        summary="fine-tuned inside Deformable DETR; COCO average precision",
    ),
}
