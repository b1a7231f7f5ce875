"""Images of one data set that are, nearly, in another: what must not be, between training and evaluation.

python -m dataset_scripts.overlap data/coco data/openimage-mini --output overlap.csv
python -m dataset_scripts.overlap data/coco                                            # between its splits

Two images are near when their perceptual hashes differ in few bits. The hash of 64 bits says which of the lowest
frequencies of the grey image are above their median; it outlasts another size, another JPEG quality and grey, and not
a crop, a mirror image or a turn. It looks at the picture alone, so it also finds what goes by another id.
"""

import argparse
import csv
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from modeling_decodepos.pictures import BrokenImage, decode_picture
from modeling_decodepos.settings import CommandParser

from .build.engines import Count, Unfinished, run_local
from .check import parquet_files, split_of

# 244 COCO photos stored anew (JPEG quality 30; half, 0.3 and 1.7 times the size; grey) are at most 4 bits from
# themselves; of 2 million pairs of different photos none is nearer than 10.
THRESHOLD = 4
MOST_THRESHOLD = 7  # four bands of 16 bits: one of them then differs in one bit at most
_SIDE = 32
_CANDIDATES = 1 << 22  # at a time, for bounded memory
_BITS = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]


def perceptual_hash(encoded: bytes) -> int:
    """64 bits that nearly the same pictures share but for a few."""
    grey = decode_picture(encoded, "to hash", at_least=(2 * _SIDE, 2 * _SIDE), grey=True)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    lowest = cv2.dct(small)[:8, :8].ravel()
    bits = lowest > np.median(lowest[1:])
    bits[0] = False  # the mean says how bright it is
    return int(np.packbits(bits).view(np.uint64)[0])


def near_pairs(first: Hashes, second: Hashes, threshold: int) -> tuple[Indices, Indices, Indices]:
    """Index pairs whose hashes differ in at most `threshold` bits, and in how many; sorted.

    Of two such hashes, cut into four bands, one band differs in a quarter of these bits at most. Candidates are looked
    up by band, and every one of them is compared in full.
    """
    if not 0 <= threshold <= MOST_THRESHOLD:
        raise ValueError(f"threshold is {threshold}, expected 0 to {MOST_THRESHOLD}.")
    flips = [0, *(1 << bit for bit in range(16))] if threshold >= 4 else [0]
    found = [np.zeros(0, np.int64)]
    for band in range(4):
        keys = _band(second, band)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for flip in flips:
            wanted = _band(first, band) ^ np.uint16(flip)
            begin, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            for i, j in _candidates(begin, end):
                j = order[j]
                close = _distance(first[i], second[j]) <= threshold
                found.append(i[close] * len(second) + j[close])
    pairs = np.unique(np.concatenate(found))
    i, j = pairs // max(len(second), 1), pairs % max(len(second), 1)
    return i, j, _distance(first[i], second[j]).astype(np.int64)


def _band(hashes: Hashes, band: int) -> NDArray[np.uint16]:
    return (hashes >> np.uint64(16 * band)).astype(np.uint16)


def _distance(first: Hashes, second: Hashes) -> NDArray[np.uint8]:
    return _BITS[(first ^ second).view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)


def _candidates(begin: Indices, end: Indices) -> Iterator[tuple[Indices, Indices]]:
    """All (i, k) with begin[i] <= k < end[i], so many at a time."""
    ends = np.cumsum(end - begin)
    for start in range(0, int(ends[-1]) if len(ends) else 0, _CANDIDATES):
        flat = np.arange(start, min(start + _CANDIDATES, ends[-1]))
        i = np.searchsorted(ends, flat, "right")
        yield i, end[i] - (ends[i] - flat)


@dataclass(frozen=True)
class HashedImages:
    """Hashes of all images of a data set that can be decoded; `contents` are hashes of their encoded bytes."""

    ids: list[str]
    splits: list[str]
    hashes: Hashes
    contents: Hashes
    broken: list[str]


def hash_folder(folder: Path, workers: int) -> HashedImages:
    """Hashes of the images of a data set folder, in the order of its files."""
    paths = parquet_files(folder) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder} holds no Parquet files. Build a data set with dataset_scripts.prepare first.")
    names = [path.relative_to(folder).as_posix() for path in paths]
    for path in paths:
        if missing := {"image", "image_id"} - set(pq.read_schema(path).names):
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}.")
    total = sum(pq.read_metadata(path).num_rows for path in paths)
    with tqdm(total=total, desc=folder.name, unit=" images", mininterval=0.5) as progress:
        made = dict(run_local(names, partial(_hash_file, folder=folder), workers, progress.update))
    parts = [made[name] for name in names]
    return HashedImages(
        ids=[image_id for part in parts for image_id in part.ids],
        splits=[split for part in parts for split in part.splits],
        hashes=np.concatenate([part.hashes for part in parts]),
        contents=np.concatenate([part.contents for part in parts]),
        broken=[image_id for part in parts for image_id in part.broken],
    )


def _hash_file(name: str, count: Count, folder: Path) -> HashedImages:
    ids, hashes, contents, broken = [], [], [], []
    for batch in pq.ParquetFile(folder / name).iter_batches(batch_size=100, columns=["image", "image_id"]):
        for row in batch.to_pylist():
            try:
                encoded = row["image"]["bytes"]
                hashes.append(perceptual_hash(encoded))
            except (BrokenImage, TypeError):  # row["image"] may be None
                broken.append(str(row["image_id"]))
                continue
            ids.append(str(row["image_id"]))
            contents.append(int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big"))
        count(batch.num_rows)
    split = split_of(Path(name))
    return HashedImages(ids, [split] * len(ids), np.array(hashes, np.uint64), np.array(contents, np.uint64), broken)


@dataclass(frozen=True)
class Match:
    """An image of the first data set and one of the second that shows the same; `bits` is how far they are apart."""

    first_split: str
    first_id: str
    second_split: str
    second_id: str
    kind: str
    bits: int


def find_overlap(first: HashedImages, second: HashedImages, threshold: int = THRESHOLD) -> list[Match]:
    """Matches between two data sets; given the same one twice, between its splits.

    Their `kind` is "exact", byte for byte, or "near".
    """
    matches = []
    pairs = near_pairs(first.hashes, second.hashes, threshold)
    for i, j, bits in zip(*(part.tolist() for part in pairs), strict=True):
        if first is second and (i >= j or first.splits[i] == second.splits[j]):
            continue
        kind = "exact" if first.contents[i] == second.contents[j] else "near"
        matches.append(Match(first.splits[i], first.ids[i], second.splits[j], second.ids[j], kind, bits))
    return matches


def _write(matches: Sequence[Match], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Match.__dataclass_fields__)
        writer.writerows([*vars(match).values()] for match in matches)


def _compare(arguments: argparse.Namespace) -> int:
    first = hash_folder(arguments.first, arguments.workers)
    second = first if arguments.second is None else hash_folder(arguments.second, arguments.workers)
    for folder, pictures in ((arguments.first, first), (arguments.second, second))[: 1 if second is first else 2]:
        if pictures.broken:
            named = ", ".join(pictures.broken[:3])
            print(f"{folder}: {len(pictures.broken)} images cannot be decoded: {named} …", file=sys.stderr)
    matches = find_overlap(first, second, arguments.threshold)
    if arguments.output is not None:
        _write(matches, arguments.output)
    images = len({(match.first_split, match.first_id) for match in matches})
    exact = sum(match.kind == "exact" for match in matches)
    where = "another of its splits" if second is first else str(arguments.second)
    print(
        f"{images:,} of {len(first.ids):,} images of {arguments.first} are in {where}: {len(matches):,} pairs, "
        f"{exact:,} of them byte for byte, the others within {arguments.threshold} of 64 bits"
    )
    if arguments.output is None:
        for match in matches[:10]:
            print(f"  {match.first_split} {match.first_id} = {match.second_split} {match.second_id} ({match.kind})")
        if len(matches) > 10:
            print(f"  … and {len(matches) - 10:,} more: --output FILE.csv has them all")
    return 1 if matches else 0


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m dataset_scripts.overlap",
        description="Find images of one data set that are in another, or in another split of the same.",
    )
    parser.add_argument("first", type=Path, metavar="DIR_A", help="folder of a data set")
    parser.add_argument("second", type=Path, metavar="DIR_B", nargs="?", help="absent: between the splits of DIR_A")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="all pairs")
    parser.add_argument("--threshold", type=int, default=THRESHOLD, help="bits of 64 in which they may differ")
    parser.add_argument(
        "--num_workers", "--workers", dest="workers", type=int, default=0, help="processes; 0: one per core"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 nothing is in both, 1 something is, 2 it cannot be done as asked, 75 run the same command again."""
    try:
        return _compare(build_parser().parse_args(arguments))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Unfinished as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL


if __name__ == "__main__":
    sys.exit(main())
