"""COCO average precision of boxes, as pycocotools computes it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageTruth:
    """The annotated boxes of one image, xywh in pixels."""

    width: int
    height: int
    boxes: Sequence[Sequence[float]]
    classes: Sequence[int]
    crowd: Sequence[bool]


@dataclass(frozen=True)
class ImageDetections:
    """The detected boxes of one image, xywh in pixels."""

    boxes: Sequence[Sequence[float]]
    classes: Sequence[int]
    scores: Sequence[float]


def average_precision(
    truth: Sequence[ImageTruth], detections: Sequence[ImageDetections], classes: int
) -> dict[str, float]:
    """`ap` (mean over classes and IoU thresholds from 0.50 to 0.95), `ap50` and `ap75`, in [0, 1].

    Detections are of the same images in the same order. Boxes of crowds neither help nor hurt.
    """
    if not sum(len(image.boxes) for image in truth):
        raise ValueError("no image has an annotated box: there is nothing to detect.")
    check_tools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = ("ap", "ap50", "ap75")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, whatever one asks
        known = COCO()
        known.dataset = _annotations(truth, classes)
        known.createIndex()
        rows = [
            _row(number, box, category) | {"score": float(score)}
            for number, image in enumerate(detections)
            for box, category, score in zip(image.boxes, image.classes, image.scores, strict=True)
        ]
        if not rows:
            return dict.fromkeys(names, 0.0)
        evaluator = COCOeval(known, known.loadRes(rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {name: float(value) for name, value in zip(names, evaluator.stats[:3], strict=True)}


def check_tools() -> None:
    """Raises ValueError where pycocotools is not installed: better before a training than after it."""
    if importlib.util.find_spec("pycocotools") is None:
        raise ValueError("detection needs pycocotools, not installed here: pip install 'decodepos[evaluation]'.")


def _annotations(truth: Sequence[ImageTruth], classes: int) -> dict[str, Any]:
    annotations = [
        _row(number, box, category) | {"area": float(box[2]) * float(box[3]), "iscrowd": int(crowd)}
        for number, image in enumerate(truth)
        for box, category, crowd in zip(image.boxes, image.classes, image.crowd, strict=True)
    ]
    return {
        "info": {},
        "images": [{"id": n + 1, "width": image.width, "height": image.height} for n, image in enumerate(truth)],
        # An id of 0 would count as not matched.
        "annotations": [{"id": number} | row for number, row in enumerate(annotations, start=1)],
        "categories": [{"id": number + 1, "name": str(number)} for number in range(classes)],
    }


def _row(image: int, box: Sequence[float], category: int) -> dict[str, Any]:
    return {"image_id": image + 1, "category_id": int(category) + 1, "bbox": [float(value) for value in box]}
