"""Exact nearest neighbours of features in bounded memory, and the class that they vote for.

Neighbours are found by cosine and vote with exp(cosine / temperature), as is usual since instance discrimination.
Features are used as they are up to length: turning them all by one rotation, or scaling any row, changes nothing.

Both sides go in blocks, and each query keeps its best k so far: the whole table of cosines of a large gallery, or a
copy of the gallery, would not fit. One search serves every smaller k.

Shapes: G gallery rows, Q queries, D features, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

TEMPERATURE = 0.07

QUERY_BLOCK, GALLERY_BLOCK = 1024, 4096
"""16 MiB of cosines at a time: they stay in a CPU's cache on their way from the product to the selection."""

_MOST_PAIRS = 2**24  # neighbour against neighbour, when they vote


@dataclass(frozen=True)
class KnnAccuracy:
    """Share of right predictions: over all queries, and the mean over the classes that the queries have."""

    micro: float
    class_mean: float


@torch.no_grad()
def knn_neighbours(
    gallery: Tensor,
    queries: Tensor,
    k: int,
    *,
    device: torch.device | str | None = None,
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """(Q, k) cosines and (Q, k) gallery rows of each query's nearest neighbours, nearest first.

    They lie where the gallery lies, `device` computes. Memory beyond the arguments and the result: the normalised
    queries, gallery_block normalised rows, and query_block x (gallery_block + k) cosines. The gallery may be fp16 or
    bf16, and is normalised block by block in fp32; one of fewer rows than k gives all of them.
    """
    if gallery.ndim != 2 or queries.ndim != 2 or gallery.shape[1] != queries.shape[1]:
        raise ValueError(
            f"gallery is {tuple(gallery.shape)} and queries {tuple(queries.shape)}; expected (G, D) and (Q, D)."
        )
    if len(gallery) == 0 or k < 1:
        raise ValueError(f"the gallery has {len(gallery)} rows and k is {k}; expected at least one of either.")
    k = min(k, len(gallery))
    device = gallery.device if device is None else device
    if not len(queries):
        return gallery.new_zeros((0, k), dtype=torch.float32), gallery.new_zeros((0, k), dtype=torch.int64)
    # Each block of the gallery is normalised once and meets all queries: those are few and stay.
    unit_queries = [_unit(part.to(device)) for part in queries.split(query_block)]
    cosines = [torch.zeros((len(part), 0), device=device) for part in unit_queries]
    rows = [torch.zeros((len(part), 0), dtype=torch.int64, device=device) for part in unit_queries]
    starts = range(0, len(gallery), gallery_block)
    for start in tqdm(starts, desc="neighbours", unit="block", disable=not progress, leave=False):
        block = _unit(gallery[start : start + gallery_block].to(device)).T
        for number, part in enumerate(unit_queries):
            found, places = _best(part @ block, cosines[number], k)
            places = places + start
            if start:
                both = torch.cat([cosines[number], found], 1)
                found, chosen = both.topk(min(k, both.shape[1]), dim=1)
                places = torch.cat([rows[number], places], 1).gather(1, chosen)
            cosines[number], rows[number] = found, places
    return torch.cat(cosines).to(gallery.device), torch.cat(rows).to(gallery.device)


def _best(products: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(Q, n) cosines and columns of a block that can matter beside the `known` k best, as few as there are.

    Where a query has fewer than others, the rest of its row is -inf.
    """
    if known.shape[1] < k:
        return products.topk(min(k, products.shape[1]), dim=1)
    # Only what beats the worst of the best so far can enter: after some blocks, hardly anything.
    queries, columns = _true_places(products > known[:, -1:])
    if len(queries) > products.numel() // 8:
        return products.topk(min(k, products.shape[1]), dim=1)
    counts = queries.bincount(minlength=len(products))
    place = torch.arange(len(queries), device=queries.device) - (counts.cumsum(0) - counts)[queries]
    size = (len(products), int(counts.max()))
    found, places = products.new_full(size, -torch.inf), columns.new_zeros(size)
    found[queries, place], places[queries, place] = products[queries, columns], columns
    return found, places


def _true_places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) rows and (n,) columns where a (Q, B) mask is true, row by row.

    Hardly anything is true, so eight values are looked at as one number first: less than half the time of `nonzero`.
    """
    flat = mask.flatten()
    if len(flat) % 8:
        places = flat.nonzero()[:, 0]
    else:
        eights = flat.view(torch.int64).nonzero()[:, 0]
        number, inside = flat.view(-1, 8)[eights].nonzero(as_tuple=True)
        places = eights[number] * 8 + inside
    return places // mask.shape[1], places % mask.shape[1]


def _unit(rows: Tensor) -> Tensor:
    values = rows.float()
    if not torch.isfinite(values).all():
        raise ValueError("the features hold NaN or infinite values: they have no neighbours.")
    if values.numel():
        # Powers of two, which round nothing: the squares of small features would be zero in 32 bits.
        exponents = torch.frexp(values.abs().amax(1, keepdim=True)).exponent.clamp(-126, 126)
        values = values * torch.exp2(-exponents.float())
    return F.normalize(values, dim=1)


@torch.no_grad()
def knn_predict(
    gallery: Tensor, gallery_labels: Tensor, queries: Tensor, *, k: int = 20, temperature: float = TEMPERATURE
) -> Tensor:
    """(Q,) the class that the k nearest gallery rows (all of a smaller gallery) vote for; see `knn_vote`.

    Labels (G,) are whole numbers. A vote weighs exp(cosine / temperature).
    """
    if gallery_labels.shape != gallery.shape[:1]:
        raise ValueError(f"gallery_labels is {tuple(gallery_labels.shape)}; expected ({len(gallery)},): one per row.")
    cosines, rows = knn_neighbours(gallery, queries, k)
    return knn_vote(cosines, gallery_labels[rows], temperature)


@torch.no_grad()
def knn_vote(cosines: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """(Q,) the class with the most votes, from (Q, k) cosines, nearest first, and (Q, k) classes of the neighbours.

    A tie goes to the class of the nearer neighbour.
    """
    # Relative to the nearest, so that no temperature overflows.
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    predictions = []
    # Each neighbour collects the votes of its own class: no table of all classes, and the same sum on every device.
    chunk = max(1, _MOST_PAIRS // labels.shape[1] ** 2)
    for part, weight in zip(labels.split(chunk), weights.split(chunk), strict=True):
        votes = ((part[:, :, None] == part[:, None, :]) * weight[:, None, :]).sum(2)
        predictions.append(part.gather(1, votes.argmax(1, keepdim=True))[:, 0])
    return torch.cat(predictions)


def knn_accuracy(predictions: Tensor, labels: Tensor) -> KnnAccuracy:
    """How many predictions (Q,) are right. A class that only the queries have counts too: it cannot be found."""
    if predictions.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            f"predictions are {tuple(predictions.shape)} and labels {tuple(labels.shape)}; expected (Q,) twice, Q > 0."
        )
    right = (predictions == labels).double()
    _, place = labels.unique(return_inverse=True)
    by_class = torch.bincount(place, weights=right) / torch.bincount(place)
    return KnnAccuracy(float(right.mean()), float(by_class.mean()))
