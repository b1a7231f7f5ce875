"""Pictures that a visitor brings or picks, as square views, and the chosen box.

A view is (3, S, S) uint8 with S = `VIEW_PX`; boxes are (4,) unit xyxy of it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from modeling_decodepos.data.pictures import BrokenImage, decode_picture, read_size
from modeling_decodepos.looking.views import LARGEST_SIDE, middle_square, scene_view

VIEW_PX = 160
PHOTO = Path(__file__).with_name("coffee.jpg")
PHOTO_BOX = (0.52, 0.58, 0.8, 0.86)  # the spoon
LARGEST_FILE = 8 * 2**20
LARGEST_PIXELS = 40_000_000
FORMATS = ("JPEG", "PNG", "WEBP")
SCENES = 4
BOX_SIDES = (0.1, LARGEST_SIDE)
"""Least and greatest side of a box: fewer pixels say nothing, more leave no surroundings."""


class NotAPicture(ValueError):
    """Why a file cannot be looked at; for the visitor."""


def read_view(path: str | Path) -> Tensor:
    """The largest square in the middle of a picture file, upright."""
    if Path(path).stat().st_size > LARGEST_FILE:
        raise NotAPicture(f"The file is larger than {LARGEST_FILE >> 20} MB. Please make the picture smaller.")
    try:
        height, width = read_size(path, "uploaded", FORMATS)
        if width * height > LARGEST_PIXELS:
            raise NotAPicture(
                f"The picture has {width} x {height} pixels; at most {LARGEST_PIXELS // 1_000_000} million are "
                "allowed. Please make it smaller."
            )
        enough = (4 * VIEW_PX, 4 * VIEW_PX)
        pixels = decode_picture(Path(path).read_bytes(), "uploaded", at_least=enough, formats=FORMATS)
    except (BrokenImage, OSError) as error:
        raise NotAPicture(
            f"This file cannot be read as a picture. Please take a whole {', '.join(FORMATS)} file."
        ) from error
    return middle_square(pixels, VIEW_PX)


@lru_cache(maxsize=1)
def photo_view() -> tuple[Tensor, Tensor]:
    """The photo to begin with, and a box in it."""
    return read_view(PHOTO), torch.tensor(PHOTO_BOX)


@lru_cache(maxsize=SCENES)
def draw_scene(number: int) -> tuple[Tensor, Tensor]:
    """Scene `number` (from 0), which is none of those that the diagnosis draws, and the box of its largest object."""
    if not 0 <= number < SCENES:
        raise ValueError(f"scene {number} is none of the {SCENES} scenes.")
    return scene_view(number, VIEW_PX)


def place_box(x: float, y: float, side: float) -> Tensor:
    """A square box around (x, y), of a side that is allowed, moved into the view."""
    side = min(max(side, BOX_SIDES[0]), BOX_SIDES[1])
    left, top = (min(max(value - side / 2, 0.0), 1.0 - side) for value in (x, y))
    return torch.tensor([left, top, left + side, top + side])
