"""How much of a region's feature comes from around the region: exchange one of the two and see which matters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the mean's length. Less is the rounding of 32-bit numbers, whose cosines would look like findings.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ContextLeak:
    """What a context exchange measured.

    `leak` is context / (content + context), both clipped at 0. 0: features follow the content alone; 1/2: content and
    surroundings weigh alike; 1: the surroundings alone. NaN where neither is above 0.
    """

    leak: float
    content: float  # mean centred cosine of a region with itself in other surroundings; not clipped
    context: float  # the same with other content in its surroundings


@torch.no_grad()
def context_leak(regions: Tensor, other_surroundings: Tensor, other_content: Tensor) -> ContextLeak:
    """How much surroundings count, from three features of each region.

    The mean of all 3 N rows is subtracted first: what all regions share makes every cosine high and tells nothing.
    Cosines are averaged over regions, then clipped at 0 (a cosine below it says "not alike at all"), then compared:
    one odd region cannot decide. Rows that hardly differ from the mean count as cosine 0, so a collapsed embedding
    gives NaN. One rotation of all rows, or one scale for all, changes nothing.

    Args:
        regions: (N, D), region R in surroundings A.
        other_surroundings: (N, D), the same content in the same place in other surroundings.
        other_content: (N, D), other content in R's place, in the same surroundings A.
    """
    content, context = (float(part.mean()) for part in exchange_cosines(regions, other_surroundings, other_content))
    return ContextLeak(float(leak_ratio(torch.tensor(content), torch.tensor(context))), content, context)


@torch.no_grad()
def exchange_cosines(regions: Tensor, other_surroundings: Tensor, other_content: Tensor) -> tuple[Tensor, Tensor]:
    """Two (N,) cosines of each region: with itself in other surroundings, and with other content in its surroundings.

    The arguments are those of `context_leak`, which averages these.
    """
    if not regions.shape == other_surroundings.shape == other_content.shape or regions.ndim != 2 or not len(regions):
        shapes = [tuple(rows.shape) for rows in (regions, other_surroundings, other_content)]
        raise ValueError(f"the features are {shapes}; expected the same (N, D) three times, N > 0.")
    rows = torch.stack([regions, other_surroundings, other_content]).cpu().double()
    if not torch.isfinite(rows).all():
        raise ValueError("the features hold NaN or infinite values: they cannot be compared.")
    mean = rows.mean((0, 1))
    centred = rows - mean
    centred = torch.where(centred.norm(dim=-1, keepdim=True) > _ROUNDING * mean.norm(), centred, 0.0)
    # The function's own least length, 1e-8, would shrink the cosines of small features.
    least = torch.finfo(centred.dtype).tiny
    content, context = (F.cosine_similarity(centred[0], centred[k], dim=-1, eps=least) for k in (1, 2))
    return content, context


def leak_ratio(content: Tensor, context: Tensor) -> Tensor:
    """context / (content + context) of mean cosines, both clipped at 0; NaN where neither is above 0."""
    content, context = content.clamp(min=0.0), context.clamp(min=0.0)
    return context / (content + context)
