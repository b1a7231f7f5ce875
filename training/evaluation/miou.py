"""Mean intersection over union, from a table of true against predicted pixels that adds up over images."""

from __future__ import annotations

import torch
from torch import Tensor

from modeling_decodepos.data.schema import SEGMENTATION_IGNORE


def confusion(predicted: Tensor, true: Tensor, classes: int) -> Tensor:
    """(C, C) int64 number of pixels by true class (row) and predicted class (column); pixels of 255 are left out.

    Classes go from 0, "no class", to `classes` - 1.
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


def segmentation_scores(table: Tensor) -> dict[str, float]:
    """Scores of a (C, C) table of `confusion`; the tables of several images may be added.

    `miou` is the mean over the classes that the true maps hold, `miou_objects` without "no class"; `pixel_accuracy` is
    the share of right pixels. Pixels wrongly given to another class count against the one they were taken from, and
    against the one they were given to if that occurs too.
    """
    table = table.double()
    right, true, predicted = table.diagonal(), table.sum(1), table.sum(0)
    if not true.sum():
        raise ValueError("not a single pixel has a class: all maps are ignored (255) throughout.")
    by_class = torch.where(true > 0, right / (true + predicted - right), float("nan"))
    return {
        "miou": float(by_class.nanmean()),
        "miou_objects": float(by_class[1:].nanmean()),
        "pixel_accuracy": float(right.sum() / true.sum()),
    }
