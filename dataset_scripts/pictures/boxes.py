"""Annotated boxes as they are found: in which format they are, and which of them are of no use."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

MALFORMED = "without four finite numbers as box"
FLAT = "without area"
OUTSIDE = "outside the image"
BOX_FORMATS = ("xywh", "xyxy")
FARTHEST = float(np.finfo(np.float32).max)  # they are stored as float32


def box_faults(boxes: ArrayLike, width: ArrayLike, height: ArrayLike) -> NDArray[np.str_]:
    """For each box (N, 4) xywh in pixels what makes it useless, or nothing if it can be used.

    A box is NaN where there is none. The width and height are those of the image, or (N,) of the image of each box;
    infinite where they are not known.
    """
    width, height = np.asarray(width, np.float64), np.asarray(height, np.float64)
    x, y, w, h = np.asarray(boxes, np.float32).reshape(-1, 4).astype(np.float64).T  # as precise as they are stored
    with np.errstate(invalid="ignore"):
        outside = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
        flat = (w <= 0) | (h <= 0)
    malformed = ~np.isfinite(x + y + w + h)
    return np.select([malformed, flat, outside], [MALFORMED, FLAT, OUTSIDE], "")


def count_faults(faults: Iterable[str]) -> dict[str, int]:
    """How many boxes have each fault, in a fixed order."""
    return dict(sorted(Counter(str(fault) for fault in faults if fault).items()))


def as_box(value: object) -> tuple[float, float, float, float]:
    """Four numbers as found in a file; NaN if they are not four numbers that can be stored."""
    if isinstance(value, list | tuple) and len(value) == 4 and all(map(_can_be_stored, value)):
        x, y, w, h = value
        return float(x), float(y), float(w), float(h)
    return (np.nan,) * 4


def _can_be_stored(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FARTHEST


# ------------------------------------------------------------------------------------------------------------- formats


def to_xywh(boxes: NDArray[np.float64], box_format: str) -> NDArray[np.float64]:
    """Boxes (N, 4) as x, y, width, height."""
    return boxes if box_format == "xywh" else np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def choose_box_format(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> str:
    """Whether the boxes (N, 4) of a data set are xywh or xyxy: as the wrong one, many of them are impossible.

    `sizes` (N, 2) are width and height of the image of each; infinite where it is not known.
    """
    impossible = _impossible(boxes, sizes)
    if not np.isfinite(boxes).all(axis=1).any():
        return "xywh"  # there is nothing to choose for
    likely, other = sorted(impossible, key=impossible.__getitem__)
    if impossible[likely] > 0.02 or impossible[other] < 0.05:
        raise ValueError(
            f"Boxes may be xywh ({impossible['xywh']:.1%} of them impossible) or xyxy ({impossible['xyxy']:.1%}). "
            "Look at one of them and say --box_format xywh or xyxy."
        )
    return likely


def check_xywh(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> None:
    """Refuse boxes that are meant to be x, y, width, height in pixels and cannot be, given their images' sizes."""
    impossible = _impossible(boxes, sizes)
    if impossible["xywh"] > 0.02 and impossible["xyxy"] <= 0.02:
        raise ValueError(
            f"{impossible['xywh']:.1%} of the boxes reach beyond their images if they are x, y, width, height, and "
            f"{impossible['xyxy']:.1%} if they are x1, y1, x2, y2. Say --box_format xyxy, or correct them."
        )


def _impossible(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> dict[str, float]:
    """Share of the boxes that each format would make reach beyond their image, or have no area."""
    finite = np.isfinite(boxes).all(axis=1)
    boxes, sizes = boxes[finite], sizes[finite]
    if not len(boxes):
        return dict.fromkeys(BOX_FORMATS, 0.0)
    if (boxes >= 0).all() and (boxes <= 1).all():
        raise ValueError("All boxes lie in [0, 1]: they are fractions of the image, expected pixels.")
    beyond = np.maximum(1.0, 0.01 * sizes)  # px: rounding, and annotations that reach over the border
    as_corners = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1) | (boxes[:, 2:] > sizes + beyond).any(axis=1)
    as_sides = (boxes[:, :2] + boxes[:, 2:] > sizes + beyond).any(axis=1)
    return {"xywh": float(as_sides.mean()), "xyxy": float(as_corners.mean())}
