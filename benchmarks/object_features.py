"""The features that `object_knn` looks for neighbours of, against the loop that one writes first.

Every object as it is, before another image, elsewhere, and alone. Two ways to the same features:

    ours    each image read once for all four; norms folded, eight pictures at a time, a thread for each core
    naive   the images read again for each of the four; the network as it was loaded, 64 pictures at a time

They must agree before anything counts. Rounds take turns. The search is measured by `benchmarks.object_knn`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import datasets
import numpy as np
from torch import Tensor

from benchmarks.photos import SYNTHETIC_SIZE, synthetic_jpeg
from benchmarks.timing import clock_for, clock_name, print_table, ratio, spread, time_interleaved
from modeling_decodepos.data.schema import build_features
from modeling_decodepos.modeling_decodepos import DecodePosModel
from training.evaluation.evaluation import Evaluation
from training.evaluation.models import EvaluatedModel, MapModel
from training.evaluation.object_features import (
    Objects,
    Show,
    alone_side,
    embed_shown,
    show_as_they_are,
    show_by_themselves,
    show_recontextualised,
    show_repositioned,
)
from training.evaluation.settings import Common

AGREE = 1e-4
"""Of the largest feature."""


class NaiveModel(EvaluatedModel):
    """The network as it was loaded, with as many pictures at a time as it is given."""

    def frozen(self, pixels: Tensor) -> DecodePosModel | MapModel:
        """The network."""
        return self.net

    def by_parts(self, call: Callable[[slice], Tensor], count: int) -> Tensor:
        """All at once."""
        return call(slice(0, count))


def write_photos(folder: Path, count: int, objects: int = 4) -> Path:
    """A data set of synthetic photos with some objects each."""
    height, width = SYNTHETIC_SIZE
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        corners = rng.uniform(0, 0.5, (objects, 2)) * (width, height)
        sides = rng.uniform(0.1, 0.45, (objects, 2)) * (width, height)
        annotation = {
            "bbox": np.hstack([corners, sides]).tolist(),
            "category": [0] * objects,
            "area": sides.prod(1).tolist(),
            "iscrowd": [False] * objects,
        }
        empty = dict.fromkeys(("segmentation", "license", "author", "original_url", "landing_url"))
        image = {"bytes": synthetic_jpeg(number), "path": None}
        regions: dict[str, list[object]] = {"bbox": [], "score": [], "source": []}
        shape = {"image": image, "image_id": f"{number:05}", "width": width, "height": height}
        rows.append(shape | {"objects": annotation, "regions": regions} | empty)
    (folder / "data").mkdir(parents=True)
    table = datasets.Dataset.from_list(rows, features=build_features(["thing"]))
    table.to_parquet(folder / "data" / "validation-00000-of-00001.parquet")
    return folder


def measure_features(
    model: str, data: str | None, size_px: int, photos: int, threads: int, rounds: int
) -> dict[str, float]:
    """Print times of both ways on validation images of `data`, or on synthetic ones; what the result line says."""
    with tempfile.TemporaryDirectory() as folder:
        data = data or str(write_photos(Path(folder) / "photos", photos))
        ours = Evaluation(Common(model, data, size_px=size_px, validation_images=photos))
        naive = Evaluation(ours.common)
        values = {each.name: getattr(ours.model, each.name) for each in fields(EvaluatedModel) if each.init}
        naive.model = NaiveModel(**values)
        images = ours.images("validation")
        shows: list[Show] = [
            show_as_they_are,
            show_recontextualised(images, 0),
            show_repositioned(0),
            show_by_themselves(alone_side(ours), every=True),
        ]

        def naively() -> list[Objects]:
            return [embed_shown(naive, images, "naive", [show])[0] for show in shows]

        def together() -> tuple[Objects, ...]:
            return embed_shown(ours, images, "ours", shows)

        found = together()
        apart = max(_difference(one, other) for one, other in zip(found, naively(), strict=True))
        if apart > AGREE:
            raise SystemExit(f"the features differ by {apart:.1e} of the largest one.")
        calls: dict[str, Callable[[], object]] = {"ours": together, "naive": naively}
        seconds = time_interleaved(calls, rounds, warmup=0, clock=clock_for(threads))
        shown = sum(map(len, found[1:])) + len(images)
    print(
        f"{len(images)} photos at {size_px} pixels, {shown} pictures through {model}, {clock_name(threads)}; the "
        f"features differ by {apart:.0e} of the largest one"
    )
    times = {name: spread(taken) for name, taken in seconds.items()}
    gain = ratio(seconds["naive"], seconds["ours"])
    rows = [(name, times[name], f"{shown / times[name].median:.1f}") for name in calls]
    print_table(("features", "seconds", "pictures/s"), rows)
    print(f"naive over ours: {gain}")
    return {"features_ratio": gain.median, "features_pictures_per_s": shown / times["ours"].median}


def _difference(one: Objects, other: Objects) -> float:
    return float((one.features - other.features).abs().max() / other.features.abs().max())
