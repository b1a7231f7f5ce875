"""Exact nearest neighbours of many queries in a large gallery, in bounded memory, and their vote.

The same numbers as `modeling_decodepos.diagnosis.statistics.knn`, for sizes where even a copy of the gallery
is much: both sides go in blocks, and each query keeps its best k so far. One search serves every smaller k.

Shapes: G gallery rows, Q queries, D features, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from modeling_decodepos.diagnosis.statistics.knn import TEMPERATURE

QUERY_BLOCK, GALLERY_BLOCK = 1024, 4096
"""16 MiB of cosines at a time: they stay in a CPU's cache on their way from the product to the selection."""

_MOST_PAIRS = 2**24  # neighbour against neighbour, when they vote


@torch.no_grad()
def nearest(
    gallery: Tensor,
    queries: Tensor,
    k: int,
    *,
    device: torch.device | str = "cpu",
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """(Q, k) cosines and (Q, k) gallery rows of each query's nearest neighbours, nearest first, on the CPU.

    Memory beyond the arguments and the result: on a CPU query_block x (gallery_block + k) numbers, and gallery_block
    normalised rows; on a GPU the normalised gallery where it fits into half of what is free, else a block of it.

    Args:
        gallery: (G, D) features; may be fp16 or bf16, and is normalised block by block in fp32.
        queries: (Q, D) features.
        k: Number of neighbours; a gallery of fewer rows gives all of them.
        device: Where to compute.
        query_block: Queries at a time.
        gallery_block: Gallery rows at a time.
        progress: Whether to show a bar.
    """
    if gallery.ndim != 2 or queries.ndim != 2 or gallery.shape[1] != queries.shape[1]:
        raise ValueError(
            f"gallery is {tuple(gallery.shape)} and queries {tuple(queries.shape)}; expected (G, D) and (Q, D)."
        )
    if len(gallery) == 0 or k < 1:
        raise ValueError(f"the gallery has {len(gallery)} rows and k is {k}; expected at least one of either.")
    k = min(k, len(gallery))
    # Each block of the gallery is normalised once and meets all queries: those are few and stay.
    unit_queries = [_unit(part, device) for part in queries.split(query_block)]
    cosines = [torch.full((len(part), 0), 0.0, device=device) for part in unit_queries]
    rows = [torch.zeros((len(part), 0), dtype=torch.int64, device=device) for part in unit_queries]
    starts: Iterable[int] = range(0, len(gallery), gallery_block)
    for start in tqdm(starts, desc="neighbours", unit="block", disable=not progress, leave=False):
        block = _unit(gallery[start : start + gallery_block], device).T
        for number, part in enumerate(unit_queries):
            found, places = _best(part @ block, cosines[number], k)
            both = torch.cat([cosines[number], found], 1)
            cosines[number], chosen = both.topk(min(k, both.shape[1]), dim=1)
            rows[number] = torch.cat([rows[number], places + start], 1).gather(1, chosen)
    if not unit_queries or not len(queries):
        return torch.zeros((0, k)), torch.zeros((0, k), dtype=torch.int64)
    return torch.cat(cosines).cpu(), torch.cat(rows).cpu()


def _best(products: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(Q, n) cosines and columns of a block that can matter beside the `known` k best, as few as there are.

    Where a query has fewer than others, the rest of its row is -inf.
    """
    if known.shape[1] < k:
        return products.topk(min(k, products.shape[1]), dim=1)
    # Only what beats the worst of the best so far can enter: after some blocks, hardly anything.
    queries, columns = (products > known[:, -1:]).nonzero(as_tuple=True)
    if len(queries) > products.numel() // 8:
        return products.topk(min(k, products.shape[1]), dim=1)
    counts = queries.bincount(minlength=len(products))
    place = torch.arange(len(queries), device=queries.device) - (counts.cumsum(0) - counts)[queries]
    size = (len(products), int(counts.max()))
    found, places = products.new_full(size, -torch.inf), columns.new_zeros(size)
    found[queries, place], places[queries, place] = products[queries, columns], columns
    return found, places


def _unit(rows: Tensor, device: torch.device | str) -> Tensor:
    values = rows.to(device).float()
    if not torch.isfinite(values).all():
        raise ValueError("the features hold NaN or infinite values: they have no neighbours.")
    return F.normalize(values, dim=1)


@torch.no_grad()
def vote(cosines: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """(Q,) the class with the most votes, a neighbour's being exp(cosine / temperature).

    A tie goes to the class of the nearer neighbour.

    Args:
        cosines: (Q, k) of the neighbours, nearest first.
        labels: (Q, k) their classes.
        temperature: See above.
    """
    weights = ((cosines - cosines[:, :1]) / temperature).exp()  # relative to the nearest: no temperature overflows
    predictions = []
    for own, weight in _parts(labels, weights):
        votes = ((own[:, :, None] == own[:, None, :]) * weight[:, None, :]).sum(2)
        predictions.append(own.gather(1, votes.argmax(1, keepdim=True))[:, 0])
    return torch.cat(predictions)


def _parts(*tables: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = max(1, _MOST_PAIRS // tables[0].shape[1] ** 2)
    yield from zip(*(table.split(size) for table in tables), strict=True)
