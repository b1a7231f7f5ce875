"""Pascal VOC, and XML files in its form, as rows of the Parquet contract.

    SOURCE/JPEGImages/*.jpg   SOURCE/Annotations/*.xml   SOURCE/ImageSets/Main/{train,val,test}.txt
    SOURCE/SegmentationClass/*.png

The last two may be absent. SOURCE may also be a folder above that has one such folder, or pictures with their XML
files beside them, as annotation programs write them.
"""

import argparse
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ..build.parquet import DatasetPlan
from ..build.work_folder import WorkFolder
from ..pictures.listing import check_folder, is_picture, walk
from .own_pictures import Collection, Described, make_source
from .own_pictures import add_arguments as add_own_arguments

HELP = "Pascal VOC, or pictures with XML files in its form"

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
_PICTURE_FOLDERS = ("JPEGImages", "images", "Annotations")
_SETS = {"train": "train", "val": "validation", "test": "test"}

DESCRIPTION = """
Pictures with annotations in the form of Pascal VOC. VOC counts pixels from 1 and its corners belong to the object, so
`bbox` is (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1). Objects marked `difficult` are `iscrowd`: both mean
that an object is neither asked for nor counted as a mistake. {maps} The files are stored as they were.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare voc`."""
    add_own_arguments(parser)
    parser.set_defaults(proposals="boxes")


def open_source(arguments: argparse.Namespace, work: WorkFolder) -> DatasetPlan:
    """What `prepare voc` builds."""
    folder = _data_folder(arguments.source)
    files = dict(sorted(walk(folder)))
    is_voc = (folder / "Annotations").is_dir()
    maps = {PurePosixPath(n).stem: n for n in files if n.startswith("SegmentationClass/") and n.endswith(".png")}
    annotations = {_key(name): name for name in files if name.endswith(".xml")}
    if not annotations:
        raise ValueError(f"{folder} has no XML file, expected one per picture in Annotations or beside the picture.")
    pictures: dict[str, str] = {}
    for name in files:
        if is_picture(name) and not (is_voc and name.startswith("Segmentation")):
            if (key := _key(name)) in pictures:
                raise ValueError(f"{folder}: {pictures[key]} and {name} would have the same annotations.")
            pictures[key] = name

    sets = _image_sets(folder)
    used = list(sets) if sets else [key for key in pictures if key in annotations]
    if missing := [key for key in (used if sets else annotations) if key not in pictures]:
        raise ValueError(f"{len(missing):,} annotated pictures are not in {folder}; the first is {missing[0]}.")
    described = []
    for key in used:
        picture = Described(pictures[key], key, sets.get(key))
        described.append(_with_objects(picture, folder / annotations[key]) if key in annotations else picture)
    found_names = {name for picture in described for name in picture.categories}
    class_names = VOC_CLASSES if found_names <= set(VOC_CLASSES) else tuple(sorted(map(str, found_names)))
    has_maps = bool(maps) and class_names == VOC_CLASSES  # in other data nobody says what the numbers of a map mean
    if has_maps:
        described = [replace(picture, map_name=maps.get(key)) for key, picture in zip(used, described, strict=True)]
    unused = len(pictures) - len(used)
    collection = Collection(
        kind="voc 1",
        folder=folder,
        files=files,
        pictures=described,
        class_names=class_names,
        title="Pascal VOC" if class_names == VOC_CLASSES else "Pictures annotated in the form of Pascal VOC",
        description=DESCRIPTION.format(
            maps="`segmentation` is SegmentationClass, null where there is none." if has_maps else ""
        ),
        counts={f"pictures {'in no image set' if sets else 'without an XML file'}": unused} if unused else {},
    )
    return make_source(arguments, work, collection)


def _data_folder(folder: Path) -> Path:
    """The folder itself, or the only one of VOC's years below it."""
    check_folder(folder)
    if (folder / "Annotations").is_dir():
        return folder
    years = [path.parent for path in sorted([*folder.glob("VOC*/Annotations"), *folder.glob("VOC*/VOC*/Annotations")])]
    if len(years) > 1:
        raise ValueError(f"{folder} has {' and '.join(path.name for path in years)}; give one of them as --source.")
    return years[0] if years else folder


def _key(name: str) -> str:
    """What a picture and its XML file have in common: the path, without the folder of all and without the suffix."""
    path = PurePosixPath(name).with_suffix("")
    above = len(path.parts) > 1 and path.parts[0] in _PICTURE_FOLDERS
    return path.relative_to(path.parts[0]).as_posix() if above else path.as_posix()


def _image_sets(folder: Path) -> dict[str, str]:
    """Split of each picture that a file in ImageSets lists; nothing if there are none."""
    for sets in (folder / "ImageSets" / "Main", folder / "ImageSets" / "Segmentation"):
        splits: dict[str, str] = {}
        for name, split in _SETS.items():
            for key in _listed(sets / f"{name}.txt"):
                if splits.setdefault(key, split) != split:
                    raise ValueError(f"{sets}: {key} is in {splits[key]} and in {split}.")
        if not splits:
            splits = dict.fromkeys(_listed(sets / "trainval.txt"), "train")
        if splits:
            return splits
    return {}


def _listed(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.split()[0] for line in lines if line.strip()]


def _with_objects(picture: Described, path: Path) -> Described:
    """The picture with what its XML file says."""
    root = _parse(path)
    width, height = (_number(root.find(f"size/{side}")) for side in ("width", "height"))
    size = (int(width), int(height)) if width >= 1 and height >= 1 else None  # programs write 0 if they do not know
    names, boxes, difficult = [], [], []
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{path}: an object has no name.")
        x1, y1, x2, y2 = (_number(item.find(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
        names.append(name)
        boxes.append((x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1))
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    return replace(picture, boxes=boxes, categories=names, crowds=difficult, size=size)


def _parse(path: Path) -> ET.Element:
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Entities can be made to fill the memory or to name files; annotations have no use for them.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError(f"{path} defines a DOCTYPE or an ENTITY, which no annotation needs; remove it.")
        root = ET.fromstring(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}).") from error
    except ET.ParseError as error:
        raise ValueError(f"{path} is no whole XML file ({error}).") from error
    if root.tag != "annotation":
        raise ValueError(f"{path} holds <{root.tag}>, expected <annotation>, as Pascal VOC has it.")
    return root


def _number(element: ET.Element | None) -> float:
    try:
        return float(element.text or "") if element is not None else math.nan
    except ValueError:
        return math.nan
