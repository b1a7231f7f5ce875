"""Weighted k-nearest-neighbour classification of features: can a region's class be read from what lies near it?

Neighbours are found by cosine and vote with exp(cosine / temperature), as is usual since instance discrimination.
Features are used as they are up to length: turning them all by one rotation, or scaling any row, changes nothing.

Shapes: G gallery rows, Q queries, D features, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
# Cosines held at a time (64 MiB); the whole table of a large gallery would not fit.
_MOST_COSINES = 2**24


@dataclass(frozen=True)
class KnnAccuracy:
    """Share of right predictions: over all queries, and the mean over the classes that the queries have."""

    micro: float
    class_mean: float


@torch.no_grad()
def knn_neighbours(gallery: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(Q, k) cosines and (Q, k) gallery rows of each query's nearest neighbours, nearest first.

    A gallery of fewer than k rows gives all of them.

    Args:
        gallery: (G, D) features.
        queries: (Q, D) features.
        k: Number of neighbours.
    """
    if gallery.ndim != 2 or queries.ndim != 2 or gallery.shape[1] != queries.shape[1]:
        raise ValueError(
            f"gallery is {tuple(gallery.shape)} and queries {tuple(queries.shape)}; expected (G, D) and (Q, D)."
        )
    if len(gallery) == 0 or k < 1:
        raise ValueError(f"the gallery has {len(gallery)} rows and k is {k}; expected at least one of either.")
    if not (torch.isfinite(gallery).all() and torch.isfinite(queries).all()):
        raise ValueError("the features hold NaN or infinite values: they have no neighbours.")
    k = min(k, len(gallery))
    unit_gallery = F.normalize(gallery.float(), dim=1)
    # No query at all still gives tables of the right shape.
    parts = F.normalize(queries.float(), dim=1).split(max(1, _MOST_COSINES // len(gallery)))
    found = [(part @ unit_gallery.T).topk(k, dim=1) for part in parts]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


@torch.no_grad()
def knn_predict(
    gallery: Tensor, gallery_labels: Tensor, queries: Tensor, *, k: int = 20, temperature: float = TEMPERATURE
) -> Tensor:
    """(Q,) the class that the k nearest gallery rows vote for. A tie goes to the class of the nearer neighbour.

    Args:
        gallery: (G, D) features.
        gallery_labels: (G,) whole numbers.
        queries: (Q, D) features.
        k: Number of voting neighbours; all rows of a smaller gallery.
        temperature: A vote weighs exp(cosine / temperature).
    """
    if gallery_labels.shape != gallery.shape[:1]:
        raise ValueError(f"gallery_labels is {tuple(gallery_labels.shape)}; expected ({len(gallery)},): one per row.")
    cosines, rows = knn_neighbours(gallery, queries, k)
    labels = gallery_labels[rows]
    # Relative to the nearest, so that no temperature overflows.
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    predictions = []
    # Each neighbour collects the votes of its own class: no table of all classes, and the same sum on every device.
    chunk = max(1, _MOST_COSINES // rows.shape[1] ** 2)
    for part, weight in zip(labels.split(chunk), weights.split(chunk), strict=True):
        votes = ((part[:, :, None] == part[:, None, :]) * weight[:, None, :]).sum(2)
        predictions.append(part.gather(1, votes.argmax(1, keepdim=True))[:, 0])
    return torch.cat(predictions)


def knn_accuracy(predictions: Tensor, labels: Tensor) -> KnnAccuracy:
    """How many predictions are right. A class that only the queries have counts too: it cannot be found.

    Args:
        predictions: (Q,) from `knn_predict`.
        labels: (Q,) the true classes; at least one.
    """
    if predictions.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            f"predictions are {tuple(predictions.shape)} and labels {tuple(labels.shape)}; expected (Q,) twice, Q > 0."
        )
    right = (predictions == labels).double()
    _, place = labels.unique(return_inverse=True)
    by_class = torch.bincount(place, weights=right) / torch.bincount(place)
    return KnnAccuracy(float(right.mean()), float(by_class.mean()))
