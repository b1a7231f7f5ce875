"""What the three segmentation protocols share: pictures with label maps, and how predictions are scored on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_decodepos.diagnosis.statistics.estimates import jackknife_interval
from modeling_decodepos.schema import SEGMENTATION_IGNORE
from training.data.decoding import BrokenImage
from training.evaluation.evaluation import Evaluation
from training.evaluation.miou import confusion, segmentation_score
from training.evaluation.pictures import AnnotatedImages, Picture, batched, count_classes
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
    evaluation: Evaluation, images: AnnotatedImages, places: list[int], size: int
) -> Iterator[list[Picture]]:
    """Batches of pictures that can be read."""
    reader = evaluation.reader(images)

    def make(place: int) -> Picture:
        return images.picture(place, evaluation.common.size_px)

    yield from batched((picture for picture in reader.read(places, make) if picture is not None), size)
    for message in reader.broken:
        evaluation.note(f"an image of {images.name} is not counted: {message}")


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


def stack_labels(batch: list[Picture], height: int, width: int) -> Tensor:
    """(B, height, width) int64: the class of the pixel in the middle of each cell."""
    maps = []
    for picture in batch:
        assert picture.label_map is not None
        maps.append(F.interpolate(picture.label_map[None, None].float(), (height, width), mode="nearest-exact")[0, 0])
    return torch.stack(maps).long()


def score(
    evaluation: Evaluation, data: SegmentationData, predict: Callable[[Tensor], Tensor]
) -> Mapping[str, Measured]:
    """mIoU and pixel accuracy on the validation images, compared at the resolution of the label maps.

    Args:
        evaluation: Its processes share the images.
        data: The images and the number of classes.
        predict: (B, C, h, w) scores from (B, 3, S, S) uint8; resized to each label map before the best is taken.
    """
    places = evaluation.processes.own(range(len(data.validation)))
    tables: list[Tensor] = []
    batches = read_batches(evaluation, data.validation, places, evaluation.common.batch_size)
    total = -(-len(places) // evaluation.common.batch_size)
    for batch in evaluation.progress(batches, "validation", total, "batch"):
        for scores, picture in zip(predict(stack_pixels(batch)).float().cpu(), batch, strict=True):
            assert picture.label_map is not None
            full = F.interpolate(scores[None], picture.size, mode="bilinear", align_corners=False)[0]
            tables.append(confusion(full.argmax(0), picture.label_map, data.classes))
    every = [table for part in evaluation.processes.collect([tables]) for table in part]
    return _summary(every)


def _summary(tables: list[Tensor]) -> Mapping[str, Measured]:
    whole = torch.stack(tables)
    found = segmentation_score(whole.sum(0))

    def objects(table: Tensor) -> float:
        return float(segmentation_score(table).by_class[1:].nanmean())

    def interval(score: Callable[[Tensor], float]) -> tuple[float, float] | None:
        return jackknife_interval(lambda kept: score(whole[torch.from_numpy(kept)].sum(0)), len(whole))

    return {
        "miou": Measured(found.miou, interval(lambda table: segmentation_score(table).miou), len(tables)),
        "miou_objects": Measured(float(found.by_class[1:].nanmean()), interval(objects), len(tables)),
        "pixel_accuracy": Measured(
            found.pixel_accuracy, interval(lambda table: segmentation_score(table).pixel_accuracy), len(tables)
        ),
    }


def ignore_index() -> int:
    """The label that no loss counts."""
    return SEGMENTATION_IGNORE
