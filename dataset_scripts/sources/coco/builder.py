"""COCO, and data sets in its layouts, as rows of the Parquet contract.

    SOURCE/train2017/*.jpg   SOURCE/val2017/*.jpg
    SOURCE/annotations/instances_train2017.json   SOURCE/annotations/instances_val2017.json

Either split may be absent. A data set of one's own may have other names after "instances_", as long as they begin with
train, val or test and its pictures lie in a folder of that name. `coco_parquet` reads COCO as published on the Hub.
`listed` builds a subset, by the ids of its images.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from modeling_decodepos.data.pictures import turn_pixels
from modeling_decodepos.data.schema import SEGMENTATION_IGNORE

from ...build.parquet import DatasetPlan, Row, RowMaker
from ...build.records import Records, write_records
from ...build.work_folder import WorkFolder
from ...files import file_sha256
from ...pictures.boxes import FARTHEST
from ...pictures.encoded import LARGEST_CLASS_COUNT, encode_png, picture_row, read_picture, turn_boxes
from ...pictures.listing import check_folder, files_sha256, walk
from . import parquet as coco_parquet
from .annotations import CocoContents, CocoImage, read_annotations
from .listed import Ids, check_known, ids_sha256, listed_row, load_ids, place_rows
from .outlines import encode_outline, outline_mask

HELP = "COCO: its original folder, or a COCO-type Parquet data set (folder or Hub id)"
VERSION = 1

# Images and annotations of each split when nothing is missing, and what tells COCO from other data in its layout.
OFFICIAL = {"train2017": (118_287, 860_001), "val2017": (5_000, 36_781)}
OFFICIAL_CATEGORIES = [k for k in range(1, 91) if k not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]

DESCRIPTION = """
{contents}

`objects` has one entry per annotation, crowds (`iscrowd`) among them; `regions` from annotations leave crowds out.
Categories are numbered from 0 in the order of the source's ids{holes}. Boxes are the source's, and may reach beyond
the image by a fraction of a pixel. {maps}

`license` is the URL of each photo's licence and `original_url` where it comes from, as the source lists them. The
photos belong to their authors; annotations of COCO are under CC BY 4.0.

{dropped}
"""
MAPS = """`segmentation` is drawn from the outlines exactly as pycocotools draws them. Where objects overlap,
the one with fewer pixels is seen. Crowds are 255 (ignore), and so is the box of an object without an outline."""


@dataclass(frozen=True)
class CocoPart:
    """What a row is made from that one annotation file lists; small, because every task of a worker carries it."""

    pictures: Path
    records: Records
    categories: Mapping[int, int]
    licenses: Mapping[int, str]
    has_maps: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare coco`."""
    parser.add_argument(
        "--source", required=True, help="COCO's folder, a folder of COCO-type Parquet files, or the Hub id of one"
    )
    parser.add_argument("--allow_missing", action="store_true", help="build without pictures that are not there")
    parser.add_argument(
        "--ids",
        type=Path,
        help='build the images of a list only, from whichever split: JSON file {"train": [ids], "validation": [ids]}',
    )
    coco_parquet.add_arguments(parser)
    parser.set_defaults(proposals="boxes")


def open_source(arguments: argparse.Namespace, work: WorkFolder) -> DatasetPlan:
    """What `prepare coco` builds."""
    folder = Path(arguments.source)
    ids = load_ids(arguments.ids) if arguments.ids else None
    if (folder / "annotations").is_dir():
        return coco_source(folder, work.open(), arguments.allow_missing, ids)
    is_hub_id = not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", arguments.source)
    if is_hub_id or (folder.is_dir() and any(folder.rglob("*.parquet"))):
        if ids is not None:
            raise ValueError(
                "--ids takes images from COCO's own files only, a --source with annotations/instances_*.json and "
                "the folders of its pictures; this one is Parquet."
            )
        return coco_parquet.open_source(arguments)
    check_folder(folder)
    raise ValueError(
        f"{folder} has neither a folder annotations with instances_*.json in it nor Parquet files; "
        f"it has {', '.join(sorted(path.name for path in folder.iterdir())[:5]) or 'nothing'}."
    )


def coco_source(folder: Path, work: Path, allow_missing: bool = False, ids: Ids | None = None) -> DatasetPlan:
    """The data set in a folder of COCO's layout, or the images of `ids` from it.

    `work` is for the lists that workers read while it is built.
    """
    parts: dict[str, CocoPart] = {}
    recipes: dict[str, Any] = {}
    files = _annotation_files(folder)
    contents = _read_parts(folder, files, ids)
    for part, of_part in contents.items():
        parts[part], recipes[part] = _open_part(folder, *files[part], of_part, work, allow_missing, ids is not None)
    categories = next(iter(contents.values())).categories
    is_official = list(categories) == OFFICIAL_CATEGORIES
    complete = is_official and all(_completeness(recipe) == "" for recipe in recipes.values())
    rows = {part: place.records for part, place in parts.items()}
    make_row: RowMaker = partial(coco_row, parts=parts)
    listed: dict[str, Any] = {}
    if ids is not None:
        rows = {split: write_records(work, places) for split, places in place_rows(ids, rows).items()}
        make_row = partial(listed_row, rows=rows, make_row=make_row)
        listed = {"ids_sha256": ids_sha256(ids)}
    return DatasetPlan(
        recipe={"source": "coco", "coco_version": VERSION, "complete": complete, "parts": recipes, **listed},
        splits={split: records.count for split, records in rows.items()},
        class_names=list(categories.values()),
        make_row=make_row,
        title="COCO 2017" if is_official else "Images in the layout of COCO",
        license="other",
        description=_description(is_official, recipes, any(place.has_maps for place in parts.values()), bool(ids)),
        proposals="boxes",
    )


def coco_row(part: str, number: int, parts: Mapping[str, CocoPart]) -> Row:
    """Row `number` of what one annotation file lists."""
    place = parts[part]
    *fields, annotations = place.records[number]
    image = CocoImage(*fields)
    picture = read_picture(place.pictures / image.file_name, image.file_name)
    size = (image.width or picture.upright[0], image.height or picture.upright[1])
    turn = picture.turn_to_fit(size)
    boxes = turn_boxes([annotation["bbox"] for annotation in annotations], turn, *size)
    objects = {
        "bbox": boxes.tolist(),
        "category": [place.categories[annotation["category_id"]] for annotation in annotations],
        "area": [_area(annotation) for annotation in annotations],
        "iscrowd": [bool(annotation.get("iscrowd")) for annotation in annotations],
    }
    segmentation = None
    if place.has_maps:
        labels = draw_map(annotations, place.categories, *size, where=image.file_name)
        segmentation = encode_png(turn_pixels(labels, turn))
    license_url = None if image.license is None else place.licenses.get(image.license)
    return picture_row(picture, str(image.id), objects, segmentation, license=license_url, original_url=image.url)


def draw_map(
    annotations: list[dict[str, Any]], categories: Mapping[int, int], width: int, height: int, where: str = ""
) -> NDArray[np.uint8]:
    """The semantic map (H, W) of one image: 0 = no class, k = category k - 1, 255 = ignore."""
    layers = []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        outline = annotation.get("segmentation") or [[x, y, x + w, y, x + w, y + h, x, y + h]]
        try:
            outline = encode_outline(outline, height, width)
        except ValueError as error:
            raise ValueError(f"{where}: annotation {annotation.get('id')}: {error}.") from error
        ignore = annotation.get("iscrowd") or not annotation.get("segmentation")
        layers.append((outline, SEGMENTATION_IGNORE if ignore else categories[annotation["category_id"]] + 1))
    labels = np.zeros((height, width), np.uint8)
    for outline, value in sorted(layers, key=lambda layer: -int(mask.area(layer[0]))):
        labels[outline_mask(outline)] = value
    return labels


def _area(annotation: Mapping[str, Any]) -> float:
    area = annotation.get("area")
    if isinstance(area, int | float) and 0 <= area <= FARTHEST:
        return float(area)
    return float(annotation["bbox"][2] * annotation["bbox"][3])


# -------------------------------------------------------------------------------------------------------------- files


def _annotation_files(folder: Path) -> dict[str, tuple[str, Path]]:
    """Name after "instances_" and file of each split, train before validation before test."""
    files: dict[str, tuple[str, Path]] = {}
    found = sorted((folder / "annotations").glob("instances_*.json"))
    for prefix, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        of_split = [path for path in found if path.stem.removeprefix("instances_").startswith(prefix)]
        if len(of_split) > 1:
            names = " and ".join(path.name for path in of_split)
            raise ValueError(
                f"{folder / 'annotations'} has {names}, all of the split {split}; leave one of them there."
            )
        if of_split:
            files[split] = of_split[0].stem.removeprefix("instances_"), of_split[0]
    if not files:
        names = ", ".join(sorted(path.name for path in (folder / "annotations").iterdir())[:5])
        raise ValueError(
            f"{folder / 'annotations'} has {names or 'no file'}, expected instances_train2017.json, "
            "instances_val2017.json or both."
        )
    return files


def _picture_folder(folder: Path, name: str) -> Path:
    """Where the pictures of an annotation file are, or should be."""
    places = (folder / name, folder / "images" / name)
    return next((place for place in places if place.is_dir()), places[0])


def _read_parts(folder: Path, files: Mapping[str, tuple[str, Path]], ids: Ids | None) -> dict[str, CocoContents]:
    """What is built of each annotation file: all of one that has pictures, or the images that `ids` names."""
    wanted = None if ids is None else {image_id for of_split in ids.values() for image_id in of_split}
    parts: dict[str, CocoContents] = {}
    for part, (name, path) in files.items():
        if wanted is None and not _picture_folder(folder, name).is_dir():
            print(f"{path.name} has no folder {name} of pictures beside it: the split {part} is left out.")
            continue
        parts[part] = read_annotations(path, wanted)
        if parts[part].categories != next(iter(parts.values())).categories:
            raise ValueError(f"{path} has other categories than the split before it; both must have the same.")
    if not parts:
        raise ValueError(f"{folder} has annotations but no pictures: expected folders such as {folder / 'val2017'}.")
    if ids is None:
        return parts
    check_known(ids, {files[part][1].name: [image.id for image in of_part.images] for part, of_part in parts.items()})
    return {part: of_part for part, of_part in parts.items() if of_part.images}


def _open_part(
    folder: Path, name: str, path: Path, contents: CocoContents, work: Path, allow_missing: bool, is_listed: bool
) -> tuple[CocoPart, dict[str, Any]]:
    pictures = _picture_folder(folder, name)
    files = dict(walk(pictures)) if pictures.is_dir() else {}
    used = [image for image in contents.images if image.file_name in files]
    missing = [image.file_name for image in contents.images if image.file_name not in files]
    if missing and not (allow_missing and (used or is_listed)):  # a list may do without one of two folders
        cure = "Download them" if allow_missing else "Download them, or build without them: --allow_missing"
        raise ValueError(
            f"{len(missing):,} of the {len(contents.images):,} pictures in {path.name}"
            f"{' that --ids names' if is_listed else ''} are not in {pictures}; the first is {missing[0]}. {cure}."
        )
    # JSON of the image's values and, as the last one, its annotations, which are JSON already.
    texts = (b",".join(contents.annotations.get(image.id, [])) for image in used)
    rows = (json.dumps(image).encode()[:-1] + b",[" + text + b"]]" for image, text in zip(used, texts, strict=True))
    records = write_records(work, rows)
    recipe = {
        "name": name,
        "images": records.count,
        "missing": len(missing),
        "missing_sha256": hashlib.sha256("\n".join(missing).encode()).hexdigest() if missing else None,
        "annotations": contents.annotation_count,
        "dropped": contents.dropped,
        "annotations_sha256": file_sha256(path),
        "pictures_sha256": files_sha256((image.file_name, files[image.file_name]) for image in used),
    }
    part = CocoPart(
        pictures=pictures,
        records=records,
        categories={category: number for number, category in enumerate(contents.categories)},
        licenses=contents.licenses,
        has_maps=contents.has_outlines and len(contents.categories) <= LARGEST_CLASS_COUNT,
    )
    return part, recipe


# --------------------------------------------------------------------------------------------------------------- card


def _completeness(recipe: Mapping[str, Any]) -> str:
    """What is missing of an official split, in words; nothing if it is complete."""
    if recipe["name"] not in OFFICIAL:
        return f"{recipe['name']} is no split of COCO 2017"
    images, annotations = OFFICIAL[recipe["name"]]
    if (recipe["images"], recipe["annotations"]) == (images, annotations):
        return ""
    return (
        f"{recipe['name']} is partial: {recipe['images']:,} of {images:,} images, "
        f"{recipe['annotations']:,} of {annotations:,} annotations"
    )


def _description(is_official: bool, recipes: Mapping[str, Mapping[str, Any]], has_maps: bool, is_listed: bool) -> str:
    contents = "Images with boxes in the layout of COCO."
    if is_official:
        partial_splits = [text for recipe in recipes.values() if (text := _completeness(recipe))]
        contents = f"Built from COCO 2017. {'; '.join(partial_splits) or 'The splits in it are complete'}."
    if is_listed:
        contents += (
            " A list of ids chose the images and their splits here; the official split of an image may be another."
        )
    dropped = [
        f"{count:,} {reason} ({recipe['name']})"
        for recipe in recipes.values()
        for reason, count in recipe["dropped"].items()
    ]
    return DESCRIPTION.format(
        contents=contents,
        holes=", which are 1 to 90 with holes" if is_official else "",
        maps=MAPS if has_maps else "There is no `segmentation`.",
        dropped=f"Annotations left out: {', '.join(dropped)}." if dropped else "No annotation was left out.",
    )
