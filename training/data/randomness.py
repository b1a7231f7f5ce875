"""Streams of random numbers of the data path: each purpose draws from a stream of its own."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What is drawn. The numbers are part of every run's results."""

    ORDER = 0  # (seed, epoch)
    VIEWS = 1  # (seed, epoch, index)
    DONOR = 2  # (seed, epoch, index)
    REGIONS = 3  # (seed, epoch, index)
    SHARDS = 4  # (seed, epoch)
    BLOCK = 5  # (seed, epoch, lane, block)
    MEASURES = 6  # (seed)
    KEPT_ASIDE = 7  # (seed, pictures)


def stream(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """The generator of one purpose at one place, such as (epoch, index)."""
    return np.random.default_rng([seed, purpose, *place])
