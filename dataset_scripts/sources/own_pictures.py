"""Pictures of one's own as rows of the Parquet contract; where annotations come from is told by `folder`, `voc` …"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modeling_decodepos.commands.settings import number
from modeling_decodepos.data.pictures import broken_if_it_fails, read_size, turn_pixels
from modeling_decodepos.data.schema import SEGMENTATION_IGNORE

from ..build.object_lists import category_number
from ..build.parquet import DatasetPlan, Row
from ..build.records import Records, write_records
from ..build.work_folder import WorkFolder
from ..pictures.boxes import box_faults, check_xywh, count_faults
from ..pictures.encoded import encode_png, picture_row, printable, read_picture, turn_boxes
from ..pictures.listing import DEFAULT_VALIDATION_SHARE, files_sha256, split_by_name

_MOST_SHOWN = 20
Size = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Described:
    """A picture and what is known of it; as JSON, what its row is made from."""

    name: str  # path of the file, relative to the source
    image_id: str | None = None  # None takes the name
    split: str | None = None  # None goes by the name
    boxes: Sequence[Box] = ()  # xywh in pixels
    categories: Sequence[int | str] = ()  # class of each box, by its number or its name
    crowds: Sequence[bool] = ()  # whether each box is to be ignored
    whole: int | None = None  # class of the picture as a whole, which becomes one box around it
    size: Size | None = None  # width and height that the boxes are for; None if for the picture as it is seen
    map_name: str | None = None  # path of a semantic map


@dataclass(frozen=True)
class Collection:
    """What a builder found in a source."""

    kind: str  # name of the builder and of its version, for the recipe
    folder: Path  # that the names are relative to
    files: Mapping[str, int]  # size of every file in it
    pictures: Sequence[Described]  # in the order of the rows
    class_names: Sequence[str]
    title: str
    description: str
    counts: Mapping[str, int] = field(default_factory=dict)  # of what was left out, by reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of all builders for one's own pictures."""
    parser.add_argument("--source", type=Path, required=True, help="folder to read; nothing in it is changed")
    parser.add_argument(
        "--validation_share",
        type=number(float, 0, 1),
        default=DEFAULT_VALIDATION_SHARE,
        help="of the pictures, where the source has no splits; which ones depends on their paths alone",
    )
    parser.add_argument(
        "--skip_broken", action="store_true", help="decode every picture first and leave out what cannot be decoded"
    )


def make_source(arguments: argparse.Namespace, work: WorkFolder, found: Collection) -> DatasetPlan:
    """What to build from a collection."""
    pictures = list(found.pictures)
    broken: list[str] = []
    if arguments.skip_broken:
        pictures, broken = _without_broken(found.folder, pictures, arguments.workers)
    pictures = [_with_size(found.folder, picture) for picture in pictures]
    annotated = [picture for picture in pictures if picture.boxes]
    check_xywh(
        np.array([box for picture in annotated for box in picture.boxes]).reshape(-1, 4),
        np.array([picture.size for picture in annotated for _ in picture.boxes], np.float64).reshape(-1, 2),
    )
    faults = [box_faults(picture.boxes, *(picture.size or (0, 0))) for picture in pictures]
    dropped = count_faults(chain.from_iterable(faults))
    pictures = [
        _without_faults(picture, fault, found.class_names) for picture, fault in zip(pictures, faults, strict=True)
    ]

    folder = work.open()
    splits = {
        split: write_records(folder, map(asdict, of_split))
        for split, of_split in _splits(pictures, arguments.validation_share).items()
    }
    used = [name for picture in pictures for name in (picture.name, picture.map_name) if name]
    left_out = {**found.counts, **{f"annotations {reason}": count for reason, count in dropped.items()}}
    recipe = {
        "source": found.kind,
        "files_sha256": files_sha256((name, found.files[name]) for name in used),
        "records_sha256": {split: records.sha256 for split, records in splits.items()},
        "left_out": left_out,
        "broken": len(broken),
        "broken_sha256": hashlib.sha256("\n".join(map(printable, broken)).encode()).hexdigest() if broken else None,
    }
    if broken:
        left_out["pictures that cannot be decoded"] = len(broken)
    texts = [f"{count:,} {reason}" for reason, count in left_out.items()]
    return DatasetPlan(
        recipe=recipe,
        splits={split: records.count for split, records in splits.items()},
        class_names=found.class_names,
        make_row=partial(own_row, folder=found.folder, splits=splits, class_count=len(found.class_names)),
        title=found.title,
        license="unknown",
        description=f"{found.description.strip()}\n\nLeft out: {', '.join(texts) or 'nothing'}.",
        proposals=arguments.proposals,
    )


def own_row(split: str, number: int, folder: Path, splits: Mapping[str, Records], class_count: int) -> Row:
    """Row `number` of a split."""
    record = splits[split][number]
    name = record["name"]
    try:
        picture = read_picture(folder / name, name)
    except ValueError as error:
        raise ValueError(f"{error}. Put a whole copy there, or leave such pictures out with --skip_broken.") from None
    width, height = record["size"] or picture.upright
    turn = picture.turn_to_fit((width, height))
    boxes = turn_boxes(record["boxes"], turn, width, height).tolist()
    categories, crowds = record["categories"], record["crowds"]
    if record["whole"] is not None:
        boxes, categories, crowds = [[0, 0, *picture.upright]], [record["whole"]], [False]
    objects = {"bbox": boxes, "category": categories, "area": [w * h for _, _, w, h in boxes], "iscrowd": crowds}
    segmentation = None
    if record["map_name"] is not None:
        labels = load_map(folder / record["map_name"], (width, height), class_count)
        segmentation = encode_png(turn_pixels(labels, turn))
    return picture_row(picture, record["image_id"] or name, objects, segmentation)


def load_map(path: Path, size: Size, class_count: int) -> NDArray[np.uint8]:
    """A semantic map (H, W) from a PNG of class numbers, as VOC has them: a palette's numbers, not its colours."""
    with broken_if_it_fails(str(path), "map"):
        image = Image.open(path)
    with image:
        if image.mode not in ("P", "L"):
            raise ValueError(f"{path} has mode {image.mode}, expected a palette or one channel of class numbers.")
        if image.size != size:  # before decoding, which may take any amount of memory
            width, height = image.size
            raise ValueError(f"{path} is {width} x {height} px, but its picture is {size[0]} x {size[1]} px.")
        with broken_if_it_fails(str(path), "map"):
            labels = np.array(image, np.uint8)
    if (wrong := labels[(labels > class_count) & (labels != SEGMENTATION_IGNORE)]).size:
        raise ValueError(f"{path} has the value {wrong[0]}, expected 0 to {class_count} or {SEGMENTATION_IGNORE}.")
    return labels


def _without_broken(folder: Path, pictures: list[Described], workers: int) -> tuple[list[Described], list[str]]:
    """The pictures that can be decoded, and the names of the others."""

    def problem(picture: Described) -> str:
        try:
            read_picture(folder / picture.name, picture.name)
        except ValueError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(workers or None) as pool:  # decoding does not hold the interpreter
        problems = list(pool.map(problem, pictures))
    shown = [f"left out: {text}" for text in problems if text]
    more = [f"left out: … and {len(shown) - _MOST_SHOWN} more"] if len(shown) > _MOST_SHOWN else []
    print(*shown[:_MOST_SHOWN], *more, sep="\n", end="\n" if shown else "", file=sys.stderr)
    if len(shown) == len(pictures):
        raise ValueError(f"None of the {len(pictures)} pictures in {folder} can be decoded.")
    broken = [picture.name for picture in compress(pictures, problems)]
    return [picture for picture, text in zip(pictures, problems, strict=True) if not text], broken


def _with_size(folder: Path, picture: Described) -> Described:
    """The picture's own size where boxes come without one: what lies outside can be counted before the build."""
    if picture.size is not None or not picture.boxes:
        return picture
    height, width = read_size(folder / picture.name, printable(picture.name))
    return replace(picture, size=(width, height))


def _without_faults(picture: Described, faults: NDArray[np.str_], class_names: Sequence[str]) -> Described:
    usable = faults == ""
    return replace(
        picture,
        boxes=list(compress(picture.boxes, usable)),
        categories=[category_number(category, class_names) for category in compress(picture.categories, usable)],
        crowds=list(compress(picture.crowds or [False] * len(picture.boxes), usable)),
    )


def _splits(pictures: Sequence[Described], share: float) -> dict[str, list[Described]]:
    ids = Counter(printable(picture.image_id or picture.name) for picture in pictures)
    if double := [name for name, count in ids.items() if count > 1]:
        raise ValueError(f"Two pictures have the id {double[0]}; rename one of them.")
    by_name = split_by_name([picture.name for picture in pictures if picture.split is None], share)
    drawn = {name: split for split, names in by_name.items() for name in names}
    splits: dict[str, list[Described]] = {"train": [], "validation": [], "test": []}
    for picture in pictures:
        splits[picture.split or drawn[picture.name]].append(picture)
    return {split: found for split, found in splits.items() if found}
