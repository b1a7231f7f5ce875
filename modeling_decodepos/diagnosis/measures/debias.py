"""A remedy without training: project the positional directions out, as one 1x1 convolution after the backbone.

    x -> x - V Vᵀ (x - mean)

V are the first k singular directions of the mean feature at each place. k is chosen on the gallery: the one that
lowers what can be read of the place most, of those that cost object k-NN there no more than one standard error. If
none helps, k is 0 and the layer is the identity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .position import Subspace

COUNTS = (0, 1, 2, 4, 8, 16, 32, 64)
"""Numbers of directions tried."""


@dataclass(frozen=True)
class RemovalPoint:
    """What is left after removing `count` directions, measured on the gallery."""

    count: int
    position: float
    accuracy: float | None


def choose_count(points: Sequence[RemovalPoint], objects: int) -> int:
    """The number of directions to remove, by a curve from 0 directions on; `objects` is what the accuracies count."""
    first = points[0]
    tolerated = list(points)
    if first.accuracy is not None:
        error = math.sqrt(max(first.accuracy * (1 - first.accuracy), 1e-9) / max(objects, 1))
        tolerated = [point for point in points if point.accuracy is None or point.accuracy >= first.accuracy - error]
    best = min(point.position for point in tolerated)
    # The fewest directions that come within a hundredth of the best.
    return min(point.count for point in tolerated if point.position <= best + 0.01)


def build_layer(subspace: Subspace, count: int) -> nn.Conv2d:
    """The projection as a 1x1 convolution: put it behind the stage that the subspace was measured at."""
    directions = subspace.directions[:count].double()
    channels = len(subspace.mean)
    shared = directions.T @ directions
    layer = nn.Conv2d(channels, channels, 1)
    with torch.no_grad():
        layer.weight.copy_((torch.eye(channels, dtype=torch.float64) - shared)[:, :, None, None])
        layer.bias.copy_(shared @ subspace.mean.double())  # type: ignore[union-attr]
    return layer.requires_grad_(False)


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
