"""Photos for the benchmarks of the data path: JPEG files in memory with random regions, and the same decoded once."""

from __future__ import annotations

import argparse
import atexit
import hashlib
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.batches import RegionDataset
from training.data.cache import load_cached
from training.data.decoding import decode_image
from training.recipe import ViewArguments

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


class PhotoSource:
    """Photos in memory, decoded whenever they are asked for."""

    name, split, region_source, seed = "photos in memory", "train", "objects", 0

    def __init__(self, photos: list[Photo]):
        self.photos = photos
        digest = hashlib.sha256(b"".join(photo.jpeg for photo in photos)).hexdigest()
        self.fingerprint = f"sha256 of all files {digest}"
        self.sizes = [photo.open().size[::-1] for photo in photos]

    def __len__(self) -> int:
        return len(self.photos)

    def image_id(self, index: int) -> str:
        """The photo's number."""
        return str(index)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width."""
        return self.sizes[index]

    def pixels(self, index: int) -> np.ndarray:
        """The decoded photo."""
        return decode_image(self.photos[index].jpeg, str(index))

    def boxes(self, index: int, epoch: int) -> np.ndarray:
        """The photo's regions."""
        return self.photos[index].boxes


def decode_each_time(photos: list[Photo], args: ViewArguments, view_names: list[str]) -> RegionDataset:
    """The trainer's data set over photos in memory."""
    return RegionDataset(PhotoSource(photos), args, view_names)


def decode_once(photos: list[Photo], args: ViewArguments, view_names: list[str]) -> RegionDataset:
    """The same over the trainer's cache of these photos, with a shorter side of 288 pixels."""
    folder = Path(tempfile.mkdtemp(prefix="decodepos-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    cached = load_cached(PhotoSource(photos), CACHE_SIDE_PX, folder / "cache", 0)
    return RegionDataset(cached, args, view_names)
