"""Ridge regression whose penalty chooses itself: the one solver behind every linear read-out of the diagnosis.

Rows of features X are centred; the penalty is a multiple of their mean squared size per dimension, so one scale or one
rotation for all rows changes nothing. The multiple is the one with the least error on rows that were left out, in
closed form; whole images are left out where an image gives several rows.

Shapes: N training rows, M held-out rows, D features, T targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

PENALTIES = tuple(10.0**power for power in torch.arange(-6, 3.01, 0.5).tolist())
"""Strengths tried, from nearly none to one that leaves the mean only."""

# Eigenvalues below this share of the largest are rounding.
_ROUNDING = 1e-13


@torch.no_grad()
def ridge_predict(x: Tensor, y: Tensor, held_out: Tensor, *, group_size: int = 1) -> Tensor:
    """(M, T) predictions, in float64, of the targets of held-out rows. Features without variance predict the mean.

    Rows come in blocks of `group_size`, one block per image, each left out as a whole when the penalty is chosen.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or held_out.shape[1:] != x.shape[1:] or len(x) % group_size:
        raise ValueError(
            f"x is {tuple(x.shape)}, y {tuple(y.shape)}, held_out {tuple(held_out.shape)}, group_size {group_size}; "
            "expected (N, D), (N, T), (M, D) and a divisor of N."
        )
    x, y, held_out = (part.detach().cpu().double() for part in (x, y, held_out))
    mean, target_mean = x.mean(0), y.mean(0)
    x, y, held_out = x - mean, y - target_mean, held_out - mean
    left, squares = _eigenvectors(x)
    if left.shape[1] == 0:
        return target_mean.expand(len(held_out), -1).clone()
    size = float(x.square().sum() / x.shape[1])
    projected = left.T @ y
    penalty = _choose_penalty(left, squares, projected, y, size, group_size)
    weights = x.T @ (left @ (projected / (squares + penalty)[:, None]))
    return held_out @ weights + target_mean


def _eigenvectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (N, r) and squared singular values (r,), from the smaller of the two Gram matrices."""
    rows, columns = x.shape
    squares, vectors = torch.linalg.eigh(x @ x.T if rows <= columns else x.T @ x)
    kept = squares > max(float(squares.max()), 0.0) * _ROUNDING
    kept &= squares > 0
    squares, vectors = squares[kept], vectors[:, kept]
    return (vectors if rows <= columns else x @ vectors / squares.sqrt()), squares


def _choose_penalty(left: Tensor, squares: Tensor, projected: Tensor, y: Tensor, size: float, block: int) -> float:
    count = len(y)
    blocks = left.view(count // block, block, -1)
    identity = torch.eye(block, dtype=left.dtype)
    errors = []
    for penalty in (size * strength for strength in PENALTIES):
        shrink = squares / (squares + penalty)
        # What the rows of a block say about themselves; 1 / count is the mean's part.
        own = (blocks * shrink) @ blocks.transpose(1, 2) + 1 / count
        residual = (y - left @ (projected * shrink[:, None])).view(count // block, block, -1)
        left_out = _solve(identity - own, residual)
        errors.append((float(left_out.square().sum()), penalty))
    return min(errors)[1]


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    if matrix.shape[-1] == 1:
        return right / matrix.clamp(min=1e-12)
    # A block that its own rows fit exactly leaves a singular matrix; a trace of the identity keeps it solvable.
    return torch.linalg.solve(matrix + 1e-9 * torch.eye(matrix.shape[-1], dtype=matrix.dtype), right)
