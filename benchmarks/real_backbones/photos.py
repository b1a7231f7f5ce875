"""Real photos: whole ones to take statistics on, and objects of classes that a classifier should name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.sources import ImageSource, ParquetImages, open_images

# COCO's names and the classes of ImageNet that are the same thing.
SEEN_AS: dict[str, tuple[int, ...]] = {
    "airplane": (404, 895),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "bus": (654, 779, 874),
    "cat": tuple(range(281, 286)),
    "dog": tuple(range(151, 269)),
    "train": (466, 547, 705, 820, 829),
}
OBJECTS_PER_CLASS = 20
LEAST_SIDE_PX = 64


class Photos:
    """The photos of a folder: Parquet files of ours, or plain pictures, which have no objects."""

    def __init__(self, folder: Path):
        self.images: ImageSource = open_images(folder)
        self._objects: list[tuple[np.ndarray, str]] | None = None

    def whole(self, count: int, size_px: int) -> Tensor:
        """(B, 3, S, S) uint8: whole photos, evenly spaced over all there are."""
        rows = np.linspace(0, len(self.images) - 1, min(count, len(self.images))).astype(int)
        return torch.stack([resize(self.images.pixels(int(row)), size_px) for row in rows])

    def objects(self, size_px: int) -> tuple[Tensor, list[str]]:
        """(N, 3, S, S) uint8 cuts of objects, each the largest of its photo, and their names in `SEEN_AS`."""
        if self._objects is None:
            self._objects = self._cut_objects()
        cuts = [resize(cut, size_px) for cut, _ in self._objects]
        return torch.stack(cuts) if cuts else torch.zeros(0, 3, size_px, size_px), [name for _, name in self._objects]

    def _cut_objects(self) -> list[tuple[np.ndarray, str]]:
        images = self.images
        if not (isinstance(images, ParquetImages) and images.region_source == "objects"):
            return []
        names = images.rows.features["objects"]["category"].feature.names
        cuts: dict[str, list[np.ndarray]] = {name: [] for name in SEEN_AS}
        for row in range(len(images)):
            classes = images.classes(row)
            if classes is None or not len(classes):
                continue
            height, width = images.size(row)
            boxes = (images.boxes(row, 0) * (width, height, width, height)).round().astype(int)
            sides = boxes[:, 2:] - boxes[:, :2]
            largest = sides.prod(1).argmax()
            own = cuts.get(names[classes[largest]])
            if own is not None and len(own) < OBJECTS_PER_CLASS and sides[largest].min() >= LEAST_SIDE_PX:
                x0, y0, x1, y1 = boxes[largest]
                own.append(images.pixels(row)[y0:y1, x0:x1])
        return [(cut, name) for name, own in cuts.items() for cut in own]


def resize(pixels: np.ndarray, size_px: int) -> Tensor:
    """(3, S, S) uint8 from (H, W, 3)."""
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    return F.interpolate(values, (size_px, size_px), mode="bilinear", antialias=True)[0].round().byte()
