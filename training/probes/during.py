"""What the network has learned so far, measured while it trains, always on the same images.

    object_knn               share of regions whose class their 20 nearest neighbours tell (where there are classes)
    object_knn_class_mean    the same, mean over classes; …_low and …_high: its 95 % interval over pictures
    object_knn_same_regions  the same (mean over classes) of the largest region of each picture only
    object_knn_surroundings  of these, each where it is, but before another picture
    object_knn_moved         of these, each before another picture, smaller and elsewhere
    position_r2              how much of a region's place its feature tells: 1 all, 0 nothing
    context_leak             share of the surroundings in a region's feature: 0 none, 1/2 as much as its content
    region_retrieval         share of regions whose nearest neighbour, among all, is themselves before another image
                             in another place
    measured_regions         how many queries there are
    exchanged_regions        of how many of them something was exchanged

Neighbours and regressions learn from images of the training split (the gallery) and are tested on others (the
queries). Everything is drawn once from the seed; the images are decoded once and kept as 8-bit views.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modeling_decodepos.diagnosis import context_leak, knn_accuracy, knn_neighbours, knn_predict, position_r2
from modeling_decodepos.diagnosis.data.exchange import draw_swaps, largest_regions, move_before_next, resize
from modeling_decodepos.diagnosis.data.probe import LEAST_SIDE, RegionImages, Swaps
from modeling_decodepos.diagnosis.statistics.estimates import jackknife_interval
from modeling_decodepos.modeling_decodepos import DecodePosModel
from training.data.decoding import BrokenImage
from training.data.kept_aside import VALIDATION, all_but, kept_aside
from training.data.randomness import Purpose, stream
from training.data.sources import ImageSource, NoSuchSplit, ParquetImages, class_names, open_images
from training.recipe import DataArguments, RunArguments
from training.views.normalise import normalise, statistics_of

NEIGHBOURS = 20
_MOST_REGIONS = 16  # per image: one crowded photo must not decide


@dataclass(frozen=True)
class MeasuredImages(RegionImages):
    """The images of one side, gallery or queries, with their regions and where they come from."""

    name: str  # of the split, for people
    source: ImageSource
    indices: list[int]  # in the source

    @property
    def centres(self) -> Tensor:
        """(N, 2) centres of all regions."""
        boxes = self.every_box
        return (boxes[:, :2] + boxes[:, 2:]) / 2

    def describe(self) -> str:
        """In a few words."""
        return f"{self.name}: {len(self.boxes)} images, {sum(map(len, self.boxes))} regions"


@dataclass(frozen=True)
class NearestRegions:
    """The gallery regions that are nearest to some query regions, as numbers among all regions of their side."""

    queries: tuple[int, ...]
    nearest: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NearestRegions:
        """What `to_dict` wrote."""
        return cls(tuple(values["queries"]), tuple(tuple(row) for row in values["nearest"]))


@dataclass(frozen=True)
class OnlineMeasures:
    """Fixed images, and the measures of any model on them."""

    gallery: MeasuredImages
    queries: MeasuredImages
    exchanges: Swaps | None
    class_names: tuple[str, ...] | None

    def describe(self) -> dict[str, Any]:
        """What is measured on, for run.json and the report; `chance` is what naming one class always gives."""
        about: dict[str, Any] = {"gallery": self.gallery.describe(), "queries": self.queries.describe(), "classes": 0}
        if self.queries.labels is not None:
            counts = self.queries.labels.bincount()
            about["classes"] = int((counts > 0).sum())
            frequent = float(counts.max() / counts.sum())
            about["chance"] = {"object_knn": frequent, "object_knn_class_mean": 1 / about["classes"]}
        return about

    def measure(self, model: DecodePosModel) -> dict[str, float]:
        """All measures that the data allow, by name."""
        gallery, queries = (embed(model, side.pixels, side.boxes) for side in (self.gallery, self.queries))
        measures: dict[str, float] = {"measured_regions": len(queries)}
        shown: dict[str, Tensor] = {}
        if self.exchanges is not None:
            shown = _embed_exchanges(model, self.exchanges)
            measures |= _measure_exchanges(shown, self.exchanges.regions, gallery, queries)
        if self.gallery.labels is not None and self.queries.labels is not None:
            measures |= self._name_classes(gallery, self.gallery.labels, queries, self.queries.labels, shown)
        measures["position_r2"] = position_r2(gallery, self.gallery.centres, queries, self.queries.centres)
        return {name: value for name, value in measures.items() if math.isfinite(value)}

    def _name_classes(
        self, gallery: Tensor, gallery_labels: Tensor, queries: Tensor, labels: Tensor, shown: dict[str, Tensor]
    ) -> dict[str, float]:
        """How well neighbours name the classes of the queries, and of those with something about them exchanged."""
        predicted = knn_predict(gallery, gallery_labels, queries, k=NEIGHBOURS)
        accuracy = knn_accuracy(predicted, labels)
        found = {"object_knn": accuracy.micro, "object_knn_class_mean": accuracy.class_mean}
        if interval := _interval(predicted, labels, self.queries.owners, len(self.queries)):
            found |= dict(zip(("object_knn_class_mean_low", "object_knn_class_mean_high"), interval, strict=True))
        if self.exchanges is not None:
            own = labels[self.exchanges.regions]
            found["object_knn_same_regions"] = knn_accuracy(predicted[self.exchanges.regions], own).class_mean
            for name in ("surroundings", "moved"):
                named = knn_predict(gallery, gallery_labels, shown[name], k=NEIGHBOURS)
                found[f"object_knn_{name}"] = knn_accuracy(named, own).class_mean
        return found

    def shown_regions(self, count: int = 6) -> list[int]:
        """Query regions for pictures, by their numbers among all.

        By rule, not choice: the `largest_regions` of the query images in turn, of a class that was not shown yet.
        """
        labels, shown = self.queries.labels, set()
        chosen: list[int] = []
        for region in largest_regions(self.queries):
            label = region if labels is None else int(labels[region])
            if label not in shown and len(chosen) < count:
                chosen.append(region)
                shown.add(label)
        return chosen

    def neighbours(self, model: DecodePosModel, queries: int = 6, count: int = 5) -> NearestRegions:
        """The `count` nearest gallery regions of a few query regions (`shown_regions`)."""
        chosen = self.shown_regions(queries)
        gallery, every = (embed(model, side.pixels, side.boxes) for side in (self.gallery, self.queries))
        nearest = knn_neighbours(gallery, every[chosen], count)[1]
        return NearestRegions(tuple(chosen), tuple(tuple(row) for row in nearest.tolist()))


def build_online(data: DataArguments, run: RunArguments, size_px: int) -> OnlineMeasures | None:
    """The measures of a run; None where the recipe wants none.

    Half of the images are the gallery, half the queries. Queries come from the `validation` split; without one, they
    are pictures that are kept aside, or else images of the training split that are not in the gallery: `describe` says
    which.
    """
    if run.measure_steps == 0:
        return None
    rng = stream(run.seed, Purpose.MEASURES)
    source, name = _open(data, data.split), data.split
    kept = kept_aside(data, run.seed, len(source))
    order = rng.permutation(all_but(kept, len(source)))
    held_out, query_name = source, f"other images of {name}, which training sees"
    if data.split != VALIDATION:
        with suppress(NoSuchSplit):
            held_out, query_name = _open(data, VALIDATION), VALIDATION
    if len(kept):
        query_order, query_name = rng.permutation(kept), f"kept aside of {name}"
    elif held_out is source:
        order, query_order = np.split(order, [len(order) // 2])
    else:
        query_order = rng.permutation(len(held_out))
    half = run.measure_images // 2
    gallery = _read_images(name, source, order, half, size_px, rng)
    queries = _read_images(query_name, held_out, query_order, half, size_px, rng)
    # The largest region of each image, with its surroundings, its content, or surroundings and place exchanged.
    regions = largest_regions(queries)
    exchanges = draw_swaps(queries, regions, move_before_next(queries, regions), rng) if len(regions) > 1 else None
    return OnlineMeasures(gallery, queries, exchanges, class_names(source))


@torch.no_grad()
def embed(model: nn.Module, pixels: Tensor, boxes: list[Tensor], batch_size: int = 64) -> Tensor:
    """(N, D) features, on the CPU, of all regions of (I, 3, S, S) uint8 images, image by image.

    The model is called as `model(pixel_values, regions=boxes)` and returns `region_embeddings` (B, R, D), of which
    `valid_regions` (B, R) are regions. It runs in evaluation mode, and each of its modules is left as it was found.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = {module: module.training for module in model.modules()}
    statistics = statistics_of(model)
    model.eval()
    features = []
    try:
        for start in range(0, len(pixels), batch_size):
            batch = pixels[start : start + batch_size].to(device, memory_format=torch.channels_last)
            pixel_values = normalise(batch, *statistics)
            output = model(pixel_values, regions=[rows.to(device) for rows in boxes[start : start + batch_size]])
            features.append(output.region_embeddings[output.valid_regions].float().cpu())
    finally:
        for module, was_training in training.items():
            module.training = was_training
    return torch.cat(features)


def _embed_exchanges(model: DecodePosModel, exchanges: Swaps) -> dict[str, Tensor]:
    """(E, D) features of the regions, by what was exchanged."""
    in_place, elsewhere = list(exchanges.boxes[:, None]), list(exchanges.moved_boxes[:, None])
    return {
        "surroundings": embed(model, exchanges.other_surroundings, in_place),
        "content": embed(model, exchanges.other_content, in_place),
        "moved": embed(model, exchanges.moved, elsewhere),
    }


def _measure_exchanges(
    shown: dict[str, Tensor], regions: Tensor, gallery: Tensor, queries: Tensor
) -> dict[str, float]:
    leak = context_leak(queries[regions], shown["surroundings"], shown["content"])
    nearest = knn_neighbours(torch.cat([queries, gallery]), shown["moved"], 1)[1][:, 0]
    found = {"context_leak": leak.leak, "region_retrieval": float((nearest == regions).double().mean())}
    return found | {"exchanged_regions": len(regions)}


def _interval(predicted: Tensor, labels: Tensor, owners: Tensor, images: int) -> tuple[float, float] | None:
    """95 % interval over images of the share that is named right, mean over classes."""

    def score(kept: np.ndarray) -> float:
        regions = torch.from_numpy(kept)[owners]
        return knn_accuracy(predicted[regions], labels[regions]).class_mean

    return jackknife_interval(score, images)


def _open(data: DataArguments, split: str) -> ImageSource:
    """A split with its annotations as regions; where it has none, with the regions that the run trains on."""
    source = open_images(data.data, split, "random")  # needs no column
    annotated = isinstance(source, ParquetImages) and source.is_annotated
    return open_images(data.data, split, "objects" if annotated else data.region_source)


def _read_images(
    name: str, source: ImageSource, order: np.ndarray, count: int, size: int, rng: np.random.Generator
) -> MeasuredImages:
    """The first `count` images, in the given order, that can be read and have a region that is large enough."""
    indices: list[int] = []
    pixels, boxes, labels = [], [], []
    for index in order.tolist():
        if len(indices) == count:
            break
        try:
            own_boxes, own_labels = _usable_regions(source, index, rng)
            if len(own_boxes) == 0:
                continue
            image = source.pixels(index)
        except BrokenImage:  # training names it; measures do without it
            continue
        indices.append(index)
        pixels.append(resize(torch.from_numpy(image).permute(2, 0, 1), size, size))
        boxes.append(torch.from_numpy(own_boxes))
        labels.append(own_labels)
    if len(indices) < 2:
        raise ValueError(
            f"measure_steps: {name} has {len(indices)} readable images with a region of at least {LEAST_SIDE:.0%} of "
            "the view on both sides; at least 2 are needed. Set measure_steps to 0 to train without measures."
        )
    known = [item for item in labels if item is not None]
    every = torch.from_numpy(np.concatenate(known)) if len(known) == len(labels) else None
    return MeasuredImages(torch.stack(pixels), boxes, every, name, source, indices)


def _usable_regions(source: ImageSource, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """(R, 4) float32 unit boxes that are large enough, and their classes if all are known."""
    boxes = source.boxes(index, 0).astype(np.float32)
    kept = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(1))
    if len(kept) > _MOST_REGIONS:
        kept = np.sort(rng.choice(kept, _MOST_REGIONS, replace=False))
    classes = source.classes(index) if isinstance(source, ParquetImages) else None
    return boxes[kept], None if classes is None else classes[kept]
