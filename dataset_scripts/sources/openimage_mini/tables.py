"""The CSV files of Open Images, read column by column name.

The box table has 2 GB and 14.6 million rows, so it is streamed into 26 bytes per box: an image id, sixteen hexadecimal
digits, becomes a 64-bit number and a class its place in the class list. Sorting takes four times as much for a moment,
and 2 GB are enough for all of it. Rows that cannot be used are counted:

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

BLOCK_BYTES = 16 << 20
STRANGE_SHARE = 0.1  # of rows outside or without area; Open Images has far fewer, a table of pixels nearly all

FLAGS = {"IsGroupOf": "group of", "IsDepiction": "depiction", "IsInside": "inside"}
CORNERS = ("XMin", "YMin", "XMax", "YMax")
IMAGE_LIST = {
    "license": "License",
    "author": "Author",
    "original_url": "OriginalURL",
    "landing_url": "OriginalLandingURL",
    "rotation": "Rotation",
    "original_size": "OriginalSize",
    "original_md5": "OriginalMD5",
}
OPTIONAL = ("Rotation", "OriginalSize", "OriginalMD5")  # not in every version of the list; "nan" where not known
NUMBERS = {"rotation": pa.int16(), "original_size": pa.int64()}

Ids = NDArray[np.uint64]

# A box: the image id as a number, the place of its class in the class list, and x1, y1, x2, y2 in [0, 1].
BOX = np.dtype([("image", np.uint64), ("category", np.int16), ("corners", np.float32, 4)])
Boxes = NDArray[np.void]


# --------------------------------------------------------------------------------------------------------------- ids

_ID = "[0-9a-f]{16}"
MASK_NAME = re.compile(rf"({_ID})_[0-9a-z]+_[0-9a-f]+\.png")


def id_text(number: int | np.uint64) -> str:
    """The image id of a number."""
    return f"{int(number):016x}"


def is_image_id(text: str) -> bool:
    """Whether a text is an id of Open Images."""
    return re.fullmatch(_ID, text) is not None


def check_image_ids(ids: pa.Array | pa.ChunkedArray, where: str) -> None:
    """An id is the name of a file, so nothing but sixteen hexadecimal digits is let through."""
    wrong = ids.filter(pc.invert(pc.fill_null(pc.match_substring_regex(ids, f"^{_ID}$"), False)))
    if len(wrong):
        raise ValueError(
            f"{where}: {wrong[0].as_py()!r} is no Open Images id, expected 16 digits of 0-9a-f. "
            "The file is damaged or of another data set; nothing was fetched."
        )


def id_numbers(ids: pa.Array, path: Path) -> Ids:
    """Image ids as numbers."""
    encoded = ids.dictionary_encode()  # the rows of an image stand together, so there are few different ones
    check_image_ids(encoded.dictionary, f"{path}, ImageID")
    numbers = np.frombuffer(bytes.fromhex("".join(encoded.dictionary.to_pylist())), ">u8").astype(np.uint64)
    return numbers[encoded.indices.to_numpy()]


# ------------------------------------------------------------------------------------------------------------ tables


def stream_csv(
    path: Path, types: Mapping[str, pa.DataType], optional: Sequence[str] = (), multiline: bool = False
) -> Iterator[pa.RecordBatch]:
    """The named columns of a CSV file in blocks; order and further columns do not matter.

    Args:
        path: its first line names the columns.
        types: of the columns wanted.
        optional: those of them that may be absent, and are null then.
        multiline: whether a quoted value may run over several lines.
    """
    header = _header(path)
    needed = [name for name in types if name not in optional]
    missing = [name for name in needed if name not in header]
    twice = [name for name in types if header.count(name) > 1]
    if missing or twice:
        what = f"no column {', '.join(missing)}" if missing else f"column {', '.join(twice)} twice"
        raise ValueError(
            f"{path}: {what}. Found {', '.join(header) or 'an empty file'}; expected at least {', '.join(needed)}, "
            "in any order."
        )
    convert = pa_csv.ConvertOptions(
        column_types=types, include_columns=list(types), include_missing_columns=True, null_values=["", "nan", "NaN"]
    )
    try:
        reader = pa_csv.open_csv(
            path,
            pa_csv.ReadOptions(block_size=BLOCK_BYTES),
            pa_csv.ParseOptions(newlines_in_values=multiline),
            convert,
        )
        with ThreadPoolExecutor(1) as ahead:  # one block is parsed while the one before is made use of
            coming = ahead.submit(next, reader, None)
            while (block := coming.result()) is not None:
                coming = ahead.submit(next, reader, None)
                yield block
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path}: a row cannot be read ({error}). If the file was cut off, delete it: it will be fetched again."
        ) from error


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def read_boxes(path: Path, class_index: Mapping[str, int], hand_drawn: bool = False) -> tuple[Boxes, dict[str, int]]:
    """The usable boxes of a table, sorted by all they are; and how many rows there were and why some are left out."""
    types: dict[str, pa.DataType] = {"ImageID": pa.string(), "LabelName": pa.dictionary(pa.int32(), pa.string())}
    types |= dict.fromkeys(CORNERS, pa.float64()) | dict.fromkeys(FLAGS, pa.float32())
    if hand_drawn:
        types["Source"] = pa.string()
    reasons = (*FLAGS.values(), "not drawn by hand", "unknown class", "outside", "degenerate", "duplicate")
    counts = dict.fromkeys(("rows", *reasons, "kept"), 0)
    blocks = [_block_boxes(batch, path, class_index, counts) for batch in stream_csv(path, types)]
    strange = counts["outside"] + counts["degenerate"]
    if strange > STRANGE_SHARE * max(counts["rows"], 1):
        raise ValueError(
            f"{path}: {strange:,} of {counts['rows']:,} boxes lie outside [0, 1] or have no area. Coordinates are "
            "expected as shares of the image's width and height, and XMin < XMax, YMin < YMax, each under its name."
        )
    boxes = np.concatenate([np.zeros(0, BOX), *blocks])
    del blocks
    boxes = boxes[_order(boxes)]
    same = [boxes["image"], boxes["category"], *boxes["corners"].T]
    is_first = np.r_[True, np.logical_or.reduce([column[1:] != column[:-1] for column in same])][: len(boxes)]
    counts["duplicate"] = int((~is_first).sum())
    counts["kept"] = len(boxes) - counts["duplicate"]
    return boxes[is_first], counts


def _order(boxes: Boxes) -> NDArray[np.intp]:
    """By image, class and corners. The rows of an image stand together in the table, which is sorted in no time."""
    by_image = np.argsort(boxes["image"], kind="stable")
    images = boxes["image"][by_image]
    key = np.empty(len(boxes), np.uint64)  # the image's number among all, and the class
    key[by_image] = np.cumsum(np.r_[False, images[1:] != images[:-1]], dtype=np.uint64)[: len(boxes)] << 16
    key |= boxes["category"].astype(np.uint64)
    order = np.argsort(key)
    key = key[order]
    same = key[1:] == key[:-1]
    tied = (np.r_[False, same] | np.r_[same, False])[: len(boxes)]
    rows = order[tied]
    bits = (boxes["corners"][rows] + np.float32(0)).view(np.uint32).astype(np.uint64)  # no -0; in the order of floats
    order[tied] = rows[np.lexsort((bits[:, 2] << 32 | bits[:, 3], bits[:, 0] << 32 | bits[:, 1], key[tied]))]
    return order


def _block_boxes(batch: pa.RecordBatch, path: Path, class_index: Mapping[str, int], counts: dict[str, int]) -> Boxes:
    """The usable boxes of one block; the first reason against a row is the one that is counted."""

    def column(name: str) -> NDArray[np.float64]:
        return batch[name].to_numpy(zero_copy_only=False)

    boxes = np.zeros(len(batch), BOX)
    boxes["image"] = id_numbers(batch["ImageID"], path)
    labels = batch["LabelName"]
    places = np.array([class_index.get(name, -1) for name in labels.dictionary.to_pylist()] + [-1], np.int16)
    boxes["category"] = places[pc.fill_null(labels.indices, -1).to_numpy()]
    corners = np.stack([column(name) for name in CORNERS], axis=1)
    boxes["corners"] = np.clip(corners, 0, 1)
    x1, y1, x2, y2 = boxes["corners"].T
    unusable = {reason: column(flag) == 1 for flag, reason in FLAGS.items()}
    if "Source" in batch.schema.names:
        unusable["not drawn by hand"] = column("Source") != "xclick"
    unusable["unknown class"] = boxes["category"] < 0
    unusable["degenerate"] = ~(np.isfinite(corners).all(axis=1) & (x2 > x1) & (y2 > y1))
    counts["rows"] += len(batch)
    usable = np.ones(len(batch), bool)
    for reason, which in unusable.items():
        counts[reason] += int((usable & which).sum())
        usable &= ~which
    counts["outside"] += int((usable & ((corners < 0) | (corners > 1)).any(axis=1)).sum())
    return boxes[usable]


def _rows_of(
    path: Path, ids: Sequence[str], types: Mapping[str, pa.DataType], optional: Sequence[str] = ()
) -> pa.Table:
    """The rows of some images."""
    wanted = pa.array(ids, pa.string())
    batches = stream_csv(path, types, optional, multiline=True)
    found = [batch.filter(pc.is_in(batch["ImageID"], value_set=wanted)) for batch in batches]
    return pa.Table.from_batches(found, pa.schema(types))


def read_image_list(path: Path, ids: Sequence[str]) -> tuple[pa.Table, dict[str, int]]:
    """Attribution of the images in `ids`, one row each in that order, and counts; nulls where an image is not listed.

    An image that is listed twice gets the row that comes first in alphabetical order.
    """
    types = dict.fromkeys(("ImageID", *IMAGE_LIST.values()), pa.string())
    found = _rows_of(path, ids, types, OPTIONAL)
    first = found.sort_by([(column, "ascending") for column in types]).group_by("ImageID", use_threads=False)
    rows = first.aggregate([(column, "first") for column in IMAGE_LIST.values()])
    rows = rows.take(pc.index_in(pa.array(ids, pa.string()), value_set=rows["ImageID"]))
    table = {}
    for name, column in IMAGE_LIST.items():
        values = rows[f"{column}_first"]
        absent = pa.array(["", "nan"] if column in OPTIONAL else [""])
        values = pc.if_else(pc.is_in(pc.utf8_lower(values), value_set=absent), None, values)
        try:
            table[name] = values.cast(pa.float64()).cast(NUMBERS[name]) if name in NUMBERS else values
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: {column} is not a whole number ({error}).") from error
    listed = pc.count_distinct(found["ImageID"]).as_py()
    counts = {"listed": listed, "not listed": len(ids) - listed, "listed twice": len(found) - listed}
    return pa.table(table), counts


def read_masks(
    path: Path, ids: Sequence[str], class_index: Mapping[str, int]
) -> tuple[list[list[tuple[str, int]]], int]:
    """Names and classes of the masks of every image in `ids`, largest box first; and how many are of unknown class.

    A mask that is listed twice is taken once. A name is a file to be opened, so only the pattern of Open Images is
    let through.
    """
    numbers = ("BoxXMin", "BoxYMin", "BoxXMax", "BoxYMax")
    types = dict.fromkeys(("ImageID", "MaskPath", "LabelName"), pa.string()) | dict.fromkeys(numbers, pa.float64())
    found: dict[str, dict[str, tuple[float, str, int]]] = {image_id: {} for image_id in ids}
    unknown = 0
    for row in _rows_of(path, ids, types).to_pylist():
        name, image_id = row["MaskPath"], row["ImageID"]
        match = MASK_NAME.fullmatch(name)
        if match is None or match[1] != image_id:
            raise ValueError(
                f"{path}: MaskPath {name!r} of image {image_id}, expected a name such as "
                f"{image_id}_m01g317_0a1b2c3d.png. Nothing was opened."
            )
        if row["LabelName"] not in class_index:
            unknown += 1
            continue
        x1, y1, x2, y2 = (row[number] or 0.0 for number in numbers)
        entry = (-abs((x2 - x1) * (y2 - y1)), name, class_index[row["LabelName"]])
        found[image_id][name] = min(found[image_id].get(name, entry), entry)
    return [[(name, category) for _, name, category in sorted(masks.values())] for masks in found.values()], unknown


# ------------------------------------------------------------------------------------------------------ small tables


def read_classes(path: Path) -> dict[str, str]:
    """Readable name by `LabelName`; version 5 of the file has no header, versions 6 and 7 have one.

    Names are unique: classes that share one get their `LabelName` behind it.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    columns = ["LabelName", "DisplayName"]
    if rows and set(columns) <= set(rows[0]):
        columns = rows.pop(0)
    classes: dict[str, str] = {}
    for row in rows:
        entry = dict(zip(columns, row, strict=False))
        label, name = entry.get("LabelName", ""), entry.get("DisplayName")
        if name is None or not label.startswith("/"):
            raise ValueError(
                f"{path}: found the row {','.join(row)!r}, expected an id such as /m/01g317 and a name, "
                "or columns LabelName and DisplayName."
            )
        if classes.setdefault(label, name) != name:
            raise ValueError(f"{path}: {label} is {classes[label]!r} and {name!r}, expected one name.")
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
    except (json.JSONDecodeError, RecursionError) as error:
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
