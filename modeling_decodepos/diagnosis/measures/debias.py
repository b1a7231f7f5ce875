"""A remedy without training: one 1x1 convolution that keeps content, and drops surroundings and place.

    x -> (I + s W / w)^(-1/2) (I - V Vᵀ) (x - mean)

V are the first k singular directions of the mean feature at each place. W is the covariance of what changes about an
object when its surroundings or its place are exchanged, w its mean eigenvalue. Both come from the gallery, in closed
form and without classes.

k is the number of directions that lowers what can be read of the place most, of those behind which objects find
themselves after the exchange no worse than before, by one standard error. s is the least strength that comes within
one standard error of where they find themselves best: one half of the objects gives W, the other is asked. Where
neither helps, the layer subtracts the mean and does nothing else.

Shapes: E objects, V views of each (the first as it is), C channels, D directions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .position import Subspace

COUNTS = (0, 1, 2, 4, 8, 16, 32, 64)
"""Numbers of directions tried."""

STRENGTHS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Strengths tried; 0 leaves everything as it is."""

LEAST_OBJECTS = 16
"""With fewer, no strength is chosen: half of them would say nothing about the other half."""


@dataclass(frozen=True)
class RemovalPoint:
    """What is left after removing `count` directions, measured on the gallery."""

    count: int
    position: float
    accuracy: float | None


@dataclass(frozen=True)
class StrengthPoint:
    """How objects find themselves at one strength, measured on objects that the layer was not fitted on."""

    strength: float
    same_object: float  # how often an object is nearer to itself than another one is, of all such comparisons
    gain_error: float  # standard error of the gain over strength 0


def choose_strength(points: Sequence[StrengthPoint]) -> float:
    """The least strength that comes within one standard error of the best; 0 if that gains no more over 0."""
    best = max(points, key=lambda point: point.same_object)
    return min(point.strength for point in points if point.same_object >= best.same_object - best.gain_error)


@dataclass(frozen=True)
class LinearLayer:
    """x -> weight (x - mean)."""

    weight: Tensor  # (C, C)
    mean: Tensor  # (C,)

    def __call__(self, features: Tensor) -> Tensor:
        """Features (…, C) behind the layer."""
        return F.linear(features - self.mean.to(features.dtype), self.weight.to(features.dtype))

    def to_conv(self) -> nn.Conv2d:
        """The same as a 1x1 convolution: put it behind the stage that it was fitted at."""
        channels = len(self.mean)
        conv = nn.Conv2d(channels, channels, 1)
        with torch.no_grad():
            conv.weight.copy_(self.weight[:, :, None, None])
            conv.bias.copy_(-self.weight @ self.mean)  # type: ignore[union-attr]
        return conv.requires_grad_(False)


def project_out(subspace: Subspace, count: int) -> LinearLayer:
    """A layer that centres features and removes the first `count` positional directions."""
    directions = subspace.directions[:count].double()
    identity = torch.eye(len(subspace.mean), dtype=torch.float64)
    return LinearLayer(identity - directions.T @ directions, subspace.mean.double())


def choose_count(points: Sequence[RemovalPoint], subspace: Subspace, views: Tensor) -> int:
    """The number of directions to remove, by a curve from 0 on and by how objects (E, V, C) find themselves."""
    wins = [find_themselves(project_out(subspace, point.count)(views.double())) for point in points]
    tolerated = [point for point, won in zip(points, wins, strict=True) if not _clearly_less(won, wins[0])]
    best = min(point.position for point in tolerated)
    # The fewest directions that come within a hundredth of the best.
    return min(point.count for point in tolerated if point.position <= best + 0.01)


def _clearly_less(values: Tensor, others: Tensor) -> bool:
    """Whether values are lower than others of the same objects, by more than one standard error of the mean."""
    lost = others - values
    return float(lost.mean()) > float(lost.std()) / math.sqrt(len(lost))


@dataclass(frozen=True)
class Spread:
    """Directions in which rows vary, and how much."""

    directions: Tensor  # (D, C) orthonormal
    variances: Tensor  # (D,) in units of their mean over all C directions

    def shrink(self, strength: float) -> Tensor:
        """(C, C) that divides each direction by the root of 1 + strength * its variance."""
        factors = (1 + strength * self.variances).rsqrt() - 1
        identity = torch.eye(self.directions.shape[1], dtype=torch.float64)
        return identity + (self.directions.T * factors) @ self.directions


def spread_within(views: Tensor) -> Spread:
    """What changes about objects (E, V, C) from view to view."""
    return _spread(views - views.mean(1, keepdim=True))


def spread_of_all(views: Tensor) -> Spread:
    """All that differs between objects and views (E, V, C): shrinking it is plain whitening."""
    return _spread(views - views.mean((0, 1)))


def _spread(deviations: Tensor) -> Spread:
    rows = deviations.flatten(0, 1).double()
    _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
    kept = singular > 1e-6 * singular.max()
    variances = singular[kept].square()
    return Spread(directions[kept], variances * (rows.shape[1] / variances.sum().clamp(min=1e-300)))


@torch.no_grad()
def fit_layer(
    views: Tensor, first: LinearLayer, spread: Callable[[Tensor], Spread] = spread_within
) -> tuple[LinearLayer, list[StrengthPoint]]:
    """`first`, and then the `spread` of objects (E, V, C) behind it shrunk as far as helps; and what was tried.

    Whatever has a spread of its own may take the place of `spread_within`.
    """
    if len(views) < LEAST_OBJECTS:
        return first, []
    views = first(views.double())
    halves = views[::2], views[1::2]
    spreads = [spread(half) for half in halves]
    wins = []
    for strength in STRENGTHS:
        asked = zip(reversed(halves), spreads, strict=True)
        wins.append(torch.cat([find_themselves(half @ found.shrink(strength)) for half, found in asked]))
    error = 1 / math.sqrt(len(views))
    points = [
        StrengthPoint(strength, float(won.mean()), float((won - wins[0]).std()) * error)
        for strength, won in zip(STRENGTHS, wins, strict=True)
    ]
    return LinearLayer(spread(views).shrink(choose_strength(points)) @ first.weight, first.mean), points


def find_themselves(views: Tensor) -> Tensor:
    """(E,) how often a changed object is nearer to itself as it is than to another object as it is; a tie counts half.

    Every view but the first of (E, V, C) asks, all other objects are compared, by cosine around the mean.
    """
    centred = views - views.mean((0, 1))
    unit = F.normalize(centred, dim=2, eps=torch.finfo(centred.dtype).tiny)
    cosines = torch.einsum("evc,fc->evf", unit[:, 1:], unit[:, 0])
    own = cosines.diagonal(dim1=0, dim2=2).T[:, :, None]
    wins = (own > cosines).double() + 0.5 * (own == cosines)
    # The comparison with itself is such a tie.
    return (wins.sum(2) - 0.5).mean(1) / (len(views) - 1)


def save_layer(layer: nn.Conv2d, path: Path, settings: Mapping[str, Any]) -> None:
    """Weight and bias as safetensors; what they were made from goes into the file's metadata."""
    tensors = {name: value.contiguous() for name, value in layer.state_dict().items()}
    # Not `save_file`, whose files nobody else may read, whatever the umask.
    path.write_bytes(save(tensors, metadata={"format": "pt", "decodepos": json.dumps(dict(settings))}))


def load_debias(path: Path | str) -> nn.Conv2d:
    """The layer that a diagnosis saved.

    Example:
        >>> layer = load_debias("report/debias_0.safetensors")
        >>> clean = layer(feature_map)  # (B, C, h, w) of the stage named in the report
    """
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    channels = len(tensors["bias"])
    layer = nn.Conv2d(channels, channels, 1)
    layer.load_state_dict(tensors)
    return layer.requires_grad_(False)
