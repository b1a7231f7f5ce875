"""Batch norms: which a network has, and statistics for them that fit some pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn

Batch = TypeVar("Batch")

FITTED_ON = 64
"""Pictures whose statistics the batch norms of an untrained network have: ones that saw none hide what it can tell."""


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms in a module."""
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def fit_batch_norms(module: nn.Module, call: Callable[[Batch], object], batches: Iterable[Batch]) -> None:
    """Give batch norms the mean statistics of what `call` shows the module; no weight changes."""
    norms = batch_norms(module)
    before = [(norm.training, norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean over batches
    for batch in batches:
        call(batch)
    for norm, (training, momentum) in zip(norms, before, strict=True):
        norm.train(training).momentum = momentum
