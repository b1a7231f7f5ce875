"""A CNN with another padding: the same weights, and something else than zeros beyond the border."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..models.networks import padded_convolutions

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@contextmanager
def padded_with(module: nn.Module, mode: str) -> Iterator[None]:
    """All padded convolutions with one padding mode; each gets its own back afterwards."""
    if mode not in PADDING_MODES:
        raise ValueError(f"padding mode is {mode!r}; expected one of {', '.join(PADDING_MODES)}.")
    layers: list[Any] = padded_convolutions(module)
    before = [layer.padding_mode for layer in layers]
    for layer in layers:
        layer.padding_mode = mode
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.padding_mode = old
