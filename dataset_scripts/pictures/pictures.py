"""What a picture file says of itself, and how boxes and maps follow when it is turned as its EXIF orientation asks.

Files are stored as they are. `datasets` and our trainer both turn a picture when they decode it, so a row speaks of
the turned ("upright") picture: its width and height, its boxes, its map. Annotations may speak of the pixels as
stored; the size that comes with them tells. Where it fits both ways, they are taken to speak of the upright picture.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from modeling_decodepos.schema import SEGMENTATION_IGNORE

LARGEST_CLASS_COUNT = SEGMENTATION_IGNORE - 1  # a map has one byte per pixel, and 0 and 255 are taken

PLACEHOLDER_CLASS = "object"  # the column contract wants a class name, also where nothing is annotated

_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class Picture:
    """An encoded picture: the file's bytes, its size in pixels as stored, and its EXIF orientation (1 to 8)."""

    data: bytes
    name: str
    stored: tuple[int, int]
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height once it is turned."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored

    def turn_to_fit(self, size: tuple[int, int]) -> int:
        """The EXIF orientation by which annotations made for this width and height must be turned; 1 is not at all."""
        if size == self.upright:
            return 1
        if size == self.stored:
            return self.orientation
        width, height = self.upright
        raise ValueError(
            f"{self.name} is {width} x {height} px, but its annotations are for {size[0]} x {size[1]} px. "
            "Put the original picture back, or annotations that belong to it."
        )


def read_picture(file: Path | bytes, name: str) -> Picture:
    """A picture, read and decoded once to be sure that it is whole."""
    try:
        data = file if isinstance(file, bytes) else file.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}.") from error
    with explained(name, f"{len(data)} bytes, beginning {data[:8]!r}"), Image.open(io.BytesIO(data)) as image:
        if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
            raise ValueError(f"mode {image.mode} (32 bits per value) has no known range; convert it to 8 or 16 bits")
        stored, orientation = _stored_size(image), _orientation(image)
        # A JPEG in an eighth of its size: all of the file is read and most of the arithmetic is not done.
        image.draft(image.mode, (1, 1))
        image.load()
    return Picture(data, name, stored, orientation)


def header_size(path: Path, name: str) -> tuple[int, int]:
    """Width and height of a file's picture when it is turned upright, from its header alone."""
    with explained(name, "header"), Image.open(path) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height that an opened and not yet decoded image has when it is turned as its EXIF data ask."""
    width, height = _stored_size(image)
    return (height, width) if _orientation(image) >= 5 else (width, height)


def turn_boxes(boxes: ArrayLike, orientation: int, width: int, height: int) -> NDArray[np.float64]:
    """Boxes (N, 4) xywh of a picture that is `width` x `height` as stored, in the picture when it is turned."""
    x, y, w, h = np.asarray(boxes, np.float64).reshape(-1, 4).T
    if orientation >= 5:
        x, y, w, h, width, height = y, x, h, w, height, width
    if orientation in (3, 4, 7, 8):
        y = height - y - h
    if orientation in (2, 3, 6, 7):
        x = width - x - w
    return np.stack([x, y, w, h], axis=1)


def turn_map(labels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A map (H, W) of a picture as stored, as it is when the picture is turned."""
    if orientation >= 5:
        labels = labels.T
    if orientation in (3, 4, 7, 8):
        labels = labels[::-1]
    if orientation in (2, 3, 6, 7):
        labels = labels[:, ::-1]
    return labels


def encode_map(labels: NDArray[np.uint8]) -> bytes:
    """A map as a one-channel PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(labels)).save(buffer, "PNG", compress_level=3)  # half the time of level 6
    return buffer.getvalue()


def picture_row(
    picture: Picture,
    image_id: str,
    objects: dict[str, list[Any]],
    segmentation: bytes | None = None,
    **attribution: str | None,
) -> dict[str, Any]:
    """A row of the Parquet contract, all but its `regions`, from annotations of the upright picture."""
    width, height = picture.upright
    map_name = f"{Path(picture.name).stem}-segmentation.png"
    return {
        "image": {"bytes": picture.data, "path": printable(picture.name)},
        "image_id": printable(image_id),
        "width": width,
        "height": height,
        "objects": objects,
        "segmentation": None if segmentation is None else {"bytes": segmentation, "path": printable(map_name)},
        "license": None,
        "author": None,
        "original_url": None,
        "landing_url": None,
        **attribution,
    }


def printable(name: str) -> str:
    """A file name as valid text, also where its bytes are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextmanager
def explained(name: str, what: str) -> Iterator[None]:
    """Whatever goes wrong while a picture is opened or decoded becomes a ValueError that names it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no news; what matters becomes an error
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # on damaged files decoders raise whatever their parsing runs into
            # The message of UnidentifiedImageError names a place in memory.
            why = "no known kind of picture" if isinstance(error, UnidentifiedImageError) else str(error)
            raise ValueError(f"{printable(name)} cannot be decoded ({what}): {why}.") from None


def _stored_size(image: Image.Image) -> tuple[int, int]:
    # Before a TIFF is loaded, versions of Pillow differ in whether its size is that of the turned picture.
    return (image.tag_v2[256], image.tag_v2[257]) if isinstance(image, TiffImageFile) else image.size


def _orientation(image: Image.Image) -> int:
    try:
        # The base class's method: that of PNG decodes the picture to look for a chunk behind it.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # damaged metadata says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
