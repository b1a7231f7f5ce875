"""The contents of a COCO JSON of instances, annotations sorted by image.

Python objects of COCO's 450 MB would take 2.3 GB. Each annotation goes back to JSON text as soon as it is parsed,
which halves that.
"""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...pictures.boxes import as_box, box_faults, count_faults
from ...pictures.listing import path_inside

UNKNOWN_IMAGE = "of an image that is not listed"
UNKNOWN_CATEGORY = "of a category that is not listed"
_NEEDED = ("images", "annotations", "categories")
_KEPT = ("id", "category_id", "bbox", "area", "iscrowd", "segmentation")


class CocoImage(NamedTuple):
    """An image as the JSON lists it; sizes and texts are None where it has none."""

    id: int
    file_name: str
    width: int | None
    height: int | None
    license: int | None
    url: str | None


class CocoContents(NamedTuple):
    """The contents of a COCO JSON; images and categories by rising id."""

    images: list[CocoImage]
    annotations: Mapping[int, list[bytes]]  # of each image that has any, by its id: JSON texts, in the file's order
    categories: dict[int, str]
    licenses: dict[int, str]  # URL by id
    dropped: dict[str, int]  # annotations that are of no use, by reason
    annotation_count: int  # of these images, and without a list of all in the file
    has_outlines: bool  # whether any annotation of the file that can be used has one


class _Annotation(NamedTuple):
    image_id: int
    category_id: int
    has_outline: bool
    box: tuple[float, float, float, float]
    text: bytes


def read_annotations(path: Path, only: Collection[int] | None = None) -> CocoContents:
    """Reads a COCO JSON of instances, all of it or `only` the images of these ids with their annotations."""

    def shortened(value: dict[str, Any]) -> Any:
        if "image_id" not in value:
            return value
        image_id, category_id = (_whole(value, key, path, "annotations") for key in ("image_id", "category_id"))
        text = json.dumps({key: value[key] for key in _KEPT if key in value}, separators=(",", ":")).encode()
        return _Annotation(image_id, category_id, bool(value.get("segmentation")), as_box(value.get("bbox")), text)

    try:
        with path.open(encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=shortened)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no valid JSON ({error}). The file was cut short or edited; download it again."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected an object with images and annotations.")
    if missing := [key for key in _NEEDED if key not in content]:
        raise ValueError(
            f"{path} is no COCO file of instances: it has the keys {', '.join(content) or '(none)'}, "
            f"and {', '.join(missing)} is missing."
        )
    images, categories = _images(content, path), _categories(content, path)
    if not images or not categories:
        raise ValueError(f"{path} lists {len(images)} images and {len(categories)} categories, expected some of each.")

    annotations: list[_Annotation] = _listed(content, "annotations", path, _Annotation)
    of = [images.get(annotation.image_id) for annotation in annotations]
    sizes = [((image and image.width) or math.inf, (image and image.height) or math.inf) for image in of]
    faults = box_faults([annotation.box for annotation in annotations], *np.reshape(sizes, (-1, 2)).T).tolist()
    used = defaultdict(list)
    has_outlines = False
    for k, annotation in enumerate(annotations):
        if annotation.image_id not in images:
            faults[k] = UNKNOWN_IMAGE
        elif annotation.category_id not in categories:
            faults[k] = UNKNOWN_CATEGORY
        elif not faults[k]:
            used[annotation.image_id].append(annotation.text)
            has_outlines |= annotation.has_outline
    counted = [only is None or annotation.image_id in only for annotation in annotations]
    return CocoContents(
        images=[image for _, image in sorted(images.items()) if only is None or image.id in only],
        annotations=used,
        categories=dict(sorted(categories.items())),
        licenses=dict(_license(item, path) for item in _listed(content, "licenses", path)),
        dropped=count_faults(compress(faults, counted)),
        annotation_count=sum(counted),
        has_outlines=has_outlines,
    )


def _images(content: Mapping[str, Any], path: Path) -> dict[int, CocoImage]:
    images: dict[int, CocoImage] = {}
    for image in (_image(value, path) for value in _listed(content, "images", path)):
        if image.id in images:
            raise ValueError(f"{path}: image id {image.id} appears twice, so its annotations cannot be told apart.")
        images[image.id] = image
    return images


def _image(value: dict[str, Any], path: Path) -> CocoImage:
    image_id = _whole(value, "id", path, "images")
    sides = [value.get(side) for side in ("width", "height")]
    if any(side is not None and (type(side) is not int or side < 1) for side in sides):
        raise ValueError(f"{path}, image {image_id}: width and height are {sides}, expected whole positive numbers.")
    license_id, url = value.get("license"), value.get("flickr_url") or value.get("coco_url")
    return CocoImage(
        image_id,
        path_inside(value.get("file_name"), f"{path}, image {image_id}"),
        sides[0],
        sides[1],
        license_id if isinstance(license_id, int) else None,
        url if isinstance(url, str) else None,
    )


def _categories(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    categories: dict[int, str] = {}
    for item in _listed(content, "categories", path):
        number, name = _whole(item, "id", path, "categories"), str(item.get("name"))
        if number in categories:
            raise ValueError(f"{path}: {categories[number]!r} and {name!r} both have the category id {number}.")
        if name in categories.values():
            raise ValueError(f"{path}: two categories are called {name!r}; give each a name of its own.")
        categories[number] = name
    return categories


def _listed(content: Mapping[str, Any], key: str, path: Path, kind: type = dict) -> list[Any]:
    """A member that is a list of objects."""
    values = content.get(key, [])
    values = values if isinstance(values, list) else [values]
    if wrong := [value for value in values if not isinstance(value, kind)]:
        raise ValueError(f"{path}: {key} holds {str(wrong[0])[:40]}, not objects that belong there.")
    return values


def _whole(value: Mapping[str, Any], field: str, path: Path, where: str) -> int:
    number = value.get(field)
    if not isinstance(number, int) or isinstance(number, bool) or abs(number) >= 2**63:
        raise ValueError(
            f"{path}, {where}: {field} is {number!r}, expected a whole number; it has {', '.join(value)}."
        )
    return number


def _license(item: Mapping[str, Any], path: Path) -> tuple[int, str]:
    # Copies of the file that went through a careless program have backslashes before the slashes.
    url = str(item.get("url") or item.get("name")).replace("\\/", "/")
    return _whole(item, "id", path, "licenses"), url
