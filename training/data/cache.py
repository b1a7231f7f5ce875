"""Decode once: the images of a split as raw pixels on disk, their shorter side at most `cache_px`.

    FOLDER/pixels-00000000.bin …   uint8 RGB of images in a row, named by the first; each at most 256 MiB
    FOLDER/index.safetensors       per image: number of the file, offset in it, height and width, the original's too
    FOLDER/index.json              which images and settings; bytes of every file; broken images and why. Written last

    python -m training.data.cache --data DIR --split train --cache_px 288 --output FOLDER

builds one ahead of a run, and a run with `cache_px` builds it where it is missing. A build that is killed leaves no
index; the next one goes on after the last finished file. Several processes map the files and share the page cache.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from torch.utils.data import BatchSampler, Dataset
from tqdm import tqdm

from dataset_scripts.build.engines import available_cores
from dataset_scripts.build.parquet import recipe_differences
from dataset_scripts.files import DISK_FULL, lock_folder, read_json, whole_file, write_text
from modeling_decodepos.commands.outputs import refuse_unwritable
from modeling_decodepos.commands.settings import CommandParser, add_flags, from_values, given, number
from training.data.decoding import BrokenImage
from training.data.sources import DRAWN, ImageSource, draw_boxes, open_images
from training.data.workers import load_in_workers
from training.recipe import DataArguments

FORMAT = 1
# A file is full where the next image would pass this; a killed build loses less than one file.
FILE_BYTES = 2**28
_IMAGES_AT_ONCE = 8  # that a worker hands over

_Image = tuple[np.ndarray, tuple[int, int], str | None]
"""Pixels, the size of the original, and why it is broken if it is."""


class CachedImages:
    """An `ImageSource` whose pixels come from a cache and whose regions come from the source it was made of."""

    def __init__(self, source: ImageSource, folder: Path, cache_px: int):
        self.source, self.folder = source, folder
        self.name, self.split, self.fingerprint = source.name, source.split, source.fingerprint
        self.region_source, self.seed = source.region_source, source.seed
        index = _load_index(folder)
        _refuse_other_settings(folder, index["settings"], cache_settings(source, cache_px))
        self._paths = [folder / name for name in index["files"]]
        for path, size in zip(self._paths, index["files"].values(), strict=True):
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                raise ValueError(
                    f"cache {folder}: {path.name} {'is missing' if found is None else f'has {found} bytes'}, expected "
                    f"{size} bytes. Delete the folder; it is built again."
                )
        tables = load_file(folder / "index.safetensors")
        self._file, self._offset, self._size = tables["file"], tables["offset"], tables["size"]
        self._original_size = tables["original_size"]
        self.broken = {int(number): reason for number, reason in index["broken"].items()}
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._file)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def image_id(self, index: int) -> str:
        """As in the source."""
        return self.source.image_id(index)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in the cache."""
        if index in self.broken:
            raise BrokenImage(self.image_id(index), self.broken[index])
        height, width = self._size[index]
        return int(height), int(width)

    def pixels(self, index: int) -> np.ndarray:
        """Pixels in the cache's file: nothing is copied."""
        height, width = self.size(index)
        file, offset = int(self._file[index]), int(self._offset[index])
        if file not in self._maps:
            # Copy on write, because torch warns of arrays that cannot be written; nobody writes, so pages are shared.
            self._maps[file] = np.memmap(self._paths[file], np.uint8, mode="c").view(np.ndarray)
        return self._maps[file][offset : offset + 3 * height * width].reshape(height, width, 3)

    def boxes(self, index: int, epoch: int) -> np.ndarray:
        """Those of the source; drawn ones without a look at the file."""
        if self.region_source in DRAWN:
            self.size(index)  # a broken image has no regions either
            height, width = self._original_size[index]
            return draw_boxes(self.region_source, (int(height), int(width)), self.seed, epoch, index)
        return self.source.boxes(index, epoch)


def load_cached(source: ImageSource, cache_px: int, folder: Path, num_workers: int = 0) -> CachedImages:
    """The source with its pixels from the cache in a folder, which is built if it is not there.

    Any number of processes may ask at once: one of them builds, the others wait for it.
    """
    if not (folder / "index.json").is_file():
        build_cache(source, cache_px, folder, num_workers)
    return CachedImages(source, folder, cache_px)


def cache_folder(beside: Path, source: ImageSource, cache_px: int) -> Path:
    """The folder for a cache that was given none: beside a run's folder, shared by the runs on these images."""
    digest = hashlib.sha256(json.dumps(cache_settings(source, cache_px), sort_keys=True).encode()).hexdigest()
    return beside.parent / ".cache" / f"images-{cache_px}px-{digest[:16]}"


def cache_settings(source: ImageSource, cache_px: int) -> dict[str, Any]:
    """All that decides the pixels of a cache."""
    return {
        "format": FORMAT,
        "images": source.fingerprint,
        "split": source.split,
        "count": len(source),
        "cache_px": cache_px,
    }


def shrink(pixels: np.ndarray, short_px: int) -> np.ndarray:
    """(H, W, 3) uint8 pixels with the shorter side at most `short_px`; never enlarged."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= short_px:
        return pixels
    size = (round(height * short_px / short), round(width * short_px / short))
    last = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(last, size=size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).contiguous().numpy()


# ------------------------------------------------------------------------------------------------------------- build


@dataclass
class _Part:
    """One finished file of pixels and what it holds; images that are broken have no pixels in it."""

    start: int
    offsets: list[int]
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    broken: dict[str, str]  # by the image's number
    bytes: int

    @property
    def stop(self) -> int:
        return self.start + len(self.offsets)

    @property
    def pixels_name(self) -> str:
        return f"pixels-{self.start:08d}.bin"


def build_cache(source: ImageSource, cache_px: int, folder: Path, num_workers: int = 0) -> None:
    """Build, or finish building, the cache of a source; nothing happens where it is whole."""
    if cache_px < 1:
        raise ValueError(f"cache_px is {cache_px}; expected at least 1.")
    settings = cache_settings(source, cache_px)
    done: list[_Part] = []
    try:
        with lock_folder(folder, "cache", "build", wait=True):
            if (folder / "index.json").is_file():
                return
            _begin(folder, settings)
            done = _finished_parts(folder)
            for part in _new_parts(source, cache_px, folder, num_workers, done[-1].stop if done else 0):
                write_text(folder / f"part-{part.start:08d}.json", json.dumps(vars(part)))
                done.append(part)
            _write_index(folder, settings, done)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        images, size = (done[-1].stop, sum(part.bytes for part in done)) if done else (0, 0)
        needed = f" All need about {size / images * len(source) / 1e9:.1f} GB." if images else ""
        raise ValueError(
            f"cache {folder}: the disk is full after {images} of {len(source)} images ({size / 1e9:.1f} GB).{needed} "
            "Free some space and run the same command again, which goes on from there; or take another cache_dir, or "
            "a smaller cache_px."
        ) from error


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    """Mark a folder as a cache in the making; refuse one that holds something else."""
    mark = folder / "building.json"
    if mark.is_file():
        _refuse_other_settings(folder, read_json(mark), settings)
        return
    if others := [path.name for path in folder.iterdir() if path.name != ".lock"]:
        raise ValueError(f"cache {folder}: the folder holds other things ({others[0]} …); give a folder of its own.")
    write_text(mark, json.dumps(settings))


def _finished_parts(folder: Path) -> list[_Part]:
    """The files that an earlier build finished, in a row from the first image on."""
    parts: list[_Part] = []
    while (path := folder / f"part-{parts[-1].stop if parts else 0:08d}.json").is_file():
        try:
            part = _Part(**read_json(path))
        except (ValueError, TypeError):  # damaged: it is made again
            break
        pixels = folder / part.pixels_name
        if not part.offsets or (part.bytes and (not pixels.is_file() or pixels.stat().st_size != part.bytes)):
            break
        parts.append(part)
    return parts


def _new_parts(source: ImageSource, cache_px: int, folder: Path, num_workers: int, first: int) -> Iterator[_Part]:
    """Write the pixels of all images from the first on; each file comes back when it has its name."""
    groups = BatchSampler(range(first, len(source)), _IMAGES_AT_ONCE, drop_last=False)
    loader = load_in_workers(_Shrunken(source, cache_px), num_workers, batch_sampler=groups)
    images: Iterator[_Image] = itertools.chain.from_iterable(loader)
    waiting = next(images, None)
    with tqdm(total=len(source), initial=first, desc=f"cache of {cache_px} px", unit=" images") as progress:
        while waiting is not None:
            part = _Part(first, [], [], [], {}, 0)
            with whole_file(folder / part.pixels_name) as temporary, temporary.open("wb") as file:
                while waiting is not None and (not part.bytes or part.bytes + waiting[0].size <= FILE_BYTES):
                    pixels, original_size, reason = waiting
                    if reason is not None:
                        part.broken[str(part.stop)] = reason
                    part.offsets.append(part.bytes)
                    part.sizes.append(pixels.shape[:2])
                    part.original_sizes.append(original_size)
                    part.bytes += file.write(pixels.tobytes())
                    progress.update()
                    waiting = next(images, None)
            first = part.stop
            yield part


def _write_index(folder: Path, settings: dict[str, Any], parts: list[_Part]) -> None:
    """Name all parts in one index, which makes the cache whole, and tidy up."""
    tables: dict[str, np.ndarray] = {
        "file": np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.offsets) for part in parts]),
        "offset": np.array([offset for part in parts for offset in part.offsets], np.int64),
        "size": np.array([size for part in parts for size in part.sizes], np.int32),
        "original_size": np.array([size for part in parts for size in part.original_sizes], np.int32),
    }
    with whole_file(folder / "index.safetensors") as temporary:
        save_file(tables, temporary)
    index = {
        "settings": settings,
        "files": {part.pixels_name: part.bytes for part in parts},
        "broken": {number: reason for part in parts for number, reason in part.broken.items()},
    }
    write_text(folder / "index.json", json.dumps(index, indent=1) + "\n")
    for left in (folder / "building.json", *folder.glob("part-*.json"), *folder.glob(".pixels-*.tmp")):
        left.unlink()  # the last ones are of builds that were killed


def _load_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        index = read_json(path)
        index["settings"], index["files"], index["broken"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no index of a cache ({error!r}). Delete the folder; it is built again.") from None
    return index


def _refuse_other_settings(folder: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    if differences := recipe_differences(found, asked):
        raise ValueError(
            f"cache {folder} is of other images or settings:\n  "
            + "\n  ".join(differences)
            + "\nDelete it if it is out of date, or give another cache_dir."
        )


class _Shrunken(Dataset):
    """The images of a source, made small."""

    def __init__(self, source: ImageSource, cache_px: int):
        self.source, self.cache_px = source, cache_px

    def __getitem__(self, index: int) -> _Image:
        try:
            original = self.source.pixels(index)
        except BrokenImage as error:
            return np.zeros((0, 0, 3), np.uint8), (0, 0), error.reason
        return shrink(original, self.cache_px), original.shape[:2], None


def main(arguments: Sequence[str] | None = None) -> None:
    """Build a cache ahead of a run."""
    parser = CommandParser(
        prog="python -m training.data.cache",
        description="Decode the images of a split once, for runs with --cache_px.",
    )
    add_flags(parser, DataArguments, only=("data", "split"))
    parser.add_argument(
        "--cache_px", type=number(int, 8, 100_000), default=288, help="the shorter side of an image, if it is longer"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the cache: the run's cache_dir")
    parser.add_argument(
        "--num_workers",
        "--workers",
        type=number(int, 0, 1000),
        default=available_cores(),
        help="processes that decode",
    )
    args = parser.parse_args(arguments)
    try:
        refuse_unwritable(args.output, folder=True)
        data = from_values(DataArguments, given(args, DataArguments), "the command line")
        source = open_images(data.data, data.split, "random")  # its regions are of no use here
        cached = load_cached(source, args.cache_px, args.output, args.num_workers)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    broken = f", {len(cached.broken)} of them broken" if cached.broken else ""
    print(f"{args.output} holds {len(cached)} images{broken}. Use it with")
    print(f"  --data {data.data} --split {data.split} --cache_px {args.cache_px} --cache_dir {args.output}")


if __name__ == "__main__":
    main()
