"""Whether the exact pairs rank networks alike when they are drawn with another seed: `python -m benchmarks.rank`.

Builds the benchmark once per seed, scores the last stage of ten networks on each as `decodepos diagnose` does, and
prints the table, then Spearman's correlation of the two ranks for several numbers of objects (four rows each). Six of
the networks are trained, out of `benchmarks.real_backbones` and our own; four have random weights.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import logging as transformers_logging

from benchmarks.networks import Row, table_rows
from benchmarks.real_backbones import efficientnet_lite
from benchmarks.timing import print_machine, print_result, print_table
from dataset_scripts.build.parquet import build_dataset
from dataset_scripts.files import read_json, write_json
from dataset_scripts.sources.pairs import pairs_source
from modeling_decodepos.diagnosis.data.pairs import build_pair_data
from modeling_decodepos.diagnosis.data.photos import open_splits
from modeling_decodepos.diagnosis.data.probe import ProbeData
from modeling_decodepos.diagnosis.measures.metrics import BENCHMARK_TASKS
from modeling_decodepos.diagnosis.measures.objects import find_itself, measure_leak
from modeling_decodepos.diagnosis.measures.position import probe_regions
from modeling_decodepos.diagnosis.models.features import read_features
from modeling_decodepos.diagnosis.models.load import FeatureModel, load_model

TRAINED = (
    "mobilenet-v2", "mobilenet-v2-deep-sort", "efficientnet-lite0", "efficientnet-lite2", "resnet50-half-open-nsfw",
    "decodepos-scenes-mini",
)  # fmt: skip
RANDOM = ("random:resnet18", "random:convnext", "random:vit_small", "random:vit_tiny")
WANTED = 0.95


def chosen(networks: Path) -> list[Row]:
    """The ten networks."""
    trained = {row.name: row for row in table_rows(networks) if row.arm == "trained"}
    if missing := [name for name in TRAINED if name not in trained]:
        raise SystemExit(
            f"{networks} lacks {', '.join(missing)}: python -m benchmarks.real_backbones --output {networks}"
        )
    return [*(trained[name] for name in TRAINED), *(Row(spec, spec, "random") for spec in RANDOM)]


class Seen:
    """What the last stage of a network makes of the four pictures of every object."""

    def __init__(self, model: FeatureModel, data: ProbeData):
        assert data.swaps is not None
        here, there = (list(boxes[:, None]) for boxes in (data.swaps.boxes, data.swaps.moved_boxes))
        swaps = data.swaps
        self.as_is, self.surroundings, self.content, self.moved = (
            read_features(model, pixels, boxes)[-1].regions
            for pixels, boxes in (
                (data.queries.pixels, here),
                (swaps.other_surroundings, here),
                (swaps.other_content, here),
                (swaps.moved, there),
            )
        )
        self.centres = (swaps.moved_boxes[:, :2] + swaps.moved_boxes[:, 2:]) / 2

    def score(self, count: int) -> list[float]:
        """The tasks, in the order of `BENCHMARK_TASKS`, on the first objects."""
        as_is, surroundings, content, moved, centres = (rows[:count] for rows in vars(self).values())
        found = (
            measure_leak(as_is, surroundings, content)["context_leak"],
            probe_regions(moved, centres),
            find_itself(as_is, moved, torch.arange(count)),
        )
        return [float("nan") if one.value is None else one.value for one in found]


def draw(pairs: int, seeds: Sequence[int]) -> list[ProbeData]:
    """The benchmark of every seed, built and read as anybody does."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            output = Path(folder) / str(seed)
            build_dataset(output, pairs_source(pairs, train=2, seed=seed))
            found.append(build_pair_data(str(output), open_splits(str(output))))
    return found


def spearman(one: Tensor, other: Tensor) -> float:
    """Correlation of the ranks; equal values share a rank."""
    ranks = [(rows[:, None] > rows).sum(1) + ((rows[:, None] == rows).sum(1) - 1) / 2 for rows in (one, other)]
    return float(np.corrcoef(torch.stack(ranks).numpy())[0, 1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, score, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, required=True, help="folder that benchmarks.real_backbones has made")
    parser.add_argument("--output", type=Path, required=True, help="folder for scores; what is there is not measured")
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 128, 256, 512], help="objects, rising")
    parser.add_argument("--seeds", type=int, nargs=2, default=[0, 1], help="of the benchmark")
    parser.add_argument("--only", nargs="+", choices=[*TRAINED, *RANDOM], help="measure these, and print no table")
    args = parser.parse_args(arguments)
    os.environ[efficientnet_lite.FOLDER_VARIABLE] = str(args.networks)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    print_machine()
    rows = [row for row in chosen(args.networks) if row.name in (args.only or [row.name])]
    asked = "-".join(map(str, [*args.pairs, "seeds", *args.seeds]))
    files = [args.output / f"{row.name.replace(':', '-')}-{asked}.json" for row in rows]
    if missing := [pair for pair in zip(rows, files, strict=True) if not pair[1].is_file()]:
        draws = draw(args.pairs[-1], args.seeds)
        for row, file in missing:
            model = load_model(row.spec, size_px=draws[0].size_px)
            seen = [Seen(model, data) for data in draws]
            write_json(file, {"scores": [[one.score(count) for one in seen] for count in args.pairs]})
            print(f"{row.name} scored", flush=True)
    if args.only:
        return
    scores = torch.tensor([read_json(file)["scores"] for file in files], dtype=torch.float64).permute(1, 2, 0, 3)
    seeds = " / ".join(map(str, args.seeds))
    print(f"\n{args.pairs[-1]} objects, seeds {seeds}; the batch norms of random:resnet18 saw no picture")
    table = scores[-1].permute(1, 2, 0).tolist()
    print_table(
        ("network", *BENCHMARK_TASKS),
        [
            (row.name, *(f"{one:.3f} / {other:.3f}" for one, other in tasks))
            for row, tasks in zip(rows, table, strict=True)
        ],
    )
    alike = [
        [spearman(scores[size, 0, :, task], scores[size, 1, :, task]) for task in range(len(BENCHMARK_TASKS))]
        for size in range(len(args.pairs))
    ]
    print("\nSpearman's correlation of the ranks of the two seeds")
    print_table(
        ("objects", "rows", *BENCHMARK_TASKS),
        [(count, 4 * count, *(f"{value:.3f}" for value in own)) for count, own in zip(args.pairs, alike, strict=True)],
    )
    least = min(alike[-1])
    print_result("rank", f"wanted {WANTED}", least / WANTED, least, WANTED, "Spearman", rows=4 * args.pairs[-1])


if __name__ == "__main__":
    main()
