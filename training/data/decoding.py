"""Encoded bytes of a picture -> (H, W, 3) uint8 RGB pixels that are all there, or `BrokenImage`.

OpenCV decodes JPEG in two thirds of Pillow's time, but hands over a half-grey picture where some of a JPEG's data is
missing. So it gets whole JPEG files only; Pillow, which refuses what is cut short, reads everything else.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

_JPEG_END = b"\xff\xd9"
_ORIENTATION = 0x0112  # EXIF tag


class BrokenImage(ValueError):
    """An image that cannot be read as it should be."""

    def __init__(self, image_id: str, reason: str):
        super().__init__(image_id, reason)
        self.image_id, self.reason = image_id, reason

    def __str__(self) -> str:
        return f"image {self.image_id} {self.reason}"


def decode_image(data: bytes | None, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels, turned as their EXIF orientation says; colour only, alpha is dropped.

    Args:
        data: The encoded file; of an animation, the first picture is taken. 16-bit values lose their lower byte.
        name: For the message.
        size: Height and width that annotations refer to. Where they are those of the pixels before the EXIF rotation,
            that is what comes back.

    Raises:
        BrokenImage: The file is cut short, of no known kind, far too large, or of another size.
    """
    if not data:
        raise BrokenImage(name, "has no bytes: the `image` column must hold the encoded file, not its path")
    with _broken_if_it_fails(name, f"{len(data)} bytes, beginning {data[:8]!r}"):
        opened = Image.open(io.BytesIO(data))  # reads the header only, and refuses decompression bombs
        orientation = _orientation(opened)
        stored = None
        if opened.format in ("JPEG", "MPO") and opened.mode in ("L", "RGB") and data.endswith(_JPEG_END):
            flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
            stored = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
        if stored is None:
            stored = _to_rgb(opened)
            if isinstance(opened, TiffImageFile):  # the one kind that Pillow turns by itself
                stored = _turn(stored, {6: 8, 8: 6}.get(orientation, orientation))
    upright = _turn(stored, orientation)
    if size is None or upright.shape[:2] == size:
        return upright
    if stored.shape[:2] == size:
        return stored
    height, width = upright.shape[:2]
    raise BrokenImage(name, f"is {width} x {height} px, but its data set says {size[1]} x {size[0]} px")


def read_size(file: str, name: str) -> tuple[int, int]:
    """Height and width that `decode_image` would give for a file, from its header only."""
    with _broken_if_it_fails(name, "header"), Image.open(file) as opened:
        # Before a TIFF is loaded, versions of Pillow differ in whether its size is that of the turned picture.
        width, height = (opened.tag_v2[256], opened.tag_v2[257]) if isinstance(opened, TiffImageFile) else opened.size
        return (width, height) if _orientation(opened) >= 5 else (height, width)


@contextmanager
def _broken_if_it_fails(name: str, what: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no news; what matters becomes an error
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (BrokenImage, MemoryError):
            raise
        except Exception as error:  # on damaged files decoders raise whatever their parsing runs into
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, UnidentifiedImageError):  # whose message names a place in memory
                why = "no known kind of picture"
            raise BrokenImage(name, f"cannot be decoded ({what}): {why}") from None


def _orientation(opened: Image.Image) -> int:
    try:
        # The base class's method: that of PNG decodes the picture to look for a chunk behind it.
        value = Image.Image.getexif(opened).get(_ORIENTATION, 1)
    except Exception:  # damaged metadata says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an image opened by Pillow. Its own conversion would clip 16-bit values, not scale them."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} (32 bits per value) has no known range; convert it to 8 or 16 bits.")
    return np.array(image.convert("RGB"))


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels turned and mirrored as an EXIF orientation (1 to 8) asks."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
