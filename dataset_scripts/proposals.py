"""Class-free region proposals of one image.

Boxes go in and come out as in Parquet: (N, 4) float32, x, y, width, height in pixels. A provider sees no class, and
with the same arguments it gives the same boxes.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float32]
Provider = Callable[[int, int, FloatArray, np.random.Generator], tuple[FloatArray, FloatArray | None]]

RANDOM_BOXES = 16
GRID_SIDES = (2, 3, 4)


def check_provider(name: str) -> None:
    """Raises if there is no such provider."""
    if name not in PROVIDERS:
        raise ValueError(f"proposals is {name!r}, expected one of {', '.join(PROVIDERS)}.")


def add_regions(row: dict[str, Any], provider: str) -> dict[str, Any]:
    """A row of the Parquet contract with its `regions`, which depend on the image and its id, not on where it lies."""
    digest = hashlib.sha256(row["image_id"].encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    objects = row["objects"]
    annotated = [box for box, crowd in zip(objects["bbox"], objects["iscrowd"], strict=True) if not crowd]
    boxes, scores = propose(provider, row["width"], row["height"], annotated, rng)
    regions = {
        "bbox": boxes.tolist(),
        "score": None if scores is None else scores.tolist(),
        "source": [provider] * len(boxes),
    }
    return {**row, "regions": regions}


def propose(
    provider: str, width: int, height: int, boxes: ArrayLike, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray | None]:
    """Proposals (M, 4) and their scores (M,), or None for scores where the provider ranks nothing.

    Args:
        provider: one of `PROVIDERS`.
        width: of the image, in pixels.
        height: of the image, in pixels.
        boxes: the annotated boxes of the image, (N, 4) xywh in pixels; only the provider "boxes" looks at them.
        rng: source of all randomness; only the provider "random" draws from it.
    """
    check_provider(provider)
    if width <= 0 or height <= 0:
        raise ValueError(f"The image is {width} x {height} px, expected both sides to be positive.")
    annotated = np.asarray(boxes, np.float32).reshape(-1, 4)
    return PROVIDERS[provider](width, height, annotated, rng)


def _annotated(
    width: int, height: int, boxes: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray | None]:
    """The annotated boxes, clipped to the image; those that keep no area are left out."""
    x1, y1 = np.maximum(boxes[:, 0], 0), np.maximum(boxes[:, 1], 0)
    x2, y2 = np.minimum(boxes[:, 0] + boxes[:, 2], width), np.minimum(boxes[:, 1] + boxes[:, 3], height)
    clipped = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
    return clipped[(clipped[:, 2:] > 0).all(axis=1)], None


def _random(
    width: int, height: int, boxes: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray | None]:
    """Boxes wholly inside the image: 3 % to 50 % of its area, sides up to 1 : 2 apart, both log-uniform."""
    area = np.exp(rng.uniform(math.log(0.03), math.log(0.5), RANDOM_BOXES)) * width * height
    ratio = np.exp(rng.uniform(-math.log(2), math.log(2), RANDOM_BOXES))
    w = np.minimum(np.sqrt(area * ratio), width)
    h = np.minimum(np.sqrt(area / ratio), height)
    x, y = rng.random(RANDOM_BOXES) * (width - w), rng.random(RANDOM_BOXES) * (height - h)
    return np.stack([x, y, w, h], axis=1).astype(np.float32), None


def _grid(
    width: int, height: int, boxes: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray | None]:
    """The cells of a 2 x 2, a 3 x 3 and a 4 x 4 grid."""
    cells = [
        (column * width / side, row * height / side, width / side, height / side)
        for side in GRID_SIDES
        for row in range(side)
        for column in range(side)
    ]
    return np.array(cells, np.float32), None


def _none(
    width: int, height: int, boxes: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray | None]:
    return np.zeros((0, 4), np.float32), None


PROVIDERS: dict[str, Provider] = {"boxes": _annotated, "random": _random, "grid": _grid, "none": _none}
