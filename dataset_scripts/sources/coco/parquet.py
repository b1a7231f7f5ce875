"""COCO as it is published in Parquet: one row per image with `image`, `objects` and, mostly, ids and sizes.

Published sets differ: `objects` is a struct of lists or a list of structs, categories are numbers or names, and boxes
are x, y, width, height or the two corners. The last cannot be read from the column names; the boxes themselves tell.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...build.object_lists import Categories, category_number, load_class_names, read_objects
from ...build.parquet import DatasetPlan, Row
from ...build.parquet_rows import class_names_of, rows_of
from ...files import file_sha256
from ...pictures.boxes import BOX_FORMATS, box_faults, choose_box_format, count_faults, to_xywh
from ...pictures.encoded import PLACEHOLDER_CLASS, picture_row, read_picture, turn_boxes

VERSION = 1
_SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLIT_NAMES |= {"dev": "validation", "test": "test"}
_ATTRIBUTION = ("license", "author", "original_url", "landing_url")

DESCRIPTION = """
Images with boxes, from {origin}. Boxes there are {box_format}; here they are x, y, width, height. There is no
`segmentation`.

The licences of pictures and annotations are those of the source.

{dropped}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for a Parquet source."""
    parser.add_argument("--box_format", choices=("auto", *BOX_FORMATS), default="auto", help="of a Parquet source")
    parser.add_argument(
        "--class_names", type=Path, help="text file, a name per line, for a Parquet source that has numbers only"
    )


def open_source(arguments: argparse.Namespace) -> DatasetPlan:
    """What `prepare coco` builds from Parquet."""
    folder, origin = Path(arguments.source), "a folder of Parquet files"
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(arguments.source, repo_type="dataset", allow_patterns="*.parquet"))
        origin = f"`{arguments.source}` on the Hub at commit {folder.name}"
    return parquet_source(folder, origin, load_class_names(arguments.class_names), arguments.box_format)


def parquet_source(
    folder: Path, origin: str, class_names: Sequence[str] | None = None, box_format: str = "auto"
) -> DatasetPlan:
    """The data set in the Parquet files at any depth of a folder, which came from `origin`, as the card says.

    Without class names, those in the files are taken: of their features, or texts as categories.
    """
    files = _split_files(folder)
    every_file = [file for of_split in files.values() for file in of_split]
    boxes, sizes, found_names, categories = _scan(every_file)
    names = categories.names(class_names or found_names) or (PLACEHOLDER_CLASS,)
    found_format = choose_box_format(boxes, sizes) if box_format == "auto" else box_format
    dropped = count_faults(box_faults(to_xywh(boxes, found_format), *sizes.T))
    listed = json.dumps([(file.relative_to(folder).as_posix(), file_sha256(file)) for file in every_file])
    files_sha256 = hashlib.sha256(listed.encode()).hexdigest()
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    return DatasetPlan(
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
        make_row=partial(parquet_row, files=files, sha256=files_sha256, class_names=names, box_format=found_format),
        title="Images with boxes",
        license="other",
        description=DESCRIPTION.format(
            origin=origin,
            box_format={"xywh": "x, y, width, height", "xyxy": "x1, y1, x2, y2"}[found_format],
            dropped=f"Annotations left out: {left_out}." if dropped else "No annotation was left out.",
        ),
        proposals="boxes",
    )


def parquet_row(
    split: str,
    number: int,
    files: Mapping[str, tuple[Path, ...]],
    sha256: str,
    class_names: Sequence[str],
    box_format: str,
) -> Row:
    """Row `number` of a split; the hash of all files tells them from others by the same names."""
    found = rows_of(files[split], sha256)[number]
    image_id = str(found["image_id"]) if found.get("image_id") is not None else f"{split}-{number:08d}"
    image = found["image"]
    if not isinstance(image, dict) or not image.get("bytes"):
        raise ValueError(f"image {image_id} holds no bytes; a data set of paths cannot be moved. Embed the pictures.")
    picture = read_picture(image["bytes"], image.get("path") or image_id)
    size = (found.get("width") or picture.upright[0], found.get("height") or picture.upright[1])
    turn = picture.turn_to_fit(size)
    objects = read_objects(found["objects"], f"image {image_id}")
    boxes = to_xywh(objects.boxes, box_format)
    kept = np.flatnonzero(box_faults(boxes, *size) == "")
    turned = turn_boxes(boxes, turn, *size)
    areas = [float(w * h) if area is None else area for (_, _, w, h), area in zip(boxes, objects.areas, strict=True)]
    return picture_row(
        picture,
        image_id,
        {
            "bbox": turned[kept].tolist(),
            "category": [category_number(objects.categories[k], class_names) for k in kept],
            "area": [areas[k] for k in kept],
            "iscrowd": [objects.crowds[k] for k in kept],
        },
        **{name: found[name] for name in _ATTRIBUTION if isinstance(found.get(name), str)},
    )


# --------------------------------------------------------------------------------------------------------------- files


def _split_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Parquet files by split, as their names or those of their folders begin; a name of no split is "train"."""
    splits: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for path in sorted(folder.rglob("*.parquet")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        words = [re.split(r"[^a-zA-Z]", part)[0].lower() for part in reversed(parts)]
        splits[next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), "train")].append(path)
    return {split: tuple(files) for split, files in splits.items() if files}


def _scan(files: Sequence[Path]) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str] | None, Categories]:
    """What the columns other than the pictures say.

    Boxes (N, 4) as they are there, width and height (N, 2) of the image of each, infinite where they are not known,
    class names in the files' features, if they have such, and the categories that occur.
    """
    boxes, sizes = [], []
    categories, names = Categories(), None
    for path in files:
        schema = pq.read_schema(path)
        if missing := [name for name in ("image", "objects") if name not in schema.names]:
            raise ValueError(
                f"{path} has the columns {', '.join(schema.names)}; {' and '.join(missing)} is missing, "
                "expected those of a COCO-type data set: image, objects {bbox, category}."
            )
        names = names or class_names_of(schema)
        columns = [name for name in ("objects", "width", "height") if name in schema.names]
        with pq.ParquetFile(path) as file:
            for row in (row for batch in file.iter_batches(1000, columns=columns) for row in batch.to_pylist()):
                objects = read_objects(row["objects"], str(path))
                categories.add(objects.categories, str(path))
                boxes.append(objects.boxes)
                sizes += [(row.get("width") or np.inf, row.get("height") or np.inf)] * len(objects.boxes)
    return np.concatenate(boxes), np.array(sizes, np.float64).reshape(-1, 2), names, categories
