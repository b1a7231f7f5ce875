"""The linear layer against surroundings and place on networks that people use: `python -m benchmarks.remedy_layer`.

Fitted on gallery photos and judged on queries, as `decodepos-diagnose --measures debias` does, for several draws of
the data; beside it the features as they are (centred) and the layers that it must beat. A row's gain is its mean
difference to the centred features over the draws, with half of its 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import torch
import transformers

from benchmarks.timing import print_table
from modeling_decodepos.diagnosis.data.photos import build_photo_data
from modeling_decodepos.diagnosis.measures.evaluate import evaluate
from modeling_decodepos.diagnosis.models.load import FeatureModel, load_model
from modeling_decodepos.diagnosis.results import Debias
from modeling_decodepos.diagnosis.run import judge_debias
from modeling_decodepos.diagnosis.statistics.estimates import Estimate, half_width_95

MEASURES = ("position", "subspace", "context", "object_knn", "same_object", "debias")
LEFT_OUT = ("position_noise", "position_blank")


def judge(model: FeatureModel, data: str, images: int, seed: int) -> Debias:
    """The layer of one network, fitted and judged on one draw of the data."""
    draw = build_photo_data(data, images, model.size_px, seed)
    results, seen = evaluate(model, draw, MEASURES)
    found = judge_debias(model, results, seen, draw)
    if found is None:
        raise SystemExit(f"{data} has fewer than two pictures with a region that leaves half of its picture free.")
    return found


def print_network(name: str, found: Sequence[Debias]) -> None:
    """One table: layers by numbers, mean over draws and gain over the centred features."""
    columns: dict[str, list[dict[str, Estimate]]] = defaultdict(list)
    for one in found:
        for layer, numbers in {"centred": one.before, **one.controls, "remedy": one.after}.items():
            columns[layer].append(numbers)
    keys = [key for key, value in found[0].before.items() if value.value is not None and key not in LEFT_OUT]
    rows = []
    for layer, draws in columns.items():
        cells = []
        for key in keys:
            values, start = ([numbers[key].value or 0.0 for numbers in side] for side in (draws, columns["centred"]))
            gains = [value - first for value, first in zip(values, start, strict=True)]
            beside = f" ({fmean(gains):+.3f} ± {half_width_95(gains) or 0.0:.3f})" if layer != "centred" else ""
            cells.append(f"{fmean(values):.3f}{beside}")
        rows.append((layer, *cells))
    chosen = ", ".join(f"{one.count} directions and strength {one.strength:g}" for one in found)
    print(f"\n{name}: {chosen}; fitted on {', '.join(str(one.objects) for one in found)} objects")
    print_table(("layer", *keys), rows)


def main() -> None:
    """Measure and print a table per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="as decodepos-diagnose takes them")
    parser.add_argument("--data", required=True, help="Parquet folder with boxes and classes")
    parser.add_argument("--images", type=int, default=300, help="pictures in the gallery, and as many queries")
    parser.add_argument("--size_px", type=int, default=160, help="side of the pictures")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the data")
    parser.add_argument("--threads", type=int, default=1, help="that torch uses")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    for name in arguments.models:
        model = load_model(name, size_px=arguments.size_px)
        print_network(name, [judge(model, arguments.data, arguments.images, seed) for seed in range(arguments.seeds)])


if __name__ == "__main__":
    main()
