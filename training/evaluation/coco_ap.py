"""COCO average precision of boxes, by pycocotools, or by faster-coco-eval where only that is installed."""

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


@dataclass(frozen=True)
class AveragePrecision:
    """In [0, 1]. `ap`: mean over IoU thresholds 0.50 to 0.95 and classes; the others at one threshold."""

    ap: float
    ap50: float
    ap75: float


def average_precision(
    truth: Sequence[ImageTruth], detections: Sequence[ImageDetections], classes: int
) -> AveragePrecision:
    """What COCO's own code makes of detections, image by image. Boxes of crowds neither help nor hurt.

    Args:
        truth: Annotations.
        detections: Of the same images in the same order.
        classes: Number of classes.
    """
    if len(truth) != len(detections):
        raise ValueError(f"there are annotations of {len(truth)} images and detections of {len(detections)}.")
    if not sum(len(image.boxes) for image in truth):
        raise ValueError("no image has an annotated box: there is nothing to detect.")
    tools = find_tools()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, whatever one asks
        known = tools.COCO()
        known.dataset = _annotations(truth, classes)
        known.createIndex()
        rows = _detections(detections)
        if not rows:
            return AveragePrecision(0.0, 0.0, 0.0)
        evaluator = tools.COCOeval(known, known.loadRes(rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    ap, ap50, ap75 = (float(value) for value in evaluator.stats[:3])
    return AveragePrecision(ap, ap50, ap75)


@dataclass(frozen=True)
class Tools:
    """The two classes of COCO's code."""

    name: str
    COCO: Any
    COCOeval: Any


def find_tools(wanted: str = "") -> Tools:
    """The installed implementation, or the wanted one."""
    if wanted in ("", "pycocotools") and importlib.util.find_spec("pycocotools"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return Tools("pycocotools", COCO, COCOeval)
    if wanted in ("", "faster-coco-eval") and importlib.util.find_spec("faster_coco_eval"):
        from faster_coco_eval import COCO as FastCOCO
        from faster_coco_eval import COCOeval_faster

        return Tools("faster-coco-eval", FastCOCO, COCOeval_faster)
    raise ValueError(
        f"detection needs {wanted or 'pycocotools or faster-coco-eval'}, not installed here: pip install "
        "'decodepos[evaluation]', or pip install pycocotools."
    )


def _annotations(truth: Sequence[ImageTruth], classes: int) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(truth):
        images.append({"id": number + 1, "width": image.width, "height": image.height})
        for box, category, crowd in zip(image.boxes, image.classes, image.crowd, strict=True):
            values = [float(value) for value in box]
            annotations.append(
                {
                    "id": len(annotations) + 1,  # an id of 0 would count as not matched
                    "image_id": number + 1,
                    "category_id": int(category) + 1,
                    "bbox": values,
                    "area": values[2] * values[3],
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": number + 1, "name": str(number)} for number in range(classes)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _detections(detections: Sequence[ImageDetections]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": number + 1,
            "category_id": int(category) + 1,
            "bbox": [float(value) for value in box],
            "score": float(score),
        }
        for number, image in enumerate(detections)
        for box, category, score in zip(image.boxes, image.classes, image.scores, strict=True)
    ]
