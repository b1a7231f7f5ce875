"""Artefact tokens: cells whose features are many times longer than those of the rest of their picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ..statistics.estimates import Estimate, estimate_mean, nothing

TIMES_MEDIAN = 4.0
"""A cell is an outlier if its feature is this many times as long as the median of its picture."""


@torch.no_grad()
def count_outliers(norms: Tensor, *, seed: int = 0) -> dict[str, Estimate]:
    """Share of outliers among all cells, and how many times the median the longest of a picture is, on average."""
    names = ("norm_outliers", "norm_ratio")
    median = norms.flatten(1).median(1).values
    if norms[0].numel() < 4 or float(median.max()) == 0:
        return dict.fromkeys(names, nothing("fewer than four cells, or all features are zero"))
    outliers = (norms > TIMES_MEDIAN * median[:, None, None]) & (median[:, None, None] > 0)
    longest = norms.flatten(1).max(1).values.double() / median.clamp(min=torch.finfo(norms.dtype).tiny)
    return {
        "norm_outliers": estimate_mean(outliers.flatten(1).double().mean(1), seed=seed),
        "norm_ratio": estimate_mean(longest, seed=seed),
    }
