"""What a provider may look at: the size of an image, and, only if it asks, the pixels."""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from modeling_decodepos.data.pictures import BrokenImage, decode_picture

FloatArray = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Regions = tuple[FloatArray, FloatArray | None]
"""Boxes (M, 4) and their scores (M,), or None for scores where nothing is ranked."""


def as_xywh(boxes: ArrayLike) -> FloatArray:
    """Boxes as an array (N, 4), also where there are none."""
    return np.asarray(boxes, np.float32).reshape(-1, 4)


@dataclass(frozen=True)
class ProposalInput:
    """One image of a data set. Nothing is decoded before a method is called.

    Attributes:
        annotated: (N, 4) xywh boxes of its annotations, in pixels.
        encoded: The file, or None where it is not at hand.
        encoded_map: The file of its segmentation map, or None.
    """

    width: int
    height: int
    annotated: FloatArray
    rng: np.random.Generator
    encoded: bytes | None = None
    encoded_map: bytes | None = None

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"The image is {self.width} x {self.height} px, expected both sides to be positive.")

    def pixels(self, side_limit_px: int) -> Pixels:
        """(H, W, 3) RGB, upright, shrunk so that no side is longer than the limit.

        A JPEG much larger than the limit is never decoded at its full size.
        """
        if not self.encoded:
            raise ValueError("The image has no bytes, and this provider of proposals looks at its pixels.")
        scale = min(1.0, side_limit_px / max(self.width, self.height))
        size = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        try:
            pixels = decode_picture(self.encoded, "of this row", (self.height, self.width), at_least=size[::-1])
        except BrokenImage as error:
            raise ValueError(f"The {error}. Leave it out, or get a whole copy.") from error
        if pixels.shape[1::-1] != size:
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        return pixels

    def segmentation_map(self) -> Pixels | None:
        """(H, W) class of every pixel as the column `segmentation` has it, or None."""
        if not self.encoded_map:
            return None
        with Image.open(io.BytesIO(self.encoded_map)) as image:
            if image.mode not in ("L", "P") or image.size != (self.width, self.height):
                raise ValueError(
                    f"The segmentation map has mode {image.mode} and {image.width} x {image.height} px, expected one "
                    f"8-bit channel of {self.width} x {self.height} px."
                )
            return np.array(image)
