"""Mean intersection over union, from a table of true against predicted pixels that adds up over images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_decodepos.schema import SEGMENTATION_IGNORE


@dataclass(frozen=True)
class SegmentationScore:
    """What a table says.

    Attributes:
        miou: Mean over the classes that the true maps hold; pixels wrongly given to other classes count against the
            class they were taken from, and against the one they were given to if that occurs too.
        pixel_accuracy: Share of right pixels.
        by_class: (C,) intersection over union; NaN for a class that no true map holds.
    """

    miou: float
    pixel_accuracy: float
    by_class: Tensor


def confusion(predicted: Tensor, true: Tensor, classes: int) -> Tensor:
    """(C, C) int64 number of pixels by true class (row) and predicted class (column); ignored pixels do not count.

    Args:
        predicted: (…) classes from 0 to `classes` - 1.
        true: The same shape; 255 is ignored.
        classes: Number of classes, "no class" among them.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"predicted is {tuple(predicted.shape)} and true {tuple(true.shape)}; expected equal shapes.")
    counted = true != SEGMENTATION_IGNORE
    rows, columns = true[counted].long(), predicted[counted].long()
    if rows.numel() and (int(rows.max()) >= classes or int(columns.max()) >= classes):
        raise ValueError(
            f"a map holds class {max(int(rows.max()), int(columns.max()))}, but there are {classes} (0 = no class, k "
            "= class k - 1, 255 = ignore): `segmentation` and the names of objects.category do not fit together."
        )
    return torch.bincount(rows * classes + columns, minlength=classes**2).view(classes, classes)


def segmentation_score(table: Tensor) -> SegmentationScore:
    """The score of a (C, C) table of `confusion`; the tables of several images may be added."""
    table = table.double()
    right, true, predicted = table.diagonal(), table.sum(1), table.sum(0)
    if not true.sum():
        raise ValueError("not a single pixel has a class: all maps are ignored (255) throughout.")
    by_class = torch.where(true > 0, right / (true + predicted - right), float("nan"))
    return SegmentationScore(float(by_class.nanmean()), float(right.sum() / true.sum()), by_class)
