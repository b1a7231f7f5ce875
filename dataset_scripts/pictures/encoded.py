"""What a picture file says of itself, and how boxes and maps follow when it is turned as its EXIF orientation asks.

Files are stored as they are. `datasets` and our trainer both turn a picture when they decode it, so a row speaks of
the turned ("upright") picture: its width and height, its boxes, its map. Annotations may speak of the pixels as
stored; the size that comes with them tells. Where it fits both ways, they are taken to speak of the upright picture.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from modeling_decodepos.data.pictures import broken_if_it_fails, check_value_range, orientation_of, stored_size
from modeling_decodepos.data.schema import SEGMENTATION_IGNORE

LARGEST_CLASS_COUNT = SEGMENTATION_IGNORE - 1  # a map has one byte per pixel, and 0 and 255 are taken

PLACEHOLDER_CLASS = "object"  # the column contract wants a class name, also where nothing is annotated


@dataclass(frozen=True)
class EncodedPicture:
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


def read_picture(file: Path | bytes, name: str) -> EncodedPicture:
    """A picture, read and decoded once to be sure that it is whole."""
    try:
        data = file if isinstance(file, bytes) else file.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}.") from error
    what = f"{len(data)} bytes, beginning {data[:8]!r}"
    with broken_if_it_fails(printable(name), what), Image.open(io.BytesIO(data)) as image:
        check_value_range(image)
        height, width = stored_size(image)
        orientation = orientation_of(image)
        # A JPEG in an eighth of its size: all of the file is read and most of the arithmetic is not done.
        image.draft(image.mode, (1, 1))
        image.load()
    return EncodedPicture(data, name, (width, height), orientation)


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


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels or a map as PNG."""
    buffer = io.BytesIO()
    # Level 3: 5 % larger than the default level 6 and more than twice as fast.
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def picture_row(
    picture: EncodedPicture,
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
        **dict.fromkeys(("license", "author", "original_url", "landing_url")),
        **attribution,
    }


def printable(name: str) -> str:
    """A file name as valid text, also where its bytes are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
