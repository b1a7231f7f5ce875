"""Colours that networks are normalised with, ImageNet's or their own, and what stands where there is no picture."""

import json
from collections.abc import Sequence
from pathlib import Path

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pixels in [0, 1]."""

MEAN_COLOUR = (124, 116, 104)
"""The mean as 8-bit pixels: (almost) zero once normalised. It is the colour measured on the paper's figure."""


def mean_colour(mean: Sequence[float]) -> tuple[int, ...]:
    """A mean of pixels in [0, 1] as an 8-bit colour."""
    return tuple(round(255 * value) for value in mean)


def pixel_statistics(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the preprocessor of a folder or Hub id names, or else its config; else ImageNet's."""
    from transformers.utils import cached_file  # takes a second, and most who import this file need a colour

    for name in ("preprocessor_config.json", "config.json") if source else ():
        path = cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        settings = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        mean, std = settings.get("image_mean"), settings.get("image_std")
        if mean and std:
            return tuple(map(float, mean)), tuple(map(float, std))
    return IMAGE_MEAN, IMAGE_STD
