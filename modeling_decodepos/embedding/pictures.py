"""Pictures of a folder, of Parquet files in our contract or of a data set on the Hub, one after the other.

Shapes: S side that a network sees, R regions of a picture.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.pictures import decode_picture, eight_bits, orientation_of, turn_pixels
from ..data.schema import SEGMENTATION_IGNORE
from ..diagnosis.data.exchange import resize
from ..diagnosis.data.photos import open_folder, open_table, read_regions
from ..diagnosis.models.features import cell_boxes

Row = Mapping[str, Any]
COLUMNS = ("image", "image_id", "width", "height", "objects", "regions", "segmentation", "label")


@dataclass(frozen=True)
class Source:
    """Rows of pictures, always in the same order."""

    identity: str  # another one where there are other pictures
    count: int | None  # of pictures, where that is known
    columns: frozenset[str]
    class_names: tuple[str, ...]  # of objects
    label_names: tuple[str, ...]  # of pictures
    rows: Callable[[int], Iterator[tuple[str, Row]]]  # from a number on: where each is, and what the data says of it


@dataclass(frozen=True)
class Shown:
    """A picture as a network sees it, and its regions."""

    pixels: Tensor  # (3, S, S) uint8
    boxes: Tensor  # (R, 4)
    labels: tuple[str | None, ...]  # of the regions
    masks: Tensor | None = None  # (R, S, S), where the regions are no boxes
    label: str | None = None  # of the picture


def open_source(data: str, split: str = "") -> Source:
    """The pictures that `data` names; of every split, or of one."""
    if not Path(data).exists():
        return _open_hub(data, split)
    splits = open_folder(data)
    files = [file for name in _chosen(list(splits), split, data) for file in splits[name]]
    return _open_tables(files) if files[0].suffix == ".parquet" else _open_pictures(Path(data), files)


def _chosen(names: list[str], split: str, data: str) -> list[str]:
    if split and split not in names:
        raise ValueError(f"{data} has no split {split!r}; it has {', '.join(names)}.")
    return [split] if split else names


def _open_pictures(folder: Path, files: list[Path]) -> Source:
    names = [file.relative_to(folder).as_posix() for file in files]

    def rows(start: int) -> Iterator[tuple[str, Row]]:
        for file, name in zip(files[start:], names[start:], strict=True):
            yield str(file), {"image": {"bytes": file.read_bytes()}, "image_id": name}

    identity = [(name, file.stat().st_size) for name, file in zip(names, files, strict=True)]
    return Source(_digest(identity), len(files), frozenset({"image"}), (), (), rows)


def _open_tables(files: list[Path]) -> Source:
    tables = [open_table(file) for file in files]
    first = tables[0].schema_arrow
    lengths = [table.metadata.num_rows for table in tables]

    def rows(start: int) -> Iterator[tuple[str, Row]]:
        for file, length in zip(files, lengths, strict=True):
            yield from itertools.islice(_table_rows(file), start, None) if start < length else ()
            start = max(0, start - length)

    written = (first.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(written).get("info", {}).get("features", {})
    identity = [(file.name, file.stat().st_size, length) for file, length in zip(files, lengths, strict=True)]
    return Source(_digest(identity), sum(lengths), frozenset(first.names), *_names(features), rows)


def _table_rows(file: Path) -> Iterator[tuple[str, Row]]:
    table = open_table(file)
    names = table.schema_arrow.names
    if "image" not in names:
        raise ValueError(f"{file} has no column 'image'; its columns are {', '.join(names)}.")
    for batch in table.iter_batches(batch_size=8, columns=[name for name in COLUMNS if name in names]):
        yield from ((str(file), row) for row in batch.to_pylist())


def _open_hub(data: str, split: str) -> Source:
    """A data set of the Hub, streamed at the commit that it has now."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{data} is no folder, and data sets of the Hub need datasets: pip install 'decodepos[data]'."
        ) from error
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(data).sha
        parts = datasets.load_dataset(data, streaming=True, revision=commit)
    except Exception as error:  # of the network, of the Hub, of the data set: the reader needs its first line
        raise FileNotFoundError(
            f"--data {data}: no such folder, and it cannot be had from the Hub as a data set "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})."
        ) from error
    chosen = [parts[name] for name in _chosen(list(parts), split, data)]
    features = chosen[0].features or {}
    if "image" not in features:
        raise ValueError(f"{data} has no column 'image'; its columns are {', '.join(features)}.")
    encoded = [part.cast_column("image", datasets.Image(decode=False)) for part in chosen]
    sizes = [part.info.splits[part.split].num_examples if part.info.splits else None for part in chosen]

    def rows(start: int) -> Iterator[tuple[str, Row]]:
        return ((data, row) for row in itertools.islice(itertools.chain(*encoded), start, None))

    count = sum(size or 0 for size in sizes) if all(sizes) else None
    known = features.to_dict() if hasattr(features, "to_dict") else {}
    return Source(f"{commit} {split}", count, frozenset(features), *_names(known), rows)


def _names(features: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the classes of objects and of pictures, from what datasets writes about columns."""
    return _class_names(features.get("objects")), _class_names(features.get("label"))


def _class_names(feature: Any) -> tuple[str, ...]:
    if isinstance(feature, Mapping):
        if feature.get("_type") == "ClassLabel":
            return tuple(feature.get("names") or ())
        feature = list(feature.values())
    found = map(_class_names, feature) if isinstance(feature, list) else ()
    return next(filter(None, found), ())


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- reading


def show(where: str, row: Row, side: int, regions: str, grid: int, source: Source) -> Shown:
    """The picture of a row, resized to a square, with the regions that are wanted of it ("" for none).

    `BrokenImage` where the picture cannot be decoded.
    """
    pixels, size = _decode(where, row, side, exact=regions == "boxes" or regions == "proposals")
    label = _named(row.get("label"), source.label_names)
    if regions == "masks":
        masks, labels = _read_masks(where, row, side, source.class_names)
        return Shown(pixels, _around(masks), labels, masks, label)
    if regions == "grid":
        return Shown(pixels, cell_boxes((grid, grid)), (None,) * grid**2, None, label)
    if not regions:
        return Shown(pixels, torch.zeros(0, 4), (), None, label)
    wanted = row if regions == "boxes" else {**row, "objects": None}
    boxes, classes = read_regions(where, wanted, size[1], size[0])
    known = [None] * len(boxes) if classes is None else classes.tolist()
    return Shown(pixels, torch.from_numpy(boxes), tuple(_named(k, source.class_names) for k in known), None, label)


def _named(label: Any, names: tuple[str, ...]) -> str | None:
    if isinstance(label, int) and 0 <= label < len(names):
        return names[label]
    return None if label is None else str(label)


def _decode(where: str, row: Row, side: int, exact: bool) -> tuple[Tensor, tuple[int, int]]:
    """(3, side, side) pixels of a row, upright, and the height and width that its boxes refer to."""
    image, width, height = row["image"], row.get("width"), row.get("height")
    said = (height, width) if width and height else None
    if isinstance(image, Image.Image):
        pixels = turn_pixels(eight_bits(image, "RGB"), orientation_of(image))
    else:
        name = f"{where}, image {row['image_id']}" if row.get("image_id") is not None else where
        # A large JPEG may come smaller, which is faster, unless its own size is what boxes refer to.
        enough = None if exact and said is None else (4 * side, 4 * side)
        pixels = decode_picture((image or {}).get("bytes"), name, said, at_least=enough)
    size = said or (pixels.shape[0], pixels.shape[1])
    return resize(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), side, side), size


def _read_masks(where: str, row: Row, side: int, names: tuple[str, ...]) -> tuple[Tensor, tuple[str | None, ...]]:
    """(R, side, side) of every class in a row's label map, and the names of the classes."""
    found = row.get("segmentation")
    if found is None:
        return torch.zeros(0, side, side), ()
    opened = found if isinstance(found, Image.Image) else Image.open(io.BytesIO(found["bytes"]))
    labels = np.asarray(opened)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"{where}, image {row.get('image_id')}: its segmentation is {labels.shape} of {labels.dtype}; expected "
            "one 8-bit channel."
        )
    seen = torch.from_numpy(labels.copy())[None, None].float()
    seen = F.interpolate(seen, (side, side), mode="nearest-exact")[0, 0].byte()
    classes = [k for k in seen.unique().tolist() if k not in (0, SEGMENTATION_IGNORE)]
    masks = torch.stack([seen == k for k in classes]) if classes else torch.zeros(0, side, side, dtype=torch.bool)
    return masks, tuple(_named(k - 1, names) for k in classes)


def _around(masks: Tensor) -> Tensor:
    """(R, 4) boxes around masks (R, S, S)."""
    ends = []
    for axis in (1, 2):  # what is left are columns, then rows
        taken, side = masks.any(axis).byte(), masks.shape[2]
        ends.append((taken.argmax(1) / side, 1 - taken.flip(1).argmax(1) / side))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1) if len(masks) else torch.zeros(0, 4)
