"""What a training did to a network, beside the network it began with: `python -m benchmarks.remedy`.

    python -m benchmarks.remedy START AFTER [AFTER …] --data DIR --output FILE --name NAME

Several AFTER are the same training with other seeds. On annotated photos that no training saw: object k-NN (class mean
and micro) of objects as they are, before other surroundings, moved, before an empty page, and alone; context leak;
place of regions; and of whole pictures, how much of their classes their nearest neighbours have. Every situation is of
the same objects, those with surroundings. Gains are paired: start and after on the same pictures; their interval joins
the jackknife over pictures with Student's t over seeds. Definitions are those of `object_knn` and of
`benchmarks.networks`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import logging as transformers_logging

from benchmarks.networks import NEIGHBOURS, SIZE_PX, TEMPERATURE, embed_exchanged, probed_objects
from benchmarks.timing import print_table
from dataset_scripts.files import write_json
from modeling_decodepos.diagnosis.data.exchange import exchange_surroundings, has_surroundings
from modeling_decodepos.diagnosis.measures.objects import measure_leak
from modeling_decodepos.diagnosis.measures.position import probe_regions
from modeling_decodepos.diagnosis.statistics.estimates import (
    Estimate,
    difference,
    half_width_95,
    jackknife_interval,
    pool_seeds,
)
from modeling_decodepos.diagnosis.statistics.knn import knn_accuracy, knn_neighbours, knn_vote
from modeling_decodepos.imagenet import mean_colour
from training.evaluation.annotated_images import Picture
from training.evaluation.evaluation import Evaluation
from training.evaluation.object_features import (
    Objects,
    Show,
    Shown,
    alone_side,
    embed_shown,
    show_as_they_are,
    show_by_themselves,
    show_recontextualised,
    show_repositioned,
)
from training.evaluation.settings import Common
from training.provenance import commit

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
Score = Callable[[np.ndarray], float]
"""Of flags of the pictures that count."""


@dataclass(frozen=True)
class Seen:
    """What one network made of the pictures, by name: scores of any part of them, and estimates with their draws."""

    scores: dict[str, Score]
    estimates: dict[str, Estimate]  # of leak and place
    images: int


def show_blank(colour: tuple[int, ...]) -> Show:
    """Each object that has surroundings where it is, before a page of one colour."""

    def show(picture: Picture) -> Shown:
        as_is = show_as_they_are(picture)
        chosen = has_surroundings(as_is.boxes)
        page = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand_as(picture.pixels)
        pages = [exchange_surroundings(picture.pixels, box.numpy(), page) for box in as_is.boxes[chosen]]
        pixels = torch.stack(pages) if pages else picture.pixels[None][:0]
        return Shown(pixels, as_is.boxes[chosen], as_is.labels[chosen], as_is.numbers[chosen])

    return show


def show_whole(picture: Picture) -> Shown:
    """The picture as one region."""
    none = torch.zeros(1, dtype=torch.int64)
    return Shown(picture.pixels[None], WHOLE, none, none)


def look(spec: str, common: Common) -> Seen:
    """Every score of one network."""
    evaluation = Evaluation(dataclasses.replace(common, model=spec))
    known, asked = evaluation.images("train"), evaluation.images("validation")
    side, colour = alone_side(evaluation), mean_colour(evaluation.model.mean)
    gallery, gallery_alone, gallery_whole = embed_shown(
        evaluation, known, "gallery", [show_as_they_are, show_by_themselves(side, every=True), show_whole]
    )
    shows: dict[str, Show] = {
        "as is": show_as_they_are,
        "other surroundings": show_recontextualised(asked, common.seed),
        "moved": show_repositioned(common.seed),
        "empty page": show_blank(colour),
        "alone": show_by_themselves(side),
        "whole": show_whole,
    }
    queries = dict(zip(shows, embed_shown(evaluation, asked, "queries", list(shows.values())), strict=True))
    whole = queries.pop("whole")
    queries["as is"] = _only(queries["as is"], has_surroundings(queries["as is"].boxes))
    scores: dict[str, Score] = {}
    for name, objects in queries.items():
        side_of = gallery_alone if name == "alone" else gallery
        cosines, places = knn_neighbours(side_of.features, objects.features, NEIGHBOURS)
        found = knn_vote(cosines, side_of.labels[places], TEMPERATURE)
        for kind in ("class_mean", "micro"):
            scores[f"{kind.replace('_', ' ')}, {name}"] = _accuracy(found, objects, kind)
    scores["whole pictures"] = _shared_classes(gallery_whole, whole, *(_class_sets(side) for side in (known, asked)))
    probed = probed_objects(asked, common.size_px, len(asked))
    rows, centres = embed_exchanged(evaluation.model.embed, probed, common.seed)
    leak = measure_leak(rows["as is"], rows["surroundings"], rows["content"])["context_leak"]
    return Seen(scores, {"leak": leak, "place": probe_regions(rows["moved"], centres)}, len(asked))


def _only(objects: Objects, kept: Tensor) -> Objects:
    parts: dict[str, Any] = {f.name: getattr(objects, f.name)[kept] for f in dataclasses.fields(objects)}
    return Objects(**parts)


def _accuracy(found: Tensor, objects: Objects, kind: str) -> Score:
    def score(kept: np.ndarray) -> float:
        chosen = torch.from_numpy(kept)[objects.owners]
        return float(getattr(knn_accuracy(found[chosen], objects.labels[chosen]), kind))

    return score


def _class_sets(images: Any) -> list[set[int]]:
    return [set(images.annotations(place)[1].tolist()) for place in range(len(images))]


def _shared_classes(gallery: Objects, queries: Objects, known: list[set[int]], asked: list[set[int]]) -> Score:
    """Mean share of classes that a picture and its nearest neighbours have in common, of those that either has."""
    places = knn_neighbours(gallery.features, queries.features, NEIGHBOURS)[1]
    shared = np.array(
        [
            fmean(_in_common(asked[one], known[int(gallery.owners[place])]) for place in row)
            for one, row in zip(queries.owners.tolist(), places.tolist(), strict=True)
        ]
    )
    owners = queries.owners.numpy()
    return lambda kept: float(shared[kept[owners]].mean())


def _in_common(one: set[int], other: set[int]) -> float:
    return len(one & other) / max(len(one | other), 1)


@dataclass(frozen=True)
class Gain:
    """One number before, after (of every seed), and the change with its 95 % interval."""

    name: str
    start: float
    after: list[float]
    low: float | None
    high: float | None

    def row(self) -> tuple[str, ...]:
        """As it is printed."""
        mean = fmean(self.after)
        values, ratio = (
            " ".join(f"{value:.3f}" for value in self.after),
            f"x {mean / self.start:.2f}" * (self.start > 0),
        )
        interval = "" if self.low is None else f" ({self.low:+.3f} to {self.high:+.3f})"
        return self.name, f"{self.start:.3f}", values, f"{mean - self.start:+.3f}{interval}", ratio


def compare(start: Seen, after: Sequence[Seen]) -> list[Gain]:
    """Every number before and after."""
    gains, everything = [], np.ones(start.images, bool)
    for name, score in start.scores.items():
        values = [seen.scores[name](everything) for seen in after]

        def change(kept: np.ndarray, name: str = name, score: Score = score) -> float:
            return fmean(seen.scores[name](kept) for seen in after) - score(kept)

        middle, over_images = change(everything), jackknife_interval(change, start.images)
        half = over_images and math.hypot((over_images[1] - over_images[0]) / 2, half_width_95(values) or 0.0)
        gains.append(
            Gain(name, score(everything), values, *((middle - half, middle + half) if half else (None, None)))
        )
    for name, before in start.estimates.items():
        found = [seen.estimates[name] for seen in after]
        changed = pool_seeds([difference(one, before) for one in found])
        gains.append(Gain(name, _known(before), [_known(one) for one in found], changed.low, changed.high))
    return gains


def _known(found: Estimate) -> float:
    return math.nan if found.value is None else found.value


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", help="the network that the training began with")
    parser.add_argument("after", nargs="+", help="the same network trained; several are other seeds")
    parser.add_argument(
        "--data", required=True, help="annotated photos in the layout of modeling_decodepos/data/schema.py"
    )
    parser.add_argument("--output", type=Path, help="JSON file that gets the entry")
    parser.add_argument("--name", help="of the entry")
    parser.add_argument("--size_px", type=int, default=SIZE_PX)
    parser.add_argument("--train_images", type=int, default=0, help="in the gallery; 0: all")
    parser.add_argument("--validation_images", type=int, default=250)
    args = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    common = Common(
        model=args.start, data=args.data, size_px=args.size_px, stage="map",
        train_images=args.train_images, validation_images=args.validation_images,
    )  # fmt: skip
    start, *after = (look(spec, common) for spec in (args.start, *args.after))
    gains = compare(start, after)
    print_table(("", "start", "after, by seed", "change", "ratio"), [gain.row() for gain in gains])
    if args.output:
        known = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
        entry: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "benchmarks.remedy", *(arguments or sys.argv[1:])])
        }
        entry |= {"commit": commit(), "gains": [dataclasses.asdict(gain) for gain in gains]}
        write_json(args.output, known | {args.name or args.start: entry})


if __name__ == "__main__":
    main()
