"""What real networks' region features hold, by how their maps are read: `python -m benchmarks.networks`.

Every network of `benchmarks.real_backbones` and its random twin, and others of random weights beside them, on
annotated photos: object k-NN as objects are, before other surroundings, moved and alone; how much leaks from the
surroundings; how well a region's place can be read. Each under four readings of the same map (see
diagnosis/models/cells.py), from one pass of the network. Pictures and definitions are those of `object_knn` and of the
diagnosis. Results are kept network by network; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import logging as transformers_logging

from benchmarks.real_backbones import efficientnet_lite
from benchmarks.real_backbones.networks import NETWORKS
from modeling_decodepos.diagnosis.data.exchange import (
    exchange_content,
    exchange_surroundings,
    has_surroundings,
    move_elsewhere,
)
from modeling_decodepos.diagnosis.measures.objects import measure_leak
from modeling_decodepos.diagnosis.measures.position import probe_regions
from modeling_decodepos.diagnosis.models.load import FeatureModel
from modeling_decodepos.diagnosis.models.load import load_model as load_features
from modeling_decodepos.diagnosis.models.networks import RANDOM
from modeling_decodepos.diagnosis.statistics.estimates import Estimate
from modeling_decodepos.diagnosis.statistics.knn import knn_neighbours, knn_vote
from training.evaluation.annotated_images import AnnotatedImages, batched
from training.evaluation.evaluation import Evaluation
from training.evaluation.models import EvaluatedModel, load_model, region_rows
from training.evaluation.object_features import (
    Objects,
    alone_side,
    embed_shown,
    show_as_they_are,
    show_by_themselves,
    show_recontextualised,
    show_repositioned,
)
from training.evaluation.object_knn import class_mean, mean_over_objects
from training.evaluation.results import Measured, build_rows, load_results, merge_results
from training.evaluation.settings import Common
from training.provenance import commit

READINGS = ("aligned", "legacy", "known", "measured")
NEIGHBOURS, TEMPERATURE = 20, 0.07
SIZE_PX = 160
WEIGHT_SEED = 1000  # of fresh weights


OTHERS = {
    "ResNet-18": "random:resnet18",
    "ResNet-50": "random:resnet50",
    "ConvNeXt-T": "random:convnext",
    "ViT-S/16 (DINOv2's form)": "random:vit_small",
    "Swin-T": "random:swin",
}
RELEASED = Path(__file__).parent.parent / "model_cards" / "weights" / "decodepos-scenes-mini"


@dataclass(frozen=True)
class Row:
    """A network of the table."""

    name: str
    spec: str  # as `load_model` takes it
    arm: str = "trained"  # or random: its architecture with fresh weights
    seeds: int = 3  # of what is exchanged and moved
    stage: str = "map"  # what regions of a ResNet are, see evaluation/settings.py

    def load(self) -> FeatureModel | str:
        """What evaluation takes."""
        if self.arm == "trained" or self.spec.startswith(RANDOM):
            return self.spec
        fresh = load_features(self.spec, size_px=SIZE_PX).fresh
        if fresh is None:
            raise ValueError(f"{self.name}: nobody knows how to draw its weights.")
        return fresh(WEIGHT_SEED)


def table_rows(networks: Path) -> list[Row]:
    """Every network that is there and our own, each with its random twin; random ones of other kinds beside them."""
    specs = {
        network.name: f"{efficientnet_lite.__name__}:{network.name.removeprefix('efficientnet-')}"
        if network.name.startswith("efficientnet-lite")
        else str(networks / network.name)
        for network in NETWORKS
    }
    there = [Row(name, spec) for name, spec in specs.items() if (networks / name).is_dir()]
    there.append(Row("decodepos-scenes-mini", str(RELEASED), stage="regions"))
    twins = [dataclasses.replace(row, arm="random", seeds=1) for row in there]
    return [*there, *twins, *(Row(name, spec, "random", seeds=1) for name, spec in OTHERS.items())]


class EveryReading(EvaluatedModel):
    """A network whose features are those of each reading, side by side, from one map."""

    def __init__(self, row: Row):
        torch.manual_seed(WEIGHT_SEED)
        self.readings = [load_model(row.load(), WEIGHT_SEED, reading=name, stage=row.stage) for name in READINGS]
        first = self.readings[0]
        super().__init__(first.name, first.net, first.mean, first.std)

    @torch.no_grad()
    def embed(self, pixels: Tensor, boxes: list[Tensor]) -> Tensor:
        """(N, readings * D)."""
        net, side = self.frozen(pixels), pixels.shape[-1]
        whole = all(bool((rows == rows.new_tensor([0.0, 0.0, 1.0, 1.0])).all()) for rows in boxes)
        for reading in self.readings:
            reading.find_reading("regions", self.net.feature_map, side)

        def embed(part: slice) -> Tensor:
            found = net.feature_map(self.prepare(pixels[part]))
            offsets = [0.0 if whole else reading.offset("regions", side, found) for reading in self.readings]
            return torch.cat([region_rows(net, found, boxes[part], offset).float() for offset in offsets], 1)

        return self.by_parts(embed, len(pixels))

    def columns(self, features: Tensor) -> dict[str, Tensor]:
        """(N, D) of each reading."""
        return dict(zip(READINGS, features.chunk(len(READINGS), 1), strict=True))


Numbers = dict[str, dict[str, Measured]]
"""By reading and name."""


class Bench:
    """The pictures, and what a network makes of them."""

    def __init__(self, common: Common, row: Row, probed: int):
        self.row, self.probed = row, probed
        self.evaluation = Evaluation(common)
        self.evaluation.model = self.model = EveryReading(row)
        self.gallery_images, self.query_images = (self.evaluation.images(side) for side in ("train", "validation"))

    def measure(self) -> dict[int, Numbers]:
        """What each seed of exchanges and moves found; what does not depend on one is the first seed's."""
        alone = alone_side(self.evaluation)
        gallery, gallery_alone = embed_shown(
            self.evaluation, self.gallery_images, "gallery", [show_as_they_are, show_by_themselves(alone, every=True)]
        )
        shows = [show_as_they_are, show_by_themselves(alone)]
        for seed in range(self.row.seeds):
            shows += [show_recontextualised(self.query_images, seed), show_repositioned(seed)]
        queries, queries_alone, *varied = embed_shown(self.evaluation, self.query_images, "queries", shows)
        movable = has_surroundings(queries.boxes)
        kept = dataclasses.replace(
            queries, **{f.name: getattr(queries, f.name)[movable] for f in dataclasses.fields(queries)}
        )
        found: dict[int, Numbers] = {}
        for seed in range(self.row.seeds):
            numbers: Numbers = {reading: {} for reading in READINGS}
            situations = {"other surroundings": varied[2 * seed], "moved": varied[2 * seed + 1]}
            if seed == 0:
                situations = {"as is": kept} | situations
                self._note_knn(numbers, "alone", gallery_alone, queries_alone)
            for name, objects in situations.items():
                self._note_knn(numbers, name, gallery, objects)
            self._note_probes(numbers, seed)
            found[seed] = numbers
        return found

    def _note_knn(self, numbers: Numbers, name: str, gallery: Objects, queries: Objects) -> None:
        known, asked = self.model.columns(gallery.features), self.model.columns(queries.features)
        for reading in READINGS:
            cosines, places = knn_neighbours(known[reading], asked[reading], NEIGHBOURS)
            right = knn_vote(cosines, gallery.labels[places], TEMPERATURE) == queries.labels
            numbers[reading][f"class mean, {name}"] = class_mean(right, queries)
            numbers[reading][f"micro, {name}"] = mean_over_objects(right.double(), queries)

    def _note_probes(self, numbers: Numbers, seed: int) -> None:
        """Leak and place of one object of each picture: the largest that has surroundings."""
        probed = probed_objects(self.query_images, self.evaluation.common.size_px, self.probed)
        found, centres = embed_exchanged(self.model.embed, probed, seed)
        columns = {name: self.model.columns(rows) for name, rows in found.items()}
        for reading in READINGS:
            own = {name: rows[reading] for name, rows in columns.items()}
            leak = measure_leak(own["as is"], own["surroundings"], own["content"], seed=seed)["context_leak"]
            place = probe_regions(own["moved"], centres, seed=seed)
            numbers[reading] |= {"leak": _measured(leak), "place": _measured(place)}

    def offsets(self) -> dict[str, list[float]]:
        """Cells further right and down than aligned that each reading reads."""
        side = self.evaluation.common.size_px
        found = self.model.net.feature_map(self.model.prepare(torch.zeros(1, 3, side, side, dtype=torch.uint8)))
        pairs = {model.reading: model.offset("regions", side, found) for model in self.model.readings}
        return {name: list(pair) if isinstance(pair, tuple) else [pair, pair] for name, pair in pairs.items()}


def probed_objects(images: AnnotatedImages, size_px: int, most: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Of the first pictures, those with an object that has surroundings: pixels and the box of the largest."""
    for place in range(min(most, len(images))):
        picture = images.picture(place, size_px)
        sides = picture.boxes[:, 2:] - picture.boxes[:, :2]
        fits = has_surroundings(picture.boxes) & (sides >= 0.1).all(1)
        if fits.any():
            area = torch.where(fits, sides.prod(1), 0.0)
            yield picture.pixels, picture.boxes[int(area.argmax())].numpy()


def embed_exchanged(
    embed: Callable[[Tensor, list[Tensor]], Tensor], probed: Iterable[tuple[Tensor, np.ndarray]], seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """(E, D) features of objects as they are, with something exchanged, and moved; (E, 2) centres of the moved."""
    pictures = list(probed)
    rng = np.random.default_rng([seed, 41])
    order = rng.permutation(len(pictures))
    others = {int(one): pictures[int(other)] for one, other in zip(order, np.roll(order, 1), strict=True)}
    columns: dict[str, list[Tensor]] = {name: [] for name in ("as is", "surroundings", "content", "moved")}
    centres = []
    for batch in batched(range(len(pictures)), 32):
        shown: dict[str, list[Tensor]] = {name: [] for name in columns}
        boxes: dict[str, list[Tensor]] = {name: [] for name in columns}
        for number in batch:
            (pixels, box), (other, other_box) = pictures[number], others[number]
            moved, there = move_elsewhere(pixels, box, other, rng)
            found = {
                "as is": (pixels, box),
                "surroundings": (exchange_surroundings(pixels, box, other), box),
                "content": (exchange_content(pixels, box, other, other_box), box),
                "moved": (moved, there),
            }
            centres.append(torch.tensor([(there[0] + there[2]) / 2, (there[1] + there[3]) / 2]))
            for name, (picture, where) in found.items():
                shown[name].append(picture)
                boxes[name].append(torch.from_numpy(np.asarray(where, np.float32))[None])
        for name in columns:
            columns[name].append(embed(torch.stack(shown[name]), boxes[name]))
    return {name: torch.cat(parts) for name, parts in columns.items()}, torch.stack(centres)


def _measured(found: Estimate) -> Measured:
    value = float("nan") if found.value is None else found.value
    return Measured(value, None if found.low is None or found.high is None else (found.low, found.high), found.count)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, or print the tables of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, help="folder that benchmarks.real_backbones has made")
    parser.add_argument("--data", help="annotated photos in the layout of modeling_decodepos/data/schema.py")
    parser.add_argument("--output", type=Path, required=True, help="results file")
    parser.add_argument("--only", nargs="+", help="names of networks")
    parser.add_argument("--arm", choices=["trained", "random"], help="only these weights")
    parser.add_argument("--validation_images", type=int, default=250)
    parser.add_argument("--train_images", type=int, default=0)
    args = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for row in table_rows(args.networks):
        wanted = row.name in (args.only or [row.name]) and row.arm == (args.arm or row.arm)
        done = {(found["model"], found["arm"]) for found in load_results(args.output)}
        if not wanted or (row.name, f"{row.arm}, {READINGS[-1]}") in done:
            continue
        print(f"{row.name}, {row.arm}", flush=True)
        side = load_features(row.load(), size_px=SIZE_PX).size_px
        common = Common(
            model=row.spec, data=args.data, size_px=side, validation_images=args.validation_images,
            train_images=args.train_images,
        )  # fmt: skip
        save(args.output, row, Bench(common, row, args.validation_images), common)


def save(output: Path, row: Row, bench: Bench, common: Common) -> None:
    """Measure one network, and put its rows into the file."""
    code, found = commit(), bench.measure()
    offsets = bench.offsets()
    settings = f"size_px={common.size_px},stage={row.stage},validation_images={common.validation_images}"
    settings += f",train_images={common.train_images},k={NEIGHBOURS}"
    for reading in READINGS:
        by_seed = {seed: numbers[reading] for seed, numbers in found.items()}
        by_seed[0] |= {f"offset {axis}": Measured(offsets[reading][n]) for n, axis in enumerate("xy")}
        origin = {
            "model": row.name,
            "arm": f"{row.arm}, {reading}",
            "protocol": f"networks-1:{settings},reading={reading}",
            "commit": code,
            "data_hash": f"{bench.gallery_images.source.fingerprint}; {bench.query_images.source.fingerprint}",
            "label": "reduced scale",
        }
        merge_results(output, build_rows(origin, by_seed, {}))


if __name__ == "__main__":
    main()
