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
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from modeling_decodepos.commands.settings import CommandParser, number
from modeling_decodepos.data.pictures import BrokenImage, decode_picture

from .build.engines import Count, add_worker_flag, exit_code, run_local
from .check import parquet_files, split_of

# 244 COCO photos stored anew (JPEG quality 30; half, 0.3 and 1.7 times the size; grey) are at most 4 bits from
# themselves; of 2 million pairs of different photos none is nearer than 10.
THRESHOLD = 4
MOST_THRESHOLD = 7  # four bands of 16 bits: one of them then differs in one bit at most
_SIDE = 32
_CANDIDATES = 1 << 22  # at a time, for bounded memory

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]


def perceptual_hash(encoded: bytes | None) -> int:
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
        wanted, keys = ((hashes >> np.uint64(16 * band)).astype(np.uint16) for hashes in (first, second))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for flip in map(np.uint16, flips):
            begin, end = (np.searchsorted(keys, wanted ^ flip, side) for side in ("left", "right"))
            for i, j in _candidates(begin, end):
                j = order[j]
                close = np.bitwise_count(first[i] ^ second[j]) <= threshold
                found.append(i[close] * len(second) + j[close])
    pairs = np.unique(np.concatenate(found))
    i, j = np.divmod(pairs, max(len(second), 1))
    return i, j, np.bitwise_count(first[i] ^ second[j]).astype(np.int64)


def _candidates(begin: Indices, end: Indices) -> Iterator[tuple[Indices, Indices]]:
    """All (i, k) with begin[i] <= k < end[i], so many at a time."""
    ends = np.cumsum(end - begin)
    for start in range(0, int(ends[-1]) if len(ends) else 0, _CANDIDATES):
        flat = np.arange(start, min(start + _CANDIDATES, ends[-1]))
        i = np.searchsorted(ends, flat, "right")
        yield i, end[i] - (ends[i] - flat)


class HashedImage(NamedTuple):
    """An image of a data set: its perceptual hash, None if it cannot be decoded, and a hash of its encoded bytes."""

    split: str
    id: str
    hash: int | None
    content: bytes


def hash_folder(folder: Path, workers: int) -> list[HashedImage]:
    """Hashes of the images of a data set folder, in the order of its files."""
    paths = parquet_files(folder) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder} holds no Parquet files. Build a data set with dataset_scripts.prepare first.")
    for path in paths:
        if missing := {"image", "image_id"} - set(pq.read_schema(path).names):
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}.")
    total = sum(pq.read_metadata(path).num_rows for path in paths)
    with tqdm(total=total, desc=folder.name, unit=" images", mininterval=0.5) as progress:
        made = dict(run_local(paths, _hash_file, workers, progress.update))
    return [image for path in paths for image in made[path]]


def _hash_file(path: Path, count: Count) -> list[HashedImage]:
    images = []
    for batch in pq.ParquetFile(path).iter_batches(batch_size=100, columns=["image", "image_id"]):
        for row in batch.to_pylist():
            encoded = row["image"].get("bytes") if isinstance(row["image"], dict) else None
            try:
                perceptual = perceptual_hash(encoded)
            except BrokenImage:
                perceptual = None
            content = hashlib.blake2b(encoded or b"", digest_size=8).digest()
            images.append(HashedImage(split_of(path), str(row["image_id"]), perceptual, content))
        count(batch.num_rows)
    return images


class Match(NamedTuple):
    """An image of the first data set and one of the second that shows the same; `bits` is how far they are apart."""

    first_split: str
    first_id: str
    second_split: str
    second_id: str
    kind: str
    bits: int


def find_overlap(
    first: Sequence[HashedImage], second: Sequence[HashedImage], threshold: int = THRESHOLD
) -> list[Match]:
    """Matches between two data sets; given the same one twice, between its splits.

    Their `kind` is "exact", byte for byte, or "near".
    """
    ours, theirs = ([image for image in images if image.hash is not None] for images in (first, second))
    left, right = (np.array([image.hash for image in images], np.uint64) for images in (ours, theirs))
    matches = []
    for i, j, bits in zip(*(part.tolist() for part in near_pairs(left, right, threshold)), strict=True):
        one, other = ours[i], theirs[j]
        if first is second and (i >= j or one.split == other.split):
            continue
        kind = "exact" if one.content == other.content else "near"
        matches.append(Match(one.split, one.id, other.split, other.id, kind, bits))
    return matches


def _compare(arguments: argparse.Namespace) -> int:
    first = hash_folder(arguments.first, arguments.workers)
    second = first if arguments.second is None else hash_folder(arguments.second, arguments.workers)
    for folder, images in {arguments.first: first, arguments.second or arguments.first: second}.items():
        if broken := [image.id for image in images if image.hash is None]:
            print(f"{folder}: {len(broken)} images cannot be decoded: {', '.join(broken[:3])} …", file=sys.stderr)
    matches = find_overlap(first, second, arguments.threshold)
    found = len({match[:2] for match in matches})
    whole = sum(image.hash is not None for image in first)
    exact = sum(match.kind == "exact" for match in matches)
    where = "another of its splits" if second is first else str(arguments.second)
    print(
        f"{found:,} of {whole:,} images of {arguments.first} are in {where}: {len(matches):,} pairs, "
        f"{exact:,} of them byte for byte, the others within {arguments.threshold} of 64 bits"
    )
    if arguments.output is not None:
        with arguments.output.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([Match._fields, *matches])
        return 1 if matches else 0
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
    parser.add_argument(
        "--threshold", type=number(int, 0, 64), default=THRESHOLD, help="bits of 64 in which they may differ"
    )
    add_worker_flag(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 nothing is in both, 1 something is, 2 it cannot be done as asked, 75 run the same command again."""
    return exit_code(lambda: _compare(build_parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
