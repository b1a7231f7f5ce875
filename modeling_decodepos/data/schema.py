"""The Parquet contract between `dataset_scripts`, which writes it, and everything that reads it.

One row per image:

    image         Image, encoded bytes embedded
    image_id      string, unique in the data set
    width, height int32, pixels
    objects       {bbox, category, area, iscrowd}: annotations, four lists of equal length
    regions       {bbox, score, source}: class-free proposals, lists of equal length; score is null where none exists
    segmentation  Image or null; one channel: 0 = no class, k = category k - 1, 255 = ignore
    license, author, original_url, landing_url   strings or null

Every `bbox` is (x, y, width, height) in absolute pixels, float32, origin at the top left corner of the image, as in
COCO; it may reach beyond the image if the source's does. In memory boxes are xyxy in [0, 1]: `xywh_to_unit_xyxy`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from datasets import Features

SCHEMA_VERSION = 2
SEGMENTATION_IGNORE = 255

ORIGIN_COLUMNS = ("license", "author", "original_url", "landing_url")
COLUMNS = ("image", "image_id", "width", "height", "objects", "regions", "segmentation", *ORIGIN_COLUMNS)
OBJECT_FIELDS = ("bbox", "category", "area", "iscrowd")
REGION_FIELDS = ("bbox", "score", "source")


def build_features(class_names: Sequence[str]) -> "Features":
    """Hugging Face features of the contract for a data set with these classes."""
    from datasets import ClassLabel, Features, Image, List, Value

    if not class_names or len(set(class_names)) != len(class_names):
        raise ValueError(f"class_names has {len(class_names)} names, expected at least one and no name twice.")
    boxes = List(List(Value("float32"), length=4))
    columns = {
        "image": Image(),
        "image_id": Value("string"),
        "width": Value("int32"),
        "height": Value("int32"),
        "objects": {
            "bbox": boxes,
            "category": List(ClassLabel(names=list(class_names))),
            "area": List(Value("float32")),
            "iscrowd": List(Value("bool")),
        },
        "regions": {"bbox": boxes, "score": List(Value("float32")), "source": List(Value("string"))},
        "segmentation": Image(),
    }
    return Features(columns | {name: Value("string") for name in ORIGIN_COLUMNS})


def xywh_to_unit_xyxy(bbox: ArrayLike, width: int, height: int) -> NDArray[np.float32]:
    """Boxes (N, 4) as xyxy in units of the image, from xywh in pixels; not clipped. An empty list gives (0, 4)."""
    boxes = _as_boxes(bbox, width, height)
    x, y, w, h = boxes.T
    return np.stack([x / width, y / height, (x + w) / width, (y + h) / height], axis=1).astype(np.float32)


def unit_xyxy_to_xywh(boxes: ArrayLike, width: int, height: int) -> NDArray[np.float32]:
    """Boxes (N, 4) as xywh in pixels, from xyxy in units of the image; not clipped. An empty list gives (0, 4)."""
    x1, y1, x2, y2 = _as_boxes(boxes, width, height).T
    return np.stack([x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height], axis=1).astype(np.float32)


def _as_boxes(boxes: ArrayLike, width: int, height: int) -> NDArray[np.float64]:
    # float64: in float32 a box that touches the far border of a large image can come back a pixel fraction outside.
    if width <= 0 or height <= 0:
        raise ValueError(f"The image is {width} x {height} px, expected both sides to be positive.")
    array = np.asarray(boxes, np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"Boxes have shape {array.shape}, expected (N, 4).")
    return array


def row_problems(row: Mapping[str, Any], class_count: int) -> list[str]:
    """What is wrong with the annotations of one decoded row, in words; empty if nothing is.

    Arrow fixes the types. This looks at what types do not say: list lengths, sizes, categories, boxes without area.
    """
    problems = []
    width, height = row["width"], row["height"]
    if not row["image_id"]:
        problems.append("image_id is empty")
    if not (width and height and width > 0 and height > 0):
        return [*problems, f"width x height is {width} x {height}, expected two positive numbers"]
    for column, fields in (("objects", OBJECT_FIELDS), ("regions", REGION_FIELDS)):
        values = row[column]
        if values is None or values["bbox"] is None:
            problems.append(f"{column} is null, expected lists (empty ones if there are none)")
            continue
        lengths = {field: len(values[field]) for field in fields if values[field] is not None}
        if len(set(lengths.values())) > 1:
            problems.append(f"the lists of {column} differ in length: {lengths}")
        if missing := [field for field in fields if values[field] is None and field != "score"]:
            problems.append(f"{column} has no {', '.join(missing)}")
        problems += [f"{column}: {text}" for text in _box_problems(values["bbox"], width, height)]
    categories = (row["objects"] or {}).get("category") or []
    if wrong := [c for c in categories if c is None or not 0 <= c < class_count]:
        problems.append(f"objects: category {wrong[0]}, expected 0 to {class_count - 1}")
    return problems


def _box_problems(boxes: Sequence[Sequence[float]], width: int, height: int) -> list[str]:
    if not len(boxes):
        return []
    array = np.asarray(boxes, np.float64)
    if not np.isfinite(array).all():
        return ["a box is not finite"]
    x, y, w, h = array.T
    problems = []
    if (flat := (w <= 0) | (h <= 0)).any():
        problems.append(f"box {array[flat][0].tolist()} has no area")
    if (away := (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)).any():
        problems.append(f"box {array[away][0].tolist()} lies outside the {width} x {height} px image")
    return problems
