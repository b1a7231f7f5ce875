"""`objects` of a foreign data set: a struct of lists or a list of structs, under the field names in use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pictures.boxes import as_box

CATEGORY_FIELDS = ("category", "categories", "label", "labels", "category_id")


@dataclass(frozen=True)
class ObjectLists:
    """The annotations of one image: boxes (N, 4) as they are there, and a list of N of everything else."""

    boxes: NDArray[np.float64]
    categories: list[Any]
    areas: list[float | None]
    crowds: list[bool]


def read_objects(value: Any, where: str) -> ObjectLists:
    """The annotations in a value of `objects`."""
    fields = value or {}
    if isinstance(fields, list) and all(isinstance(item, dict) for item in fields):
        fields = {key: [item.get(key) for item in fields] for key in fields[0]}
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: objects is {str(value)[:40]!r}, expected bbox and category of each object.")
    boxes = fields.get("bbox") or []
    count = len(boxes) if isinstance(boxes, list) else 0
    found = {
        "bbox": boxes,
        "category": next((fields[field] for field in CATEGORY_FIELDS if fields.get(field) is not None), []),
        "area": fields.get("area") or [None] * count,
        "iscrowd": fields.get("iscrowd") or [False] * count,
    }
    for name, values in found.items():
        if not isinstance(values, list):
            raise ValueError(f"{where}: {name} of objects is {str(values)[:40]!r}, expected a list.")
        if len(values) != count:
            raise ValueError(f"{where}: objects has {count} boxes and {len(values)} values of {name}.")
    return ObjectLists(
        boxes=np.array([as_box(box) for box in boxes], np.float64).reshape(-1, 4),
        categories=found["category"],
        areas=[area if isinstance(area, int | float) and math.isfinite(area) else None for area in found["area"]],
        crowds=[bool(crowd) for crowd in found["iscrowd"]],
    )


class Categories:
    """The categories that occur: numbers from 0, or names."""

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self.largest = -1

    def add(self, categories: Sequence[Any], where: str) -> None:
        """Notes the categories of an image."""
        for category in categories:
            if isinstance(category, str):
                self.texts.add(category)
            elif type(category) is int and category >= 0:
                self.largest = max(self.largest, category)
            else:
                raise ValueError(f"{where}: category {category!r}, expected a number from 0 or a name.")

    def names(self, known: Sequence[str] | None) -> tuple[str, ...]:
        """Class names, in the order of the numbers: the known ones, or else the names that occur."""
        names = tuple(known or sorted(self.texts))
        if not names and self.largest >= 0:
            raise ValueError(
                f"Categories are numbers (up to {self.largest}) and nothing names them. "
                "Give their names: --class_names FILE, one per line, the first for category 0."
            )
        if self.largest >= len(names):
            raise ValueError(f"Category {self.largest} occurs, but there are only {len(names)} class names.")
        if unnamed := sorted(self.texts - set(names)):
            raise ValueError(f"Category {unnamed[0]!r} occurs, but is not among the {len(names)} class names.")
        return names


def category_number(category: Any, names: Sequence[str]) -> int:
    """The number of a category that is given as a number or by name."""
    return names.index(category) if isinstance(category, str) else int(category)


def load_class_names(path: Path | None) -> list[str] | None:
    """Class names from a text file, one per line."""
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"--class_names {path} is not there, expected a text file with a name per line.")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
