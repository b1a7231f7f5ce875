"""Annotated images as evaluation sees them: in the order of their ids, resized to one square size, with what is known.

The order of the rows in a data set changes nothing: images are visited by id, and whatever is drawn for an image is
drawn from (seed, id).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from modeling_decodepos.data.schema import SEGMENTATION_IGNORE
from modeling_decodepos.diagnosis.data.exchange import resize
from training.data.sources import FolderImages, ParquetImages, class_names, open_images

LEAST_SIDE = 16 / 224
"""Of the image, on both sides: a smaller region is a few pixels. 16 pixels of a 224-pixel view."""

T = TypeVar("T")


class MissingAnnotations(ValueError):
    """The data lack what a protocol needs: "objects" (boxes with classes) or "masks"."""

    def __init__(self, message: str, what: str):
        super().__init__(message)
        self.what = what


@dataclass(frozen=True)
class Picture:
    """One image and its annotations."""

    image_id: str
    pixels: Tensor  # (3, S, S) uint8
    size: tuple[int, int]  # height and width before resizing
    boxes: Tensor  # (R, 4) float32 unit boxes; crowds are left out
    labels: Tensor  # (R,) classes
    label_map: Tensor | None  # (H, W) uint8 at the original size: 0 no class, k = class k - 1, 255 = ignore


class AnnotatedImages:
    """A split of a data set with its annotations, in the order of image ids.

    A `limit` takes so many images only, the same for every model: drawn by the hash of their ids. `masks` keeps images
    with a label map only; without `objects`, boxes and classes may be missing.
    """

    def __init__(self, path: str, split: str, *, limit: int = 0, masks: bool = False, objects: bool = True):
        self.source = _open(path, split, objects)
        self.name, self.objects = self.source.name, objects
        self._has_map = _which_have_maps(self.source.rows)
        ids = [self.source.image_id(index) for index in range(len(self.source))]
        if twice := len(ids) - len(set(ids)):
            raise ValueError(f"{self.name}: {twice} images have an image_id that another one has; ids must be unique.")
        found = [index for index in range(len(ids)) if not masks or self._has_map[index]]
        if not found:
            raise MissingAnnotations(
                f"{self.name} has no image with a `segmentation` map, of {len(ids)} images. This protocol needs maps "
                "(one-channel PNG: 0 = no class, k = class k - 1, 255 = ignore).",
                "masks",
            )
        if limit and limit < len(found):
            found = sorted(found, key=lambda index: seed_of(0, ids[index]))[:limit]
        self.indices = sorted(found, key=lambda index: ids[index])
        self.ids = [ids[index] for index in self.indices]
        self.class_names = class_names(self.source)

    def __len__(self) -> int:
        return len(self.indices)

    def annotations(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """(R, 4) float32 unit boxes and (R,) int64 classes of an image, without crowds."""
        index = self.indices[place]
        if not self.objects:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        boxes = self.source.boxes(index, 0).astype(np.float32)
        labels = self.source.classes(index)
        if labels is None:
            if len(boxes):
                raise MissingAnnotations(
                    f"{self.name}, image {self.ids[place]}: its {len(boxes)} boxes have no class, or an unknown one "
                    "(objects.category). This protocol needs classes; position and context can be measured without: "
                    "decodepos-diagnose.",
                    "objects",
                )
            labels = np.zeros(0, np.int64)
        return boxes, labels

    def raw_objects(self, place: int) -> dict[str, Any]:
        """The `objects` of an image as they are stored: lists bbox (xywh in pixels), category, iscrowd, area."""
        values = self.source.rows.data.column("objects")[self.indices[place]].as_py() or {}
        return {name: values.get(name) or [] for name in ("bbox", "category", "iscrowd", "area")}

    def pixels(self, place: int) -> Tensor:
        """(3, H, W) uint8, as large as it is stored."""
        return torch.from_numpy(self.source.pixels(self.indices[place])).permute(2, 0, 1)

    def label_map(self, place: int) -> Tensor | None:
        """(H, W) uint8, or None."""
        index = self.indices[place]
        if not self._has_map[index]:
            return None
        encoded = self.source.rows.data.column("segmentation")[index].as_py()
        found = cv2.imdecode(np.frombuffer(encoded["bytes"], np.uint8), cv2.IMREAD_UNCHANGED)
        if found is None or found.ndim != 2 or found.dtype != np.uint8 or found.shape != self.source.size(index):
            shape = "nothing that can be decoded" if found is None else f"{found.dtype} of shape {found.shape}"
            raise ValueError(
                f"{self.name}, image {self.ids[place]}: its `segmentation` is {shape}; expected one 8-bit channel of "
                f"the image's size {self.source.size(index)}."
            )
        return torch.from_numpy(found)

    def picture(self, place: int, size_px: int) -> Picture:
        """The image, resized, and all that is known about it; `BrokenImage` where it cannot be read."""
        boxes, labels = self.annotations(place)
        pixels = self.pixels(place)
        return Picture(
            image_id=self.ids[place],
            pixels=resize(pixels, size_px, size_px),
            size=(pixels.shape[1], pixels.shape[2]),
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels),
            label_map=self.label_map(place),
        )


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def seed_of(seed: int, *names: str | int) -> int:
    """A seed for what is drawn for one named thing; it depends on nothing else."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def count_classes(*splits: AnnotatedImages) -> int:
    """Number of object classes of a data set: as many as have names, else up to the largest that occurs."""
    names = splits[0].class_names
    if names is not None:
        return len(names)
    largest = -1
    for split in splits:
        for place in range(len(split)):
            if split.objects:
                largest = max([largest, *split.annotations(place)[1].tolist()])
            elif (found := split.label_map(place)) is not None:
                inside = found[(found != SEGMENTATION_IGNORE)]
                largest = max(largest, int(inside.max()) - 1 if inside.numel() else -1)
    if largest < 0:
        raise ValueError(f"{splits[0].name} holds no class at all: there is nothing to tell apart.")
    return largest + 1


def _open(path: str, split: str, objects: bool) -> ParquetImages:
    # Label maps need no boxes: a provider that asks for none keeps data without them.
    source = open_images(path, split, "grid")
    if isinstance(source, FolderImages):
        raise ValueError(
            f"{path} is a folder of plain pictures without annotations: no protocol can run on it. Bring Parquet in "
            "the layout of modeling_decodepos/data/schema.py."
        )
    assert isinstance(source, ParquetImages)
    if not objects:
        return source
    if "objects" not in source.rows.column_names:
        raise MissingAnnotations(
            f"{source.name} has no column `objects`. This protocol needs boxes with classes.", "objects"
        )
    source = ParquetImages(source.rows, path, split, "objects")
    source.check_objects()
    if not source.is_annotated:
        raise MissingAnnotations(
            f"{source.name}: its `objects` hold no box at all. This protocol needs boxes with classes.", "objects"
        )
    return source


def _which_have_maps(rows: Any) -> np.ndarray:
    if "segmentation" not in rows.column_names:
        return np.zeros(len(rows), dtype=bool)
    return np.asarray(rows.data.column("segmentation").is_valid())
