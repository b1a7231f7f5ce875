"""Which annotations each image of a COCO JSON has, and where in the file their text lies.

The file is read once, element by element. What stays in memory is a few numbers per annotation.
"""

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pictures.boxes import as_box, box_faults, count_faults
from ...pictures.picture_files import path_inside
from .json_stream import JsonObject, Member

UNKNOWN_IMAGE = "of an image that is not listed"
UNKNOWN_CATEGORY = "of a category that is not listed"
_NEEDED = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoImage:
    """An image as the JSON lists it; sizes and texts are None where it has none."""

    id: int
    file_name: str
    width: int | None
    height: int | None
    license: int | None
    url: str | None


@dataclass(frozen=True)
class CocoIndex:
    """The contents of a COCO JSON.

    Attributes:
        images: by rising id.
        categories: name by id, by rising id.
        licenses: URL by id.
        dropped: annotations that are of no use, by reason.
        annotation_count: of all annotations in the file.
        has_outlines: whether any annotation that is used has an outline.
    """

    images: list[CocoImage]
    categories: dict[int, str]
    licenses: dict[int, str]
    dropped: dict[str, int]
    annotation_count: int
    has_outlines: bool
    _places: NDArray[np.int64]
    _bounds: NDArray[np.int64]

    def places(self) -> Iterator[tuple[CocoImage, list[list[int]]]]:
        """Each image with the place and length of its annotations in the file, in the file's order."""
        for number, image in enumerate(self.images):
            yield image, self._places[self._bounds[number] : self._bounds[number + 1]].tolist()


def index_annotations(path: Path) -> CocoIndex:
    """Reads a COCO JSON of instances."""
    images: dict[int, CocoImage] = {}
    categories: dict[int, str] = {}
    licenses: dict[int, str] = {}
    # Per annotation: where its text is and how long, image, category, whether it has an outline; and its box.
    numbers, boxes = array("q"), array("d")
    content = JsonObject(path, ("images", "annotations"))
    for member in content:
        if member.key == "images":
            image = _image(member, path)
            if image.id in images:
                raise ValueError(
                    f"{path}: image id {image.id} appears twice, so its annotations cannot be told apart."
                )
            images[image.id] = image
        elif member.key == "annotations":
            value = _fields(member, path, ("image_id", "category_id"))
            numbers.extend((member.start, member.length, value["image_id"], value["category_id"]))
            numbers.append(bool(value.get("segmentation")))
            boxes.extend(as_box(value.get("bbox")))
        elif member.key == "categories":
            categories = _categories(member, path)
        elif member.key == "licenses":
            licenses = {_whole(item, "id", path): _license(item) for item in _listed(member, path)}

    if missing := [key for key in _NEEDED if key not in content.keys]:
        raise ValueError(
            f"{path} is no COCO file of instances: it has the keys {', '.join(content.keys) or '(none)'}, "
            f"and {', '.join(missing)} is missing."
        )
    if not images or not categories:
        raise ValueError(f"{path} lists {len(images)} images and {len(categories)} categories, expected some of each.")
    return _grouped(
        dict(sorted(images.items())), dict(sorted(categories.items())), licenses, np.array(numbers), np.array(boxes)
    )


def _grouped(
    images: dict[int, CocoImage],
    categories: dict[int, str],
    licenses: dict[int, str],
    numbers: NDArray[np.int64],
    boxes: NDArray[np.float64],
) -> CocoIndex:
    start, length, image_id, category, outlined = numbers.reshape(-1, 5).T
    ids = np.array(list(images), np.int64)
    place = np.searchsorted(ids, image_id).clip(max=len(ids) - 1)
    sizes = np.array([(image.width or math.inf, image.height or math.inf) for image in images.values()])
    faults = box_faults(boxes, *sizes[place].T).astype(object)
    faults[~np.isin(category, list(categories))] = UNKNOWN_CATEGORY
    faults[ids[place] != image_id] = UNKNOWN_IMAGE

    used = np.flatnonzero(faults == "")
    used = used[np.argsort(place[used], kind="stable")]
    bounds = np.searchsorted(place[used], np.arange(len(ids) + 1))
    return CocoIndex(
        images=list(images.values()),
        categories=categories,
        licenses=licenses,
        dropped=count_faults(faults),
        annotation_count=len(start),
        has_outlines=bool(outlined[used].any()),
        _places=np.stack([start[used], length[used]], axis=1),
        _bounds=bounds,
    )


def _image(member: Member, path: Path) -> CocoImage:
    value = _fields(member, path, ("id",))
    name = path_inside(value.get("file_name"), f"{path}, image {value['id']}")
    sides = [value.get(side) for side in ("width", "height")]
    if any(side is not None and (not isinstance(side, int) or side < 1) for side in sides):
        raise ValueError(
            f"{path}, image {value['id']}: width and height are {sides}, expected whole positive numbers."
        )
    license_id, url = value.get("license"), value.get("flickr_url") or value.get("coco_url")
    return CocoImage(
        value["id"],
        name,
        sides[0],
        sides[1],
        license_id if isinstance(license_id, int) else None,
        url if isinstance(url, str) else None,
    )


def _fields(member: Member, path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    """An element as an object that has these whole numbers."""
    if not isinstance(member.value, dict):
        raise ValueError(f"{path}, byte {member.start:,}: {member.key} holds {str(member.value)[:40]}, not objects.")
    for field in needed:
        _whole(member.value, field, path, f", {member.key} at byte {member.start:,}")
    return member.value


def _whole(value: Mapping[str, Any], field: str, path: Path, where: str = "") -> int:
    number = value.get(field)
    if not isinstance(number, int) or abs(number) >= 2**63:
        raise ValueError(f"{path}{where}: {field} is {number!r}, expected a whole number; it has {', '.join(value)}.")
    return number


def _listed(member: Member, path: Path) -> list[dict[str, Any]]:
    if not isinstance(member.value, list) or not all(isinstance(item, dict) for item in member.value):
        raise ValueError(f"{path}: {member.key} is not a list of objects.")
    return member.value


def _categories(member: Member, path: Path) -> dict[int, str]:
    categories: dict[int, str] = {}
    for item in _listed(member, path):
        number, name = _whole(item, "id", path), str(item.get("name"))
        if number in categories:
            raise ValueError(f"{path}: {categories[number]!r} and {name!r} both have the category id {number}.")
        if name in categories.values():
            raise ValueError(f"{path}: two categories are called {name!r}; give each a name of its own.")
        categories[number] = name
    return categories


def _license(item: Mapping[str, Any]) -> str:
    # Copies of the file that went through a careless program have backslashes before the slashes.
    return str(item.get("url") or item.get("name")).replace("\\/", "/")
