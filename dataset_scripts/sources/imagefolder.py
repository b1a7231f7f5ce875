"""A folder in the layout that `datasets` calls imagefolder, as rows of the Parquet contract.

SOURCE/[train|validation|test/]metadata.csv | .jsonl | .parquet      columns `file_name` and `objects` or `label`
SOURCE/[train|validation|test/]CLASS/*.jpg                          without metadata: a folder per class
"""

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..build.object_lists import Categories, category_number, load_class_names, read_objects
from ..build.parquet import DatasetPlan
from ..build.work_folder import WorkFolder
from ..pictures.boxes import BOX_FORMATS, to_xywh
from ..pictures.encoded import PLACEHOLDER_CLASS
from ..pictures.listing import check_folder, is_picture, list_pictures, path_inside, walk
from .own_pictures import Collection, Described, make_source
from .own_pictures import add_arguments as add_own_arguments

HELP = "a folder in the layout of Hugging Face's imagefolder: metadata with boxes or labels, or a folder per class"

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}

DESCRIPTION = """
Pictures in the layout of `imagefolder`. {meaning} `image_id` is the path that a picture had in its folder. The files
are stored as they were.
"""
BOXES = "Boxes are those of the metadata's `objects`."
LABELS = "A picture's {label} is the category of one box around all of it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare imagefolder`."""
    add_own_arguments(parser)
    parser.set_defaults(proposals="boxes")
    parser.add_argument("--box_format", choices=BOX_FORMATS, default="xywh", help="of `objects`, in pixels")
    parser.add_argument(
        "--class_names", type=Path, help="text file, a name per line, if the metadata has numbers only"
    )


def open_source(arguments: argparse.Namespace, work: WorkFolder) -> DatasetPlan:
    """What `prepare imagefolder` builds."""
    folder = arguments.source
    check_folder(folder)
    files = dict(sorted(walk(folder)))
    pictures = list_pictures(folder)
    splits = {name: SPLIT_FOLDERS.get(PurePosixPath(name).parts[0]) for name in pictures if "/" in name}
    if any(splits.values()) and (outside := [name for name in pictures if splits.get(name) is None]):
        raise ValueError(f"{folder} has folders of splits, but {outside[0]} is in none of them; move it into one.")

    metadata = [name for name in files if PurePosixPath(name).name in METADATA_NAMES]
    entries = _entries(folder, metadata, pictures) if metadata else _class_folders(pictures, splits)
    where = "the metadata" if metadata else "the folders"
    categories = Categories()
    objects = {name: read_objects(entries.get(name, {}).get("objects"), name) for name in pictures}
    for name, entry in entries.items():
        labels = [] if entry.get("label") is None else [entry["label"]]
        categories.add([*objects[name].categories, *labels], f"{where}, {name}")
    names = categories.names(load_class_names(arguments.class_names)) or (PLACEHOLDER_CLASS,)

    described, box_format = [], arguments.box_format
    for name in pictures:
        entry = entries.get(name, {})
        found = objects[name]
        has_label = entry.get("label") is not None and not len(found.boxes)
        described.append(
            Described(
                name,
                split=splits.get(name),
                boxes=[(float(x), float(y), float(w), float(h)) for x, y, w, h in to_xywh(found.boxes, box_format)],
                categories=found.categories,
                crowds=found.crowds,
                whole=category_number(entry["label"], names) if has_label else None,
            )
        )
    has_boxes = any(picture.boxes for picture in described)
    label = "`label` in the metadata" if metadata else "folder"
    collection = Collection(
        kind="imagefolder 1",
        folder=folder,
        files=files,
        pictures=described,
        class_names=names,
        title="An imagefolder",
        description=DESCRIPTION.format(meaning=BOXES if has_boxes else LABELS.format(label=label)),
        counts={"entries of metadata (the pictures are in)": n} if (n := len(pictures) - len(entries)) else {},
    )
    return make_source(arguments, work, collection)


def _class_folders(pictures: dict[str, int], splits: dict[str, str | None]) -> dict[str, dict[str, Any]]:
    entries = {}
    for name in pictures:
        above = PurePosixPath(name).parts[:-1]
        if len(above) <= (splits.get(name) is not None):
            raise ValueError(
                f"{name} lies in no folder of a class, and there is no {' or '.join(METADATA_NAMES)}. "
                "For pictures without annotations: python -m dataset_scripts.prepare folder."
            )
        entries[name] = {"label": above[-1]}
    return entries


def _entries(folder: Path, metadata: list[str], pictures: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What the metadata say, by picture."""
    entries: dict[str, dict[str, Any]] = {}
    missing = []
    for file in metadata:
        for entry in _read(folder / file):
            if not isinstance(entry, dict) or "file_name" not in entry:
                found = ", ".join(map(str, entry)) if isinstance(entry, dict) else str(entry)[:40]
                raise ValueError(f"{folder / file} has {found}, expected a column file_name, and objects or label.")
            inside = path_inside(entry["file_name"], str(folder / file))
            name = (PurePosixPath(file).parent / inside).as_posix()
            if name in entries:
                raise ValueError(f"{folder / file}: {inside} is listed twice.")
            if name not in pictures:
                missing.append(name if is_picture(name) else f"{name} (of no known kind)")
            entries[name] = entry
    if missing:
        raise ValueError(f"{len(missing)} pictures in the metadata are not in {folder}; the first is {missing[0]}.")
    return entries


def _read(path: Path) -> Iterator[Any]:
    """Entries of a file of metadata; in CSV, `objects` is JSON."""
    try:
        if path.suffix == ".parquet":
            yield from pq.read_table(path).to_pylist()
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8-sig") as file:
                yield from (json.loads(line) for line in file if line.strip())
        else:
            yield from _read_csv(path)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: no valid JSON ({error}).") from error
    except (csv.Error, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}. The same as metadata.jsonl, in UTF-8, can.") from error


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """In CSV everything is text: `objects` is JSON, and labels are numbers if all of them look like numbers."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        entries = [{name: value or None for name, value in entry.items()} for entry in csv.DictReader(file)]
    are_numbers = all((entry.get("label") or "0").isdecimal() for entry in entries)
    for entry in entries:
        label, objects = entry.get("label"), entry.get("objects")
        yield {
            **entry,
            "label": int(label) if label and are_numbers else label,
            "objects": json.loads(objects) if objects else None,
        }
