"""COCO as it is published in Parquet: one row per image with `image`, `objects` and, mostly, ids and sizes.

Published sets differ: `objects` is a struct of lists or a list of structs, categories are numbers or names, and boxes
are x, y, width, height or the two corners. The last cannot be read from the column names; the boxes themselves tell.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .boxes import as_box, box_faults, count_faults
from .files import file_sha256
from .parquet import Row, Source
from .pictures import picture_row, read_picture, turn_boxes

VERSION = 1
BATCH_ROWS = 64
CATEGORY_FIELDS = ("category", "categories", "label", "labels", "category_id")
BOX_FORMATS = ("auto", "xywh", "xyxy")
_SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLIT_NAMES |= {"dev": "validation", "test": "test"}
_ATTRIBUTION = ("license", "author", "original_url", "landing_url")

DESCRIPTION = """
Images with boxes, from {origin}. Boxes there are {box_format}; here they are x, y, width, height. There is no
`segmentation`.

The licences of pictures and annotations are those of the source.

{dropped}
"""


@dataclass(frozen=True)
class ParquetSplit:
    """What a row of one split is made from.

    Attributes:
        files: Parquet files in the order of the rows.
        sha256: of all files of the data set, to tell them from others by the same names.
        class_names: of the categories, in the order of their numbers in the result.
        box_format: "xywh" or "xyxy".
    """

    files: tuple[Path, ...]
    sha256: str
    class_names: tuple[str, ...]
    box_format: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for a Parquet source."""
    parser.add_argument("--box-format", choices=BOX_FORMATS, default="auto", help="of a Parquet source")
    parser.add_argument(
        "--class-names", type=Path, help="text file, a name per line, for a Parquet source that has numbers only"
    )


def open_source(arguments: argparse.Namespace) -> Source:
    """What `prepare coco` builds from Parquet."""
    folder, origin = Path(arguments.source), "a folder of Parquet files"
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(arguments.source, repo_type="dataset", allow_patterns="*.parquet"))
        origin = f"`{arguments.source}` on the Hub at commit {folder.name}"
    names = None
    if arguments.class_names is not None:
        names = [line.strip() for line in arguments.class_names.read_text(encoding="utf-8").splitlines()]
        names = [name for name in names if name]
    return parquet_source(folder, origin, names, arguments.box_format)


def parquet_source(
    folder: Path, origin: str, class_names: Sequence[str] | None = None, box_format: str = "auto"
) -> Source:
    """The data set in a folder of Parquet files.

    Args:
        folder: holds the files, at any depth.
        origin: where they come from, for the card.
        class_names: of the category numbers; None takes those in the files: of their features, or texts as categories.
        box_format: "xywh", "xyxy", or "auto" to find out.
    """
    files = _split_files(folder)
    every_file = [file for of_split in files.values() for file in of_split]
    scan = _scan(every_file)
    names = tuple(class_names or scan.class_names or sorted(scan.texts))
    if not names:
        raise ValueError(
            f"{every_file[0]} numbers its categories (up to {scan.largest_category}) and does not name them. "
            "Give their names: --class-names FILE, one per line, the first for category 0."
        )
    if scan.largest_category >= len(names):
        raise ValueError(f"Category {scan.largest_category} occurs, but only {len(names)} class names are given.")
    if unnamed := sorted(scan.texts - set(names)):
        raise ValueError(f"Category {unnamed[0]!r} occurs, but is not among the {len(names)} class names.")
    found_format = choose_box_format(scan.boxes, scan.sizes) if box_format == "auto" else box_format
    faults = box_faults(to_xywh(scan.boxes, found_format), *scan.sizes.T)
    dropped = count_faults(faults)
    listed = json.dumps([(file.relative_to(folder).as_posix(), file_sha256(file)) for file in every_file])
    files_sha256 = hashlib.sha256(listed.encode()).hexdigest()
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    return Source(
        recipe={
            "source": "coco-parquet",
            "coco_parquet_version": VERSION,
            "box_format": found_format,
            "class_names_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
            "files_sha256": files_sha256,
            "dropped": dropped,
        },
        splits={split: sum(pq.read_metadata(file).num_rows for file in files[split]) for split in files},
        class_names=names,
        make_row=partial(
            parquet_row,
            splits={split: ParquetSplit(tuple(files[split]), files_sha256, names, found_format) for split in files},
        ),
        title="Images with boxes",
        license="other",
        description=DESCRIPTION.format(
            origin=origin,
            box_format={"xywh": "x, y, width, height", "xyxy": "x1, y1, x2, y2"}[found_format],
            dropped=f"Annotations left out: {left_out}." if dropped else "No annotation was left out.",
        ),
        proposals="boxes",
    )


def parquet_row(split: str, number: int, splits: Mapping[str, ParquetSplit]) -> Row:
    """Row `number` of a split."""
    place = splits[split]
    found = _rows(place.files, place.sha256)[number]
    image_id = str(found["image_id"]) if found.get("image_id") is not None else f"{split}-{number:08d}"
    image = found["image"]
    if not isinstance(image, dict) or not image.get("bytes"):
        raise ValueError(f"image {image_id} holds no bytes; a data set of paths cannot be moved. Embed the pictures.")
    picture = read_picture(image["bytes"], image.get("path") or image_id)
    size = (found.get("width") or picture.upright[0], found.get("height") or picture.upright[1])
    turn = picture.turn_to_fit(size)
    objects = _as_lists(found["objects"])
    boxes = to_xywh(_boxes(objects), place.box_format)
    good = box_faults(boxes, *size) == ""
    count = len(boxes)
    areas, crowds = objects.get("area") or [None] * count, objects.get("iscrowd") or [False] * count
    categories = [_number(value, place.class_names) for value in _categories(objects)]
    kept = np.flatnonzero(good)
    turned = turn_boxes(boxes, turn, *size)
    return picture_row(
        picture,
        image_id,
        {
            "bbox": turned[kept].tolist(),
            "category": [categories[k] for k in kept],
            "area": [float(boxes[k, 2] * boxes[k, 3] if areas[k] is None else areas[k]) for k in kept],
            "iscrowd": [bool(crowds[k]) for k in kept],
        },
        **{name: found[name] for name in _ATTRIBUTION if isinstance(found.get(name), str)},
    )


# --------------------------------------------------------------------------------------------------------------- boxes


def to_xywh(boxes: NDArray[np.float64], box_format: str) -> NDArray[np.float64]:
    """Boxes (N, 4) as x, y, width, height."""
    return boxes if box_format == "xywh" else np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def choose_box_format(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> str:
    """Whether boxes are xywh or xyxy: as the wrong one, many of them are impossible.

    Args:
        boxes: (N, 4) of the data set.
        sizes: (N, 2) width and height of the image of each; infinite where it is not known.
    """
    finite = np.isfinite(boxes).all(axis=1)
    boxes, sizes = boxes[finite], sizes[finite]
    if not len(boxes):
        return "xywh"
    if (boxes >= 0).all() and (boxes <= 1).all():
        raise ValueError("All boxes lie in [0, 1]: they are fractions of the image, expected pixels.")
    beyond = np.maximum(1.0, 0.01 * sizes)  # px: rounding, and annotations that reach over the border
    as_corners = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1) | (boxes[:, 2:] > sizes + beyond).any(axis=1)
    as_sides = (boxes[:, :2] + boxes[:, 2:] > sizes + beyond).any(axis=1)
    impossible = {"xywh": float(as_sides.mean()), "xyxy": float(as_corners.mean())}
    likely, other = sorted(impossible, key=lambda name: impossible[name])
    if impossible[likely] > 0.02 or impossible[other] < 0.05:
        raise ValueError(
            f"Boxes may be xywh ({impossible['xywh']:.1%} of them impossible) or xyxy ({impossible['xyxy']:.1%}). "
            "Look at one of them and say --box-format xywh or xyxy."
        )
    return likely


def _as_lists(objects: Any) -> dict[str, list[Any]]:
    """`objects` of one row as a dict of lists, from that or a list of dicts."""
    if not isinstance(objects, list):
        return dict(objects or {})
    return {key: [item[key] for item in objects] for key in (objects[0] if objects else {})}


def _boxes(objects: Mapping[str, list[Any]]) -> NDArray[np.float64]:
    return np.array([as_box(box) for box in objects.get("bbox") or []], np.float64).reshape(-1, 4)


def _categories(objects: Mapping[str, list[Any]]) -> list[Any]:
    return next((objects[field] for field in CATEGORY_FIELDS if objects.get(field) is not None), [])


def _number(category: Any, names: Sequence[str]) -> int:
    return names.index(category) if isinstance(category, str) else int(category)


# --------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class _Scan:
    """What the columns other than the pictures say.

    Attributes:
        boxes: (N, 4) as they are there.
        sizes: (N, 2) width and height of the image of each box, infinite where they are not known.
        class_names: in the files' features, if they have such.
        texts: categories that are texts.
        largest_category: of those that are numbers; -1 if there are none.
    """

    boxes: NDArray[np.float64]
    sizes: NDArray[np.float64]
    class_names: list[str] | None
    texts: set[str]
    largest_category: int


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Parquet files by split, as their names or those of their folders begin; a name of no split is "train"."""
    splits: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for path in sorted(folder.rglob("*.parquet")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        words = [re.split(r"[^a-zA-Z]", part)[0].lower() for part in reversed(parts)]
        splits[next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), "train")].append(path)
    return {split: files for split, files in splits.items() if files}


def _scan(files: Sequence[Path]) -> _Scan:
    boxes, sizes = [], []
    largest, names = -1, None
    texts: set[str] = set()
    for path in files:
        schema = pq.read_schema(path)
        if missing := [name for name in ("image", "objects") if name not in schema.names]:
            raise ValueError(
                f"{path} has the columns {', '.join(schema.names)}; {' and '.join(missing)} is missing, "
                "expected those of a COCO-type data set: image, objects {bbox, category}."
            )
        names = names or _feature_names(schema)
        columns = [name for name in ("objects", "width", "height") if name in schema.names]
        for row in _each_row(path, columns):
            objects = _as_lists(row["objects"])
            found, categories = _boxes(objects), _categories(objects)
            if len(found) != len(categories):
                raise ValueError(f"{path}: a row has {len(found)} boxes and {len(categories)} categories.")
            boxes.append(found)
            sizes.append(np.tile([row.get("width") or np.inf, row.get("height") or np.inf], (len(found), 1)))
            for category in categories:
                if isinstance(category, str):
                    texts.add(category)
                elif isinstance(category, int) and category >= 0:
                    largest = max(largest, category)
                else:
                    raise ValueError(f"{path}: category {category!r}, expected a number from 0 or a name.")
    return _Scan(np.concatenate(boxes), np.concatenate(sizes).astype(np.float64), names, texts, largest)


def _each_row(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000, columns=columns):
            yield from batch.to_pylist()


def _feature_names(schema: pa.Schema) -> list[str] | None:
    """Class names from the features that `datasets` writes into a file."""
    from datasets import ClassLabel, Features

    def search(feature: Any) -> list[str] | None:
        if isinstance(feature, ClassLabel):
            return list(feature.names)
        inner = list(feature.values()) if isinstance(feature, dict) else [getattr(feature, "feature", None)]
        return next((names for part in inner if part is not None and (names := search(part))), None)

    return search(Features.from_arrow_schema(schema)["objects"])


class _Rows:
    """Rows by number, of files that hold many. Rows asked for in rising order are read once, a batch at a time."""

    def __init__(self, files: Sequence[Path]):
        self.files = files
        self.starts = np.cumsum([0, *(pq.read_metadata(file).num_rows for file in files)])
        self._file, self._first = -1, 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None

    def __getitem__(self, number: int) -> dict[str, Any]:
        file = int(np.searchsorted(self.starts, number, side="right")) - 1
        wanted = number - int(self.starts[file])
        if file != self._file or wanted < self._first:
            self._open(file, wanted)
        while self._batch is None or wanted >= self._first + len(self._batch):
            self._first += 0 if self._batch is None else len(self._batch)
            self._batch = next(self._batches)
        return self._batch.slice(wanted - self._first, 1).to_pylist()[0]

    def _open(self, file: int, wanted: int) -> None:
        """Begins at the row group that holds the row."""
        opened = pq.ParquetFile(self.files[file])
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        group = int(np.searchsorted(starts, wanted, side="right")) - 1
        self._file, self._first, self._batch = file, int(starts[group]), None
        self._batches = opened.iter_batches(batch_size=BATCH_ROWS, row_groups=range(group, len(sizes)))


@lru_cache(maxsize=1)
def _rows(files: tuple[Path, ...], sha256: str) -> _Rows:
    return _Rows(files)
