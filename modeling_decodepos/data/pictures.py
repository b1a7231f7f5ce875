"""A picture file -> upright 8-bit pixels that are all there, or `BrokenImage`.

Every part of decodepos that looks at pictures reads them here, so that boxes, which refer to the upright picture, fit.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

Size = tuple[int, int]
"""Height and width in pixels."""

_ORIENTATION = 0x0112  # EXIF tag


class BrokenImage(ValueError):
    """An image that cannot be read as it should be."""

    def __init__(self, image_id: str, reason: str):
        super().__init__(image_id, reason)
        self.image_id, self.reason = image_id, reason

    def __str__(self) -> str:
        return f"image {self.image_id} {self.reason}"


def decode_picture(
    data: bytes | None,
    name: str,
    size: Size | None = None,
    *,
    at_least: Size | None = None,
    grey: bool = False,
    formats: tuple[str, ...] | None = None,
    decode_jpeg: Callable[[bytes], np.ndarray | None] | None = None,
) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels, turned as their EXIF orientation says; colour only, alpha is dropped.

    Of an animation, the first picture is taken; 16-bit values lose their lower byte. `BrokenImage` is raised for a
    file that is cut short, of no known kind, far too large, or of another size.

    Args:
        data: The encoded file.
        name: For the message.
        size: Height and width that annotations refer to. Where they are those of the pixels before the EXIF rotation,
            that is what comes back.
        at_least: A JPEG may come back at a half, quarter or eighth of its size, if that is still at least this.
        grey: Return (H, W) luminance instead.
        formats: Pillow's names of the kinds of file that are read; None reads them all.
        decode_jpeg: A faster decoder of whole 8-bit JPEG files, grey or colour, that leaves them unturned. Where it
            returns None, Pillow decodes.
    """
    if not data:
        raise BrokenImage(name, "has no bytes: the `image` column must hold the encoded file, not its path")
    with broken_if_it_fails(name, f"{len(data)} bytes, beginning {data[:8]!r}"):
        # Reads the header only, and refuses decompression bombs.
        opened = Image.open(io.BytesIO(data), formats=formats)
        stored, orientation = stored_size(opened), orientation_of(opened)
        turn = orientation if size is None else _turn_to(size, stored, orientation, name)
        if at_least is not None:
            opened.draft("L" if grey else "RGB", at_least if turn >= 5 else at_least[::-1])
        pixels = None
        if decode_jpeg and opened.format in ("JPEG", "MPO") and opened.mode in ("L", "RGB"):
            pixels = decode_jpeg(data)
        if pixels is None:
            pixels = eight_bits(opened, "L" if grey else "RGB")
            if isinstance(opened, TiffImageFile):  # the one kind that Pillow turns by itself
                pixels = turn_pixels(pixels, {6: 8, 8: 6}.get(orientation, orientation))
    return turn_pixels(pixels, turn)


def read_size(file: str | Path, name: str, formats: tuple[str, ...] | None = None) -> Size:
    """Height and width that `decode_picture` would give for a file, from its header only."""
    with broken_if_it_fails(name, "header"), Image.open(file, formats=formats) as opened:
        return upright_size(opened)


def stored_size(opened: Image.Image) -> Size:
    """Height and width of an opened image's pixels as they are stored."""
    # Before a TIFF is loaded, versions of Pillow differ in whether its size is that of the turned picture.
    width, height = (opened.tag_v2[256], opened.tag_v2[257]) if isinstance(opened, TiffImageFile) else opened.size
    return height, width


def upright_size(opened: Image.Image) -> Size:
    """Height and width that an opened image has once it is turned as its EXIF orientation says."""
    height, width = stored_size(opened)
    return (width, height) if orientation_of(opened) >= 5 else (height, width)


def orientation_of(opened: Image.Image) -> int:
    """The EXIF orientation (1 to 8) of an image that is opened and not yet decoded."""
    try:
        # The base class's method: that of PNG decodes the picture to look for a chunk behind it.
        value = Image.Image.getexif(opened).get(_ORIENTATION, 1)
    except Exception:  # damaged metadata says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn_pixels(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, ...) turned and mirrored as an EXIF orientation asks."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def check_value_range(opened: Image.Image) -> None:
    """Refuses images whose values cannot be brought to 8 bits."""
    if opened.mode == "F" or (opened.mode == "I" and opened.format != "PNG"):
        raise ValueError(f"mode {opened.mode} (32 bits per value) has no known range; convert it to 8 or 16 bits.")


@contextmanager
def broken_if_it_fails(name: str, what: str) -> Iterator[None]:
    """Whatever goes wrong while an image is opened or decoded becomes a `BrokenImage`."""
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


def _turn_to(size: Size, stored: Size, orientation: int, name: str) -> int:
    """The orientation to apply for a picture of this height and width."""
    upright = stored[::-1] if orientation >= 5 else stored
    if size == upright:
        return orientation
    if size == stored:
        return 1
    raise BrokenImage(name, f"is {upright[1]} x {upright[0]} px, but its data set says {size[1]} x {size[0]} px")


def eight_bits(opened: Image.Image, mode: str) -> np.ndarray:
    """The pixels of an opened image in mode L or RGB, unturned. Pillow would clip 16-bit values, not scale them."""
    check_value_range(opened)
    if opened.mode.startswith("I"):
        grey = (np.asarray(opened) >> 8).astype(np.uint8)
        return grey if mode == "L" else np.repeat(grey[..., None], 3, axis=2)
    return np.array(opened.convert(mode))
