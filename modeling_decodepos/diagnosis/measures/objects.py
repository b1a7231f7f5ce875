"""What a region's feature is about: the object in it, its place, its surroundings, or its neighbour.

Shapes: N or E regions, M objects, P places, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.probe import RegionImages
from ..statistics.estimates import Array, Estimate, estimate, nothing, ratio
from ..statistics.knn import knn_predict
from ..statistics.ridge import ridge_predict
from .context import exchange_cosines, leak_ratio
from .position import is_constant

NEIGHBOURS = 20
COLLAPSED = "collapsed: all features are alike"
_ROUNDING = 1e-9  # of a cosine in 64 bits
_GAP = 0.25  # of the view; a region farther away is not a neighbour


@torch.no_grad()
def place_or_content(features: Tensor, *, seed: int = 0) -> Estimate:
    """How often an object elsewhere is nearer than another object in the same place, of all such comparisons.

    1: features follow the object; 0.5: a coin toss; 0: they follow the place. A tie counts half. `features` are
    (M, P, C) of M objects, each in the same P places.
    """
    objects, places = features.shape[:2]
    if objects < 2 or places < 2:
        return nothing("fewer than two objects or places")
    if is_constant(features):
        return nothing(COLLAPSED)
    centred = features.double() - features.double().mean((0, 1))
    unit = F.normalize(centred, dim=2, eps=torch.finfo(centred.dtype).tiny)
    same = torch.einsum("mpc,mqc->mpq", unit, unit)  # the same object in another place
    other = torch.einsum("mpc,npc->mpn", unit, unit)  # another object in the same place
    wins = (same[:, :, :, None] > other[:, :, None, :]).double() + 0.5 * (same[:, :, :, None] == other[:, :, None, :])
    elsewhere = ~torch.eye(places, dtype=torch.bool)[None, :, :, None]
    others = ~torch.eye(objects, dtype=torch.bool)[:, None, None, :]
    counted = (elsewhere & others).expand_as(wins).double()
    sums = torch.stack([(wins * counted).sum((1, 2, 3)), counted.sum((1, 2, 3))], 1)
    return estimate(sums.numpy(), ratio, seed=seed)


@torch.no_grad()
def measure_leak(
    regions: Tensor, other_surroundings: Tensor, other_content: Tensor, *, seed: int = 0
) -> dict[str, Estimate]:
    """`context_leak` with its two cosines, each with an interval over regions."""
    if is_constant(torch.stack([regions, other_surroundings, other_content])):
        return dict.fromkeys(("context_leak", "context_content", "context_context"), nothing(COLLAPSED))
    content, context = exchange_cosines(regions, other_surroundings, other_content)
    rows = torch.stack([content, context, torch.ones_like(content)], 1).numpy()

    def leak(sums: Array) -> Array:
        return leak_ratio(*torch.from_numpy(np.asarray(sums[..., :2])).unbind(-1)).numpy()

    return {
        "context_leak": estimate(
            rows, leak, seed=seed, reason="features follow neither content nor surroundings: both cosines are 0"
        ),
        "context_content": estimate(rows[:, [0, 2]], ratio, seed=seed),
        "context_context": estimate(rows[:, [1, 2]], ratio, seed=seed),
    }


@torch.no_grad()
def object_accuracy(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    owners: Tensor,
    *,
    k: int = NEIGHBOURS,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """Share of queries whose class the k nearest gallery regions vote for, and the mean of that over classes.

    `owners` (E,) are the images of the queries, which are drawn again for the intervals.
    """
    if is_constant(torch.cat([gallery, queries])):
        return nothing(COLLAPSED), nothing(COLLAPSED)
    # One mean for all, so that what every feature shares does not make all cosines alike.
    mean = gallery.double().mean(0)
    right = knn_predict((gallery - mean).float(), gallery_labels, (queries - mean).float(), k=k) == labels
    return share_right(right, owners, seed=seed), share_right(right, owners, class_weights(labels), seed=seed)


def class_weights(labels: Tensor) -> Tensor:
    """(E,) weights with which a mean over objects is the mean over their classes."""
    _, places, counts = labels.unique(return_inverse=True, return_counts=True)
    return 1 / counts[places].double()


def share_right(right: Tensor, owners: Tensor, weights: Tensor | None = None, *, seed: int = 0) -> Estimate:
    """The weighted mean of scores (E,), with its interval when the images that they belong to are drawn again.

    In the interval of a mean over classes, weights stay as they are: a draw without a rare class is no other question.
    """
    weights = torch.ones(len(right)) if weights is None else weights
    images = owners.unique(return_inverse=True)[1].numpy()
    rows = np.zeros((int(images.max(initial=-1)) + 1, 2))
    np.add.at(rows, images, torch.stack([weights * right, weights], 1).double().numpy())
    return estimate(rows, ratio, seed=seed)


@torch.no_grad()
def find_itself(objects: Tensor, changed: Tensor, owners: Tensor, *, seed: int = 0) -> Estimate:
    """Share of objects that are nearest to themselves, among all of them, when something about them has changed.

    Row k of `changed` (E, D) is row k of `objects`, which are of the images `owners`. Chance is 1 / E. One that is as
    near to n objects as to itself counts 1 / (n + 1).
    """
    if len(objects) < 2:
        return nothing("fewer than two objects")
    if is_constant(torch.cat([objects, changed])):
        return nothing(COLLAPSED)
    mean = objects.double().mean(0)
    least = torch.finfo(mean.dtype).tiny
    known, asked = (F.normalize(rows.double() - mean, dim=1, eps=least) for rows in (objects, changed))
    cosines = asked @ known.T
    # Of equal features, cosines differ by what rounding leaves.
    lead = cosines - cosines.diagonal()[:, None]
    hits = (lead.amax(1) < _ROUNDING) / (lead.abs() < _ROUNDING).sum(1).double()
    return share_right(hits, owners, seed=seed)


def naive_accuracy(gallery_labels: Tensor, labels: Tensor, owners: Tensor, *, seed: int = 0) -> Estimate:
    """Share of queries whose class is the most frequent one of the gallery: what knowing nothing gives."""
    return share_right(labels == gallery_labels.bincount().argmax(), owners, seed=seed)


@torch.no_grad()
def name_neighbour(
    gallery: Tensor, gallery_pairs: NeighbourPairs, queries: Tensor, query_pairs: NeighbourPairs, *, seed: int = 0
) -> dict[str, Estimate]:
    """How often a linear read-out of a region's feature names the class of the region beside it.

    `neighbour_accuracy` stands beside `neighbour_prior`, what naming the most frequent class gives;
    `neighbour_advantage` is the way from there to naming all: 0 nothing is known of the neighbour, 1 everything.
    """
    names = ("neighbour_accuracy", "neighbour_prior", "neighbour_advantage")
    classes = int(max(gallery_pairs.groups.max(initial=-1), query_pairs.groups.max(initial=-1))) + 1
    if len(gallery_pairs.groups) < 20 or len(query_pairs.groups) < 20 or classes < 2:
        count = min(len(gallery_pairs.groups), len(query_pairs.groups))
        return dict.fromkeys(names, nothing(f"{count} regions have a neighbour that does not touch them; 20 needed"))
    x, x_test = gallery[gallery_pairs.regions], queries[query_pairs.regions]
    if is_constant(torch.cat([x, x_test])):
        return dict.fromkeys(names, nothing(COLLAPSED))
    target = torch.from_numpy(np.eye(classes)[gallery_pairs.groups])
    predicted = ridge_predict(x, target, x_test).argmax(1).numpy()
    frequent = np.bincount(gallery_pairs.groups, minlength=classes).argmax()
    right = np.stack([predicted == query_pairs.groups, frequent == query_pairs.groups, np.ones(len(predicted))], 1)
    rows = np.zeros((int(query_pairs.images.max()) + 1, 3))
    np.add.at(rows, query_pairs.images, right.astype(np.float64))

    def advantage(sums: Array) -> Array:
        values: Array = (sums[..., 0] - sums[..., 1]) / (sums[..., 2] - sums[..., 1])
        return values

    return {
        "neighbour_accuracy": estimate(rows[:, [0, 2]], ratio, seed=seed),
        "neighbour_prior": estimate(rows[:, [1, 2]], ratio, seed=seed),
        "neighbour_advantage": estimate(rows, advantage, seed=seed),
    }


class NeighbourPairs:
    """Regions, by number, with the group of the nearest region that does not touch them, and their images."""

    def __init__(self, images: RegionImages, groups: Tensor):
        found, start = [], 0
        for image, boxes in enumerate(images.boxes):
            for region, box in enumerate(boxes):
                gap = _gaps(box, boxes)
                gap[gap <= 0] = float("inf")  # what overlaps is content as well; the region itself does
                if images.labels is None or float(gap.min()) > _GAP:
                    continue
                label = int(images.labels[start + int(gap.argmin())])
                if label < len(groups) and groups[label] >= 0:
                    found.append((start + region, int(groups[label]), image))
            start += len(boxes)
        regions, self.groups, self.images = np.array(found, np.int64).reshape(-1, 3).T
        self.regions = torch.from_numpy(regions.copy())


def _gaps(box: Tensor, boxes: Tensor) -> Tensor:
    """(R,) distance between a box and others; 0 or less where they touch."""
    apart = torch.maximum(box[:2] - boxes[:, 2:], boxes[:, :2] - box[2:])
    return torch.where((apart > 0).any(1), apart.clamp(min=0).norm(dim=1), apart.max(1).values)
