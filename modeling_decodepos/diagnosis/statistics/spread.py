"""Whether embeddings fill their space or have collapsed: two numbers, computed where the embeddings lie."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def embedding_std(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of the normalised embeddings; a tensor, without a look at it.

    About 1 / sqrt(D) when embeddings (…, D) spread over the sphere, 0 when they have collapsed to one point, NaN for
    fewer than two `valid` (…) rows.
    """
    rows = F.normalize(embeddings.float(), dim=-1).flatten(0, -2)
    # Selecting rows by a mask would wait for the device; weights of 0 and 1 do not.
    weight = valid.flatten().to(rows.dtype)[:, None]
    rows = torch.where(weight > 0, rows, 0.0)
    count = weight.sum()
    mean = rows.sum(0) / count
    variance = (weight * (rows - mean).square()).sum(0) / (count - 1)
    return variance.sqrt().mean()


@torch.no_grad()
def effective_rank(rows: Tensor) -> Tensor:
    """How many directions the rows fill: exp of the entropy of the singular values' shares (RankMe, arXiv 2210.02885).

    From 1 (all rows on one line through the origin) to min(N, D) (all directions alike); NaN where all rows are zero.
    Rows of zeros count for nothing, so rows may be left out by setting them to zero. One scale, or one rotation, for
    all rows changes nothing. Of normalised rows, long ones do not outweigh short ones as in RankMe.
    """
    singular = torch.linalg.svdvals(rows.float())
    return torch.special.entr(singular / singular.sum()).sum().exp()
