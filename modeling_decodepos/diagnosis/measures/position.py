"""How much a region's feature says about where the region lies: linear regression of its centre."""

from __future__ import annotations

import torch
from torch import Tensor

from ..statistics.ridge import ridge_predict

# A feature that varies by less than this share of its size holds the rounding of 32-bit numbers and nothing else.
_ROUNDING = 1e-6


@torch.no_grad()
def position_r2(features: Tensor, centres: Tensor, held_out_features: Tensor, held_out_centres: Tensor) -> float:
    """R² of the held-out centres predicted by ridge regression, mean over x and y.

    1: the feature tells the place exactly; 0 or below: it tells nothing (a constant feature always ends there).
    Shifting or scaling a feature changes nothing: features are standardised by the training rows, which also choose
    the strength of the penalty by leave-one-out error. NaN with fewer than two rows on either side, or where a
    held-out axis has a single value. Keep regions of one image on one side.

    Args:
        features: (N, D) of the training rows.
        centres: (N, 2), x and y in units of the view.
        held_out_features: (M, D).
        held_out_centres: (M, 2).
    """
    for name, rows, places in (
        ("features", features, centres),
        ("held_out_features", held_out_features, held_out_centres),
    ):
        if rows.ndim != 2 or places.shape != (len(rows), 2) or rows.shape[1] != features.shape[1]:
            raise ValueError(
                f"{name} is {tuple(rows.shape)} with centres {tuple(places.shape)}; expected (N, D) and (N, 2)."
            )
        if not torch.isfinite(rows).all():
            raise ValueError(f"{name} hold NaN or infinite values: there is nothing to regress on.")
    if len(features) < 2 or len(held_out_features) < 2:
        return float("nan")
    x, y, x_test, y_test = (part.cpu().double() for part in (features, centres, held_out_features, held_out_centres))
    x, x_test = _standardise(x, x_test)
    residual = (y_test - ridge_predict(x, y, x_test)).square().sum(0)
    total = (y_test - y_test.mean(0)).square().sum(0)
    return float((1 - residual / total).mean()) if (total > 0).all() else float("nan")


def _standardise(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets with the mean and deviation of the first; features that only differ by rounding become zero."""
    mean, std = rows.mean(0), rows.std(0, correction=0)
    scale = torch.where(std > _ROUNDING * mean.abs(), 1 / std, 0.0)
    return (rows - mean) * scale, (others - mean) * scale
