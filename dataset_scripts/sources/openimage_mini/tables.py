"""The CSV files of Open Images, read column by column name into compact arrays.

The box table has 2 GB and 14.6 million rows, so it is streamed: an image id, sixteen hexadecimal digits, becomes a
64-bit number and a class its place in the class list, 26 bytes per box. Rows that cannot be used are counted:

    group of, depiction, inside   the flag is 1; -1 means unknown and is kept
    not drawn by hand             `Source` is not xclick, only if asked for
    unknown class                 `LabelName` is not in the class list
    outside                       a corner lies outside [0, 1]: clipped and kept
    degenerate                    no area inside the image, or a corner that is no number
    duplicate                     image, class and box are those of another row: one of them is kept
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

BLOCK_BYTES = 16 << 20
STRANGE_SHARE = 0.1  # of rows outside or without area; Open Images has far fewer, a table of pixels nearly all

FLAGS = {"IsGroupOf": "group of", "IsDepiction": "depiction", "IsInside": "inside"}
CORNERS = ("XMin", "YMin", "XMax", "YMax")
ATTRIBUTION = {
    "license": "License",
    "author": "Author",
    "original_url": "OriginalURL",
    "landing_url": "OriginalLandingURL",
}

Ids = NDArray[np.uint64]


@dataclass(frozen=True)
class Boxes:
    """Boxes of one split, one element or row each.

    Attributes:
        image: (N,) uint64, the image id as a number.
        category: (N,) int16, place in the class list.
        corners: (N, 4) float32, x1, y1, x2, y2 in [0, 1].
    """

    image: Ids
    category: NDArray[np.int16]
    corners: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> "Boxes":
        return Boxes(self.image[which], self.category[which], self.corners[which])


# --------------------------------------------------------------------------------------------------------------- ids


def id_text(number: int | np.uint64) -> str:
    """The image id of a number."""
    return f"{int(number):016x}"


def _hexadecimal() -> NDArray[np.uint8]:
    values = np.full(256, 255, np.uint8)
    for value, digit in enumerate(b"0123456789abcdef"):
        values[digit] = value
    return values


_HEXADECIMAL = _hexadecimal()


def id_numbers(ids: pa.Array, path: Path) -> Ids:
    """Image ids as numbers. An id is the name of a file, so nothing but sixteen hexadecimal digits is let through."""
    if len(ids) == 0:
        return np.zeros(0, np.uint64)
    if pc.all(pc.equal(pc.binary_length(ids), 16)).as_py():
        start = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset]
        text = np.frombuffer(ids.buffers()[2], np.uint8)[start : start + 16 * len(ids)]
        digits = _HEXADECIMAL[text].reshape(-1, 16)
        if digits.max() < 16:
            return (digits[:, ::2] << 4 | digits[:, 1::2]).view(">u8")[:, 0].astype(np.uint64)
    wrong = next(value for value in ids.to_pylist() if not is_image_id(value))
    raise ValueError(
        f"{path}: ImageID {wrong!r} is no Open Images id, expected 16 digits of 0-9a-f. "
        "The file is damaged or of another data set; nothing was fetched."
    )


def is_image_id(text: str | None) -> bool:
    """Whether a text is an id of Open Images."""
    return text is not None and len(text) == 16 and set(text) <= set("0123456789abcdef")


# ------------------------------------------------------------------------------------------------------------ tables


def stream_csv(
    path: Path, types: Mapping[str, pa.DataType], optional: Sequence[str] = (), multiline: bool = False
) -> Iterator[pa.RecordBatch]:
    """The named columns of a CSV file in blocks; order and further columns do not matter.

    Args:
        path: the file; its first line names the columns.
        types: of the columns wanted.
        optional: those of them that may be absent; the blocks then lack them.
        multiline: whether a quoted value may run over several lines.
    """
    header = _header(path)
    missing = [name for name in types if name not in header and name not in optional]
    twice = [name for name in types if header.count(name) > 1]
    if missing or twice:
        what = f"no column {', '.join(missing)}" if missing else f"column {', '.join(twice)} twice"
        wanted = ", ".join(name for name in types if name not in optional)
        raise ValueError(
            f"{path}: {what}. Found {', '.join(header) or 'an empty file'}; expected at least {wanted}, in any order."
        )
    present = {name: kind for name, kind in types.items() if name in header}
    try:
        reader = pa_csv.open_csv(
            path,
            pa_csv.ReadOptions(block_size=BLOCK_BYTES),
            pa_csv.ParseOptions(newlines_in_values=multiline),
            pa_csv.ConvertOptions(column_types=present, include_columns=list(present), null_values=["", "nan", "NaN"]),
        )
        yield from reader
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path}: a row cannot be read ({error}). If the file was cut off, delete it: it will be fetched again."
        ) from error


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def read_boxes(path: Path, class_index: Mapping[str, int], hand_drawn: bool = False) -> tuple[Boxes, dict[str, int]]:
    """The usable boxes of a table, in no particular order, and how many rows there were and why some are left out.

    Args:
        path: a `…-annotations-bbox.csv`.
        class_index: place of every class by its `LabelName`.
        hand_drawn: keep only boxes whose `Source` is xclick.
    """
    types: dict[str, pa.DataType] = {"ImageID": pa.string(), "LabelName": pa.dictionary(pa.int32(), pa.string())}
    types |= dict.fromkeys(CORNERS, pa.float64()) | dict.fromkeys(FLAGS, pa.float32())
    if hand_drawn:
        types["Source"] = pa.string()
    counts: Counter[str] = Counter()
    images, categories, corners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int16)], [np.zeros((0, 4), np.float32)]
    for batch in stream_csv(path, types):
        block = _block_boxes(batch, path, class_index, counts)
        images.append(block.image)
        categories.append(block.category)
        corners.append(block.corners)
    strange = counts["outside"] + counts["degenerate"]
    if strange > STRANGE_SHARE * max(counts["rows"], 1):
        raise ValueError(
            f"{path}: {strange:,} of {counts['rows']:,} boxes lie outside [0, 1] or have no area. Coordinates are "
            "expected as shares of the image's width and height, and XMin < XMax, YMin < YMax, each under its name."
        )
    boxes = Boxes(_joined(images), _joined(categories), _joined(corners))
    repeated = repeats(boxes)
    counts["duplicate"] = int(repeated.sum())
    counts["kept"] = len(boxes) - counts["duplicate"]
    kept = boxes[~repeated] if counts["duplicate"] else boxes
    names = (
        "rows",
        *FLAGS.values(),
        "not drawn by hand",
        "unknown class",
        "outside",
        "degenerate",
        "duplicate",
        "kept",
    )
    return kept, {name: counts[name] for name in names}


def _joined(blocks: list[NDArray[Any]]) -> NDArray[Any]:
    """One array; the list is emptied, so that what is copied is not held twice."""
    whole = np.concatenate(blocks)
    blocks.clear()
    return whole


def _block_boxes(batch: pa.RecordBatch, path: Path, class_index: Mapping[str, int], counts: Counter[str]) -> Boxes:
    """The usable boxes of one block; the first reason against a row is the one that is counted."""
    counts["rows"] += len(batch)
    usable = np.ones(len(batch), bool)

    def leave_out(reason: str, which: NDArray[np.bool_]) -> None:
        nonlocal usable
        counts[reason] += int((usable & which).sum())
        usable = usable & ~which

    image = id_numbers(batch["ImageID"], path)
    for column, reason in FLAGS.items():
        leave_out(reason, batch[column].to_numpy(zero_copy_only=False) == 1)
    if "Source" in batch.schema.names:
        leave_out("not drawn by hand", pc.not_equal(batch["Source"], "xclick").to_numpy(zero_copy_only=False) != 0)
    labels = batch["LabelName"]
    places = np.array([class_index.get(name, -1) for name in labels.dictionary.to_pylist()] + [-1], np.int16)
    category = places[pc.fill_null(labels.indices, -1).to_numpy()]
    leave_out("unknown class", category < 0)
    corners = np.stack([batch[name].to_numpy(zero_copy_only=False) for name in CORNERS], axis=1)
    finite = np.isfinite(corners).all(axis=1)
    clipped = np.clip(corners, 0, 1).astype(np.float32)
    leave_out("degenerate", ~(finite & (clipped[:, 2:] > clipped[:, :2]).all(axis=1)))
    counts["outside"] += int((usable & ((corners < 0) | (corners > 1)).any(axis=1)).sum())
    return Boxes(image, category, clipped)[usable]


def repeats(boxes: Boxes) -> NDArray[np.bool_]:
    """(N,) True for boxes equal to another that is kept. Which of equals is kept cannot be told from the result."""
    # Sorting by a 64-bit digest is fast; the few with equal digests, be it by chance, are then compared as they are.
    digest = _digest(boxes)
    order = np.argsort(digest)
    same = digest[order[1:]] == digest[order[:-1]]
    suspects = order[np.r_[same, False] | np.r_[False, same]]
    repeated = np.zeros(len(boxes), bool)
    if len(suspects):
        ordered = suspects[canonical_order(boxes[suspects])]
        a, b = boxes[ordered[1:]], boxes[ordered[:-1]]
        equal = (a.image == b.image) & (a.category == b.category) & (a.corners == b.corners).all(axis=1)
        repeated[ordered[1:][equal]] = True
    return repeated


def canonical_order(boxes: Boxes) -> NDArray[np.intp]:
    """Order by image, class and corners: the same for the same boxes, however they came."""
    x1, y1, x2, y2 = boxes.corners.T
    return np.lexsort((y2, x2, y1, x1, boxes.category, boxes.image))


def _digest(boxes: Boxes) -> NDArray[np.uint64]:
    digest = boxes.image ^ boxes.category.astype(np.uint64)
    for corner in boxes.corners.T:
        digest = _mixed(digest ^ np.ascontiguousarray(corner).view(np.uint32).astype(np.uint64))
    return digest


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the input moves half of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ------------------------------------------------------------------------------------------------------ small tables


def read_classes(path: Path) -> dict[str, str]:
    """Readable name by `LabelName`; version 5 of the file has no header, versions 6 and 7 have one.

    Names are unique: classes that share one get their `LabelName` behind it.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    header = rows[0] if rows else []
    if {"LabelName", "DisplayName"} <= set(header):
        first, second = header.index("LabelName"), header.index("DisplayName")
        rows = rows[1:]
    else:
        first, second = 0, 1
    classes: dict[str, str] = {}
    for row in rows:
        if len(row) <= max(first, second) or not row[first].startswith("/"):
            raise ValueError(
                f"{path}: found the row {','.join(row)!r}, expected an id such as /m/01g317 and a name, "
                "or columns LabelName and DisplayName."
            )
        if classes.setdefault(row[first], row[second]) != row[second]:
            raise ValueError(
                f"{path}: {row[first]} is {classes[row[first]]!r} and {row[second]!r}, expected one name."
            )
    if not classes:
        raise ValueError(f"{path} is empty, expected one class per line.")
    shared = Counter(classes.values())
    return {label: name if shared[name] == 1 else f"{name} ({label})" for label, name in classes.items()}


def read_labels(path: Path) -> set[str]:
    """The `LabelName`s of a file with one per line."""
    labels = set(path.read_text(encoding="utf-8-sig").split())
    if wrong := sorted(label for label in labels if not label.startswith("/")):
        raise ValueError(f"{path}: found {wrong[0]!r}, expected one id such as /m/01g317 per line.")
    return labels


def read_parents(path: Path) -> set[str]:
    """The `LabelName`s that have a subcategory anywhere in a hierarchy file; parts ("wheel of a car") do not count."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}), expected nested LabelName / Subcategory.") from error
    if not isinstance(tree, dict) or "LabelName" not in tree:
        raise ValueError(f"{path}: no LabelName at the top, expected nested LabelName / Subcategory.")
    parents, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        if node.get("Subcategory"):
            parents.add(node["LabelName"])
        waiting += [*node.get("Subcategory", ()), *node.get("Part", ())]
    return parents


def _places(ids: Ids, wanted: Ids) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which of `ids` are wanted, and the place of each in the sorted `wanted`."""
    place = np.minimum(np.searchsorted(wanted, ids), max(len(wanted) - 1, 0))
    found = np.flatnonzero(wanted[place] == ids) if len(wanted) else np.zeros(0, np.intp)
    return found, place[found]


def read_image_list(path: Path, ids: Ids) -> tuple[pa.Table, dict[str, int]]:
    """Attribution of the images in `ids`, one row each in that order, and counts; nulls where an image is not listed.

    An image that is listed twice gets the row that comes first in alphabetical order.
    """
    extra = {"rotation": "Rotation", "original_size": "OriginalSize", "original_md5": "OriginalMD5"}
    columns = {**ATTRIBUTION, **extra}
    types = {"ImageID": pa.string(), **dict.fromkeys(columns.values(), pa.string())}
    order = np.argsort(ids)
    wanted = ids[order]
    found: dict[int, tuple[str, ...]] = {}
    twice = 0
    for batch in stream_csv(path, types, optional=tuple(extra.values()), multiline=True):
        rows, places = _places(id_numbers(batch["ImageID"], path), wanted)
        listed = batch.take(pa.array(rows)).to_pylist()
        for place, row in zip(order[places].tolist(), listed, strict=True):
            values = tuple(row.get(name) or "" for name in columns.values())
            twice += place in found
            found[place] = min(found.get(place, values), values)
    kinds = {"rotation": pa.int16(), "original_size": pa.int64()}
    table = {}
    for column, (name, title) in enumerate(columns.items()):
        texts = [found[place][column] if place in found else "" for place in range(len(ids))]
        if name in extra:
            texts = ["" if text.lower() == "nan" else text for text in texts]
        values = pa.array([text or None for text in texts], pa.string())
        try:
            table[name] = values.cast(pa.float64()).cast(kinds[name]) if name in kinds else values
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: {title} is not a whole number ({error}).") from error
    return pa.table(table), {"listed": len(found), "not listed": len(ids) - len(found), "listed twice": twice}


MASK_NAME = re.compile(r"([0-9a-f]{16})_[0-9a-z]+_[0-9a-f]+\.png")


def read_masks(path: Path, ids: Ids, class_index: Mapping[str, int]) -> tuple[list[list[tuple[str, int]]], int]:
    """Names and classes of the masks of every image in `ids`, largest box first; and how many are of unknown class.

    A mask that is listed twice is taken once. A name is a file to be opened, so only the pattern of Open Images is
    let through.
    """
    numbers = ("BoxXMin", "BoxYMin", "BoxXMax", "BoxYMax")
    types: dict[str, pa.DataType] = {"ImageID": pa.string(), "MaskPath": pa.string(), "LabelName": pa.string()}
    types |= dict.fromkeys(numbers, pa.float64())
    order = np.argsort(ids)
    wanted = ids[order]
    found: list[dict[str, tuple[float, str, int]]] = [{} for _ in range(len(ids))]
    unknown = 0
    for batch in stream_csv(path, types):
        rows, places = _places(id_numbers(batch["ImageID"], path), wanted)
        for place, row in zip(order[places].tolist(), batch.take(pa.array(rows)).to_pylist(), strict=True):
            name = row["MaskPath"]
            match = MASK_NAME.fullmatch(name)
            if match is None or match[1] != row["ImageID"]:
                raise ValueError(
                    f"{path}: MaskPath {name!r} of image {row['ImageID']}, expected a name such as "
                    f"{row['ImageID']}_m01g317_0a1b2c3d.png. Nothing was opened."
                )
            if row["LabelName"] not in class_index:
                unknown += 1
                continue
            x1, y1, x2, y2 = (row[number] or 0.0 for number in numbers)
            entry = (-abs((x2 - x1) * (y2 - y1)), name, class_index[row["LabelName"]])
            found[place][name] = min(found[place].get(name, entry), entry)
    return [[(name, category) for _, name, category in sorted(masks.values())] for masks in found], unknown
