"""Photos for the benchmarks of the data path: JPEG files in memory with random regions, and the same decoded once."""

from __future__ import annotations

import argparse
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.arguments import ViewArguments
from training.loading import RegionDataset, decode_image

SYNTHETIC_SIZE = (480, 640)
SYNTHETIC_QUALITY = 90  # files of about 150 KB, as COCO's
REGIONS = 16
CACHE_SIDE_PX = 288


@dataclass(frozen=True)
class Photo:
    """An encoded image and (R, 4) unit boxes in it."""

    jpeg: bytes
    boxes: np.ndarray

    def open(self) -> Image.Image:
        """The image as PIL decodes it."""
        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")


def add_photo_options(parser: argparse.ArgumentParser) -> None:
    """`--images` and `--images-count`."""
    parser.add_argument("--images", type=Path, help="folder of JPEG files (default: pictures made of noise)")
    parser.add_argument("--images-count", type=int, default=100, help="photos used at most")


def load_photos(folder: Path | None, count: int) -> list[Photo]:
    """The first JPEG files of a folder, or synthetic ones; says which and how large they are."""
    if folder is None:
        jpegs = [synthetic_jpeg(seed) for seed in range(count)]
        origin = "synthetic pictures (noise in octaves)"
    else:
        jpegs = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:count]]
        origin = f"photos of {folder.name}"
    if len(jpegs) < 2:
        raise SystemExit(f"--images {folder} holds {len(jpegs)} .jpg files; at least 2 are needed (one is a donor).")
    rng = np.random.default_rng(0)
    photos = [Photo(jpeg, random_boxes(rng)) for jpeg in jpegs]
    sizes = [photo.open().size for photo in photos]
    pixels = np.mean([width * height for width, height in sizes])
    kilobytes = np.mean([len(jpeg) for jpeg in jpegs]) / 1000
    print(
        f"{len(photos)} {origin}, mean {kilobytes:.0f} KB and {pixels / 1000:.0f} thousand pixels; {REGIONS} regions"
    )
    return photos


def synthetic_jpeg(seed: int) -> bytes:
    """A picture with the size, the file size and about the spectrum of a photo: noise of every scale."""
    rng = np.random.default_rng(seed)
    height, width = SYNTHETIC_SIZE
    total = np.full((height, width, 3), 128.0)
    for cells, strength in (
        (4, 45.0),
        (8, 30.0),
        (16, 20.0),
        (32, 14.0),
        (64, 9.0),
        (128, 6.0),
        (320, 6.0),
        (640, 9.0),
    ):
        noise = rng.standard_normal((max(cells * height // width, 1), cells, 3)) @ _COLOURS
        levels = Image.fromarray((128 + 40 * noise).clip(0, 255).astype(np.uint8)).resize((width, height))
        total += strength / 40 * (np.asarray(levels, dtype=np.float64) - 128)
    file = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=SYNTHETIC_QUALITY)
    return file.getvalue()


# The three colours of a photo vary mostly together.
_COLOURS = np.array([[0.9, 0.9, 0.9], [0.3, 0.0, -0.3], [0.1, -0.2, 0.1]])


def random_boxes(rng: np.random.Generator) -> np.ndarray:
    """(R, 4) boxes inside the image, sides 0.2 to 0.8 of it."""
    sides = rng.uniform(0.2, 0.8, size=(REGIONS, 2))
    start = (1 - sides) * rng.random((REGIONS, 2))
    return np.concatenate([start, start + sides], axis=1)


class PhotoDataset(RegionDataset):
    """The trainer's data set over photos in memory."""

    def __init__(self, photos: list[Photo], args: ViewArguments, view_names: list[str]):
        self.photos, self.args, self.view_names = photos, args, view_names
        self.seed, self.image_level = 0, False
        self.rows = range(len(photos))

    def _boxes(self, row: Any) -> np.ndarray:
        return self.photos[row].boxes

    def _image(self, row: Any) -> np.ndarray:
        return decode_image(self.photos[row].jpeg, str(row))


class CachedPhotoDataset(PhotoDataset):
    """The same over photos decoded once: short side 288, raw bytes in one file that is mapped into memory."""

    def __init__(self, photos: list[Photo], args: ViewArguments, view_names: list[str]):
        super().__init__(photos, args, view_names)
        arrays = [np.asarray(shrink(photo.open())) for photo in photos]
        with tempfile.TemporaryFile() as file:
            for array in arrays:
                file.write(array.tobytes())
            file.flush()
            # Mode c: torch warns about arrays that it may not write to. A plain array: slices of a memmap cost more.
            pixels = np.asarray(np.memmap(file, dtype=np.uint8, mode="c"))
        ends = np.cumsum([array.size for array in arrays])
        self.arrays = [
            pixels[end - array.size : end].reshape(array.shape) for array, end in zip(arrays, ends, strict=True)
        ]

    def _image(self, row: Any) -> np.ndarray:
        return self.arrays[row]


def shrink(image: Image.Image) -> Image.Image:
    """The image with its shorter side at the size of the cache; never enlarged."""
    share = min(CACHE_SIDE_PX / min(image.size), 1.0)
    size = (round(image.width * share), round(image.height * share))
    return image.resize(size, Image.Resampling.BILINEAR)
