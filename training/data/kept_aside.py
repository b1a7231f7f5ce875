"""Pictures that a run only measures on, where its data have no validation split: which they are, and the others."""

from __future__ import annotations

import hashlib

import numpy as np

from training.data.randomness import Purpose, stream
from training.data.sources import ImageSource, NoSuchSplit, open_images
from training.recipe import DataArguments

VALIDATION = "validation"
LEAST = 4
"""Fewer pictures than this measure nothing."""


def kept_aside(data: DataArguments, seed: int, pictures: int) -> np.ndarray:
    """Sorted numbers of those of the `pictures` of the training split that are kept aside; training sees the others.

    None where the data have a validation split, or where a tenth of the pictures is too few to measure on.
    """
    count = min(data.hold_out, pictures // 10)
    if count < LEAST or has_validation(data):
        return np.zeros(0, dtype=np.int64)
    return np.sort(stream(seed, Purpose.KEPT_ASIDE, pictures).permutation(pictures)[:count])


def all_but(kept: np.ndarray, pictures: int) -> np.ndarray:
    """Sorted numbers of the pictures that are not kept aside."""
    return np.setdiff1d(np.arange(pictures), kept, assume_unique=True)


def has_validation(data: DataArguments) -> bool:
    """Whether there is a validation split beside the one that is trained on."""
    if data.split == VALIDATION:
        return False
    try:
        open_images(data.data, VALIDATION, "random")  # needs no column
    except NoSuchSplit:
        return False
    return True


class OtherImages:
    """An `ImageSource` of all but the kept-aside pictures of another; each has the boxes that it has there."""

    def __init__(self, source: ImageSource, kept: np.ndarray):
        self.source, self.indices = source, all_but(kept, len(source))
        self.name, self.split = source.name, source.split
        self.region_source, self.seed = source.region_source, source.seed
        digest = hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
        self.fingerprint = f"{source.fingerprint}, without {len(kept)} kept aside ({digest[:16]})"

    def __len__(self) -> int:
        return len(self.indices)

    def image_id(self, index: int) -> str:
        """As in the whole source."""
        return self.source.image_id(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of `pixels(index)`."""
        return self.source.size(int(self.indices[index]))

    def pixels(self, index: int) -> np.ndarray:
        """The picture, from the whole source."""
        return self.source.pixels(int(self.indices[index]))

    def boxes(self, index: int, epoch: int) -> np.ndarray:
        """Those that the picture has in the whole source: what is drawn depends on its number there."""
        return self.source.boxes(int(self.indices[index]), epoch)
