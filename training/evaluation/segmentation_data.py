"""What the three segmentation protocols share: pictures with label maps, and how predictions are scored on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_decodepos.data.schema import SEGMENTATION_IGNORE
from modeling_decodepos.diagnosis.statistics.estimates import jackknife_interval
from training.data.decoding import BrokenImage
from training.evaluation.annotated_images import AnnotatedImages, Picture, batched, count_classes
from training.evaluation.evaluation import Evaluation
from training.evaluation.miou import confusion, segmentation_scores
from training.evaluation.results import Measured


@dataclass(frozen=True)
class SegmentationData:
    """Both sides, and the number of classes, "no class" (0) among them."""

    train: AnnotatedImages
    validation: AnnotatedImages
    classes: int


def open_segmentation(evaluation: Evaluation) -> SegmentationData:
    """The images with label maps."""
    train, validation = (evaluation.images(side, masks=True, objects=False) for side in ("train", "validation"))
    return SegmentationData(train, validation, count_classes(train, validation) + 1)


def read_batches(
    evaluation: Evaluation, images: AnnotatedImages, what: str, places: Sequence[int] | None = None
) -> Iterator[list[Picture]]:
    """Pictures of this process's part (or of `places`) in batches, with a bar named `what`."""
    places = evaluation.processes.own(range(len(images))) if places is None else places
    pictures = evaluation.progress(read_pictures(evaluation, images, places), what, len(places))
    return batched(pictures, evaluation.common.batch_size)


def read_pictures(evaluation: Evaluation, images: AnnotatedImages, places: Sequence[int]) -> Iterator[Picture]:
    """The pictures that can be read."""

    def make(place: int) -> Picture:
        return images.picture(place, evaluation.common.size_px)

    return (picture for picture in evaluation.read(images, places, make) if picture is not None)


def read_all(evaluation: Evaluation, images: AnnotatedImages, places: list[int]) -> list[Picture]:
    """A picture for each place; one that cannot be read lends its place to the next one that can.

    In threads: worker processes would have to be started for every batch.
    """

    def read(place: int) -> Picture | BrokenImage:
        try:
            return images.picture(place, evaluation.common.size_px)
        except BrokenImage as error:
            return error

    pictures: list[Picture] = []
    with ThreadPoolExecutor(max(1, evaluation.common.num_workers)) as pool:
        for place, found in zip(places, pool.map(read, places), strict=True):
            further = 0
            while isinstance(found, BrokenImage):
                evaluation.note(f"an image of {images.name} is replaced by the next: {found}")
                further += 1
                if further == len(images):
                    raise ValueError(f"{images.name}: not a single image can be read ({found}).")
                found = read((place + further) % len(images))
            pictures.append(found)
    return pictures


def stack_pixels(batch: list[Picture]) -> Tensor:
    """(B, 3, S, S) uint8."""
    return torch.stack([picture.pixels for picture in batch])


def stack_labels(batch: list[Picture], height: int, width: int, offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """(B, height, width) int64: the class of the pixel in the middle of each cell.

    `offset` are the cells further right and down than a map of patches that this one is read; see `pool_regions`.
    """
    maps = []
    for picture in batch:
        labels = shift_labels(picture, height, width, offset)
        maps.append(F.interpolate(labels[None, None].float(), (height, width), mode="nearest-exact")[0, 0])
    return torch.stack(maps).long()


def shift_labels(picture: Picture, height: int, width: int, offset: tuple[float, float]) -> Tensor:
    """(H, W) label map of a picture, moved so that cells read with an offset lie on it as patches would.

    What comes in at the border is no class's.
    """
    labels = picture.label_map
    assert labels is not None
    (right, down), (rows, columns) = offset, labels.shape
    dy, dx = round(down * rows / height), round(right * columns / width)
    if (dy, dx) == (0, 0):
        return labels
    moved = labels.roll((dy, dx), (0, 1))
    moved[slice(0, dy) if dy > 0 else slice(rows + dy, rows)] = SEGMENTATION_IGNORE
    moved[:, slice(0, dx) if dx > 0 else slice(columns + dx, columns)] = SEGMENTATION_IGNORE
    return moved


def enlarge(scores: Tensor, size: tuple[int, int], offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """(B, C, *size) bilinear scores of pixels, from those of cells that lie an offset further right and down.

    Without an offset, the cells are patches: torch's own enlarging. Beyond the outermost cells their value goes on.
    """
    if offset == (0.0, 0.0):
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)
    places = [
        (torch.arange(pixels, device=scores.device) + 0.5) / pixels * cells - 0.5 + shift
        for pixels, cells, shift in zip(size, scores.shape[2:], reversed(offset), strict=True)
    ]
    rows, columns = (
        (1 - (place[:, None].clamp(0, cells - 1) - torch.arange(cells, device=scores.device)).abs()).clamp(min=0)
        for place, cells in zip(places, scores.shape[2:], strict=True)
    )
    return rows @ scores @ columns.T


def score(
    evaluation: Evaluation, data: SegmentationData, predict: Callable[[Tensor], Tensor], frozen: bool = True
) -> Mapping[str, Measured]:
    """mIoU and pixel accuracy on the validation images, compared at the resolution of the label maps.

    `predict` gives (B, C, h, w) scores of (B, 3, S, S) uint8, of the cells of the model's dense map if it is `frozen`;
    they are enlarged before the best is taken.
    """
    tables: list[Tensor] = []
    for batch in read_batches(evaluation, data.validation, "validation"):
        found = predict(stack_pixels(batch)).float().cpu()
        offset = evaluation.model.dense_offset(evaluation.common.size_px, found) if frozen else (0.0, 0.0)
        for scores, picture in zip(found, batch, strict=True):
            assert picture.label_map is not None
            full = enlarge(scores[None], picture.size, offset)[0]
            tables.append(confusion(full.argmax(0), picture.label_map, data.classes))
    whole = torch.stack([table for part in evaluation.processes.collect([tables]) for table in part])

    def scores_of(kept: np.ndarray, name: str) -> float:
        return segmentation_scores(whole[torch.from_numpy(kept)].sum(0))[name]

    return {
        name: Measured(value, jackknife_interval(functools.partial(scores_of, name=name), len(whole)), len(whole))
        for name, value in segmentation_scores(whole.sum(0)).items()
    }
