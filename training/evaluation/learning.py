"""How heads and fine-tuned networks learn here: batches from (seed, step), shared by the processes, one schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from training.evaluation.evaluation import Evaluation

# (sum of losses, number of things it sums over), of this process's part of a batch
PartLoss = Callable[[list[int], int], tuple[Tensor, Tensor]]


def learn(
    evaluation: Evaluation,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    part_loss: PartLoss,
    *,
    items: int,
    steps: int,
    batch_size: int,
    what: str,
    clip: float = 0.0,
) -> None:
    """Make `steps` updates with a learning rate that rises for the first 5 % and then falls to zero along a cosine.

    The items of a step depend on (seed, step). Each process takes its part of them; the loss is the mean over the
    whole batch, and gradients are added up, so that two processes make the updates of one (but for the statistics of
    batch norms). The optimizer comes with its peak learning rate; `clip` is the gradient's greatest norm, 0: any.
    """
    processes = evaluation.processes
    peaks = [group["lr"] for group in optimizer.param_groups]
    size = min(batch_size, items)
    bar = tqdm(range(steps), desc=what, unit="step", disable=not processes.is_main, leave=False)
    for step in bar:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_share(step, steps)
        own = processes.own(batch_items(evaluation.seed, step, items, size))
        total, count = part_loss(own, step)
        whole = processes.total(count.detach().double()).clamp(min=1)
        loss = total / whole
        optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            loss.backward()
        processes.sum_gradients(module)
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        shown = float(processes.total(loss.detach()))
        if not math.isfinite(shown):
            raise ValueError(
                f"{what}: the loss is {shown} at step {step + 1} of {steps}; take a smaller --learning_rate than "
                f"{max(peaks):g}."
            )
        optimizer.step()
        bar.set_postfix(loss=f"{shown:.3f}", refresh=False)


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak at a step."""
    warmup = max(1, round(0.05 * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def batch_items(seed: int, step: int, items: int, size: int) -> list[int]:
    """The items of a step: a run of an endless sequence of shuffled epochs."""
    found: list[int] = []
    first = step * size
    while len(found) < size:
        epoch, place = divmod(first + len(found), items)
        found += epoch_order(seed, epoch, items)[place : place + size - len(found)].tolist()
    return found


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, items: int) -> np.ndarray:
    """The order in which an epoch visits its items."""
    return np.random.default_rng([seed, epoch]).permutation(items)
