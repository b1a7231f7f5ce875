"""What tells a network that has learned from one that has not, and statistics for norms that came without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.real_backbones.converters import Converted
from benchmarks.real_backbones.packages import CannotBeHad
from benchmarks.real_backbones.photos import SEEN_AS

CLOSE = 1e-4  # of the greatest value
LEAST_NAMED, LEAST_NEIGHBOURS = 0.5, 0.5  # by chance: 0.01 are named rightly, 0.17 are next to one of their class
BATCH = 20


def refuse_untouched_norms(network: nn.Module) -> str:
    """How many batch norms there are; raises if one has the mean or the variance it was made with."""
    norms: dict[str, Any] = {name: part for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)}
    untouched = [name for name, n in norms.items() if not n.running_mean.any() or (n.running_var == 1).all()]
    if untouched:
        raise CannotBeHad(
            f"{len(untouched)} of {len(norms)} batch norms still have mean 0 or variance 1 (first {untouched[0]}): "
            "these weights were saved without the statistics of any picture"
        )
    return f"{len(norms)} have statistics"


def refuse_if_different(ours: Tensor, theirs: Tensor, peer: str) -> str:
    """The greatest difference, in words; raises if it is more than rounding."""
    if ours.shape != theirs.shape:
        raise CannotBeHad(f"it gives {tuple(ours.shape)} where {peer} gives {tuple(theirs.shape)}")
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference < CLOSE:
        raise CannotBeHad(f"its outputs differ from those of {peer} by {difference:.2g} of the greatest")
    return f"{difference:.1g} from {peer}"


def refuse_if_blind(converted: Converted, cuts: Tensor, names: Sequence[str]) -> str:
    """How many objects a classifier names; without one, how many have a nearest neighbour of their class."""
    answers = torch.cat([converted.answer(batch) for batch in cuts.split(BATCH)])
    if converted.has_head:
        right = [guess in SEEN_AS[name] for guess, name in zip(answers.argmax(1).tolist(), names, strict=True)]
        what, least = "named rightly", LEAST_NAMED
    else:
        features = F.normalize(answers, dim=1)
        nearest = (features @ features.T).fill_diagonal_(-1).argmax(1).tolist()
        right = [names[near] == name for near, name in zip(nearest, names, strict=True)]
        what, least = "next to one of their class", LEAST_NEIGHBOURS
    said = f"{sum(right)} of {len(right)} {what}"
    if sum(right) < least * len(right):
        raise CannotBeHad(f"only {said}; at least {least:.0%} were expected")
    return said


@torch.no_grad()
def rebuild_statistics(converted: Converted, pictures: Tensor) -> None:
    """Gives every batch norm the mean and variance of what it meets on pictures; the network's outputs stay.

    Args:
        converted: A network whose batch norms, as they are, make the function that is meant.
        pictures: (B, 3, S, S) uint8.
    """
    norms: list[Any] = [part for part in converted.network.modules() if isinstance(part, nn.BatchNorm2d)]
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def add(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)
        sums[norm] += torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), (values**2).sum(1)])

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    for batch in pictures.split(BATCH):
        converted.network(converted.prepare(batch))
    for hook, norm in zip(hooks, norms, strict=True):
        hook.remove()
        count, total, squares = sums[norm]
        mean, slope = total / count, norm.weight / (norm.running_var + norm.eps).sqrt()
        variance = (squares / count - mean**2).clamp(min=0)
        norm.bias += (mean - norm.running_mean) * slope
        norm.weight.copy_(slope * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
