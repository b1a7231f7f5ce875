"""The photos of Open Images: fetched once, verified, one file per photo; and which of them are gone for good."""

import base64
import errno
import hashlib
import io
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from modeling_decodepos.data.pictures import broken_if_it_fails

from ...files import whole_file
from .downloads import Downloader, FetchError, GoneError, StoppedError
from .tables import is_image_id

IMAGE_URL = "https://open-images-dataset.s3.amazonaws.com"
MOST_PIXELS = 90_000_000  # Open Images serves at most 1024 x 1024; originals stay far below this as well
MOST_FAILURES = 50  # without a success between them: the server is down, and asking for 118,287 more would be rude
ASPECT_TOLERANCE = 0.03
_BATCH = 2000


@dataclass(frozen=True)
class Photo:
    """One photo to be fetched, and what else is known of it."""

    split: str
    image_id: str
    size: int | None = None  # bytes of the photographer's original, if the address serves originals
    md5: str | None = None  # in base64, likewise
    aspect: float | None = None  # width / height as its masks have it


def photo_path(folders: Sequence[Path], split: str, image_id: str) -> Path:
    """Where a photo lies: in one of the folders or in that of its split there; absent ones belong into the last."""
    if not is_image_id(image_id):
        raise ValueError(f"{image_id!r} is no Open Images id, expected 16 digits of 0-9a-f.")
    places = [place / f"{image_id}.jpg" for folder in folders for place in (folder, folder / split)]
    return next((place for place in places if place.is_file()), places[-1])


def verify_photo(content: bytes, photo: Photo) -> tuple[int, int]:
    """Width and height of a photo that decodes to its last row; raises ValueError with the reason if it does not."""
    if photo.size is not None and len(content) != photo.size:
        raise ValueError(f"{len(content):,} bytes, the image list says {photo.size:,}")
    md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    if photo.md5 and md5 != photo.md5:
        raise ValueError(f"MD5 is {md5}, the image list says {photo.md5}")
    what = f"{len(content):,} bytes, beginning {content[:16]!r}"
    with broken_if_it_fails(photo.image_id, what), Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:  # Pillow's own warning may get lost between threads
            raise ValueError(f"{width} x {height} px, expected at most {MOST_PIXELS:,} pixels")
        image.load()
    if photo.aspect is not None and abs(width / height / photo.aspect - 1) > ASPECT_TOLERANCE:
        raise ValueError(f"{width} x {height} px, its masks have the aspect {photo.aspect:.3f}: another picture")
    return width, height


def fetch_photos(
    photos: Sequence[Photo], folders: Sequence[Path], base_url: str, downloader: Downloader, connections: int
) -> set[str]:
    """Fetches what is in none of the folders into the last; returns the ids that the server says are gone (404, 410).

    Anything else that could not be fetched raises ValueError at the end: the set is then incomplete, and the same
    command goes on from what is there.
    """
    absent = [photo for photo in photos if not photo_path(folders, photo.split, photo.image_id).is_file()]
    gone: set[str] = set()
    failures: dict[str, str] = {}
    in_a_row = 0

    def fetch(photo: Photo) -> None:
        nonlocal in_a_row
        url = f"{base_url.rstrip('/')}/{photo.split}/{photo.image_id}.jpg"
        try:
            content = downloader.fetch(url, lambda content: verify_photo(content, photo))
        except GoneError:
            gone.add(photo.image_id)
        except FetchError as error:
            failures[photo.image_id] = str(error)
            in_a_row += 1
            if in_a_row >= MOST_FAILURES:
                downloader.pace.stopped.set()
            return
        except StoppedError:
            return
        else:
            _store(folders[-1] / photo.split / f"{photo.image_id}.jpg", content)
        in_a_row = 0

    with (
        tqdm(total=len(absent), desc="photos", unit=" photos", mininterval=0.5) as progress,
        ThreadPoolExecutor(connections) as pool,
    ):
        try:
            for start in range(0, len(absent), _BATCH):
                for _ in pool.map(fetch, absent[start : start + _BATCH]):
                    progress.update()
        except BaseException:
            downloader.pace.stopped.set()  # the other threads would wait for their next attempts
            raise
    if failures or downloader.pace.stopped.is_set():
        reasons = "\n  ".join(itertools.islice(failures.values(), 5))
        left = sum(not photo_path(folders, p.split, p.image_id).is_file() for p in absent) - len(gone)
        raise ValueError(
            f"{left} of {len(photos)} photos could not be fetched, among them:\n  {reasons}\nThe others are kept in "
            f"{folders[-1]}: run the same command again later. To leave photos out for good, put their ids into a "
            "file, one per line, and pass it with --missing."
        )
    return gone


def _store(path: Path, content: bytes) -> None:
    try:
        with whole_file(path, sync=False) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise ValueError(
            f"{path.parent} cannot be written: {reason}. What is there is whole; run it again."
        ) from error


def upright_as_stored(content: bytes) -> bytes:
    """A JPEG without its metadata (EXIF, XMP) if that asks viewers to turn the picture, else the same bytes.

    Boxes of Open Images refer to the pixels as they are stored; a reader that obeys the metadata would turn the
    picture away from under them.
    """
    with Image.open(io.BytesIO(content)) as image:
        if image.getexif().get(0x0112, 1) == 1:
            return content
    kept, place = [content[:2]], 2
    while content[place + 1] != 0xDA:  # up to the start of the scan, all is segments with a length
        length = 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        segment = content[place : place + length]
        if segment[1] != 0xE1:  # APP1
            kept.append(segment)
        place += length
    return b"".join([*kept, content[place:]])
