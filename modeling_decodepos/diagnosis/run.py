"""`diagnose`: any number of models, one set of probe data, every measure with its controls, one report."""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm

from ..batch_norms import FITTED_ON
from ..commands.memory import named_shortage
from .data.exchange import draw_changes, largest_regions
from .data.pairs import build_pair_data
from .data.photos import build_photo_data, open_splits
from .data.probe import ObjectProbe, ProbeData, RegionImages
from .data.scene_pairs import PAIRS_SPLIT
from .data.scenes import build_scene_data
from .measures.debias import (
    LinearLayer,
    StrengthPoint,
    choose_count,
    fit_layer,
    project_out,
    spread_of_all,
)
from .measures.evaluate import (
    ProbeFeatures,
    StageResult,
    evaluate,
    measure_debias,
    pool_results,
    skipped_measures,
)
from .measures.metrics import choose_measures
from .measures.objects import NEIGHBOURS
from .measures.position import ROWS
from .models.features import REGION_BINS, StageFeatures, read_features
from .models.image_statistics import statistics_model
from .models.load import FeatureModel, load_model
from .models.networks import Spec, is_trained, usable_device
from .models.readings import choose_reading
from .results import Debias, Diagnosis, ModelResult

Model = Spec | FeatureModel

# Seeds of random weights: of a draw's first ones, and the way to its next.
_FIRST_WEIGHTS, _NEXT_WEIGHTS = 1000, 100_000
_STREAM = 8  # of randomness, beside those of the data


def diagnose(
    models: Sequence[Model] | Model,
    data: str | ProbeData = "scenes",
    *,
    images: int = 96,
    size_px: int = 160,
    seed: int = 0,
    seeds: int = 1,
    random_seeds: int = 3,
    layers: int = 4,
    measures: str | None = None,
    device: str = "cpu",
    reading: str = "own",
    centre_cells: bool = False,
    progress: bool = False,
) -> Diagnosis:
    """How much position and surroundings are in the features of some models, next to their controls.

    Models are what `load_model` takes: names and instances. One that cannot be read or measured is named in `failed`
    of the result; if there is no other, that is an error. One that cannot take pictures of `size_px` gets them
    resized. Each of the `seeds` repeats all with other data (of photos, another draw) and other random weights; there
    are `random_seeds` of those at least. Of a data set of exact pairs all rows are shown, at their own size.
    `decodepos-diagnose --help` explains the rest.
    """
    if images < 4 or min(seeds, random_seeds) < 1:
        raise ValueError(
            f"images is {images}, seeds {seeds} and random_seeds {random_seeds}; expected at least 4, and 1 of either."
        )
    usable_device(device)
    chosen, reading = choose_measures(measures), choose_reading(reading, centre_cells)
    enough = functools.partial(named_shortage, {"images": images, "size_px": size_px})
    with enough():
        draws = _draw(data, images, size_px, seed, seeds) if not isinstance(data, ProbeData) else [data]
    if draws[0].is_benchmark:
        size_px = draws[0].size_px
    wanted = list(models) if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    failures = _Failures()
    loaded = []
    for spec in wanted:
        name = spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
        with failures.of(name), enough():
            model = load_model(spec, size_px=size_px, layers=layers, device=device, reading=reading)
            loaded.append(model if is_trained(spec) else model.fit_norms(draws[0].gallery.pixels[:FITTED_ON]))
    failures.refuse_all(loaded)
    settings = {
        "data": draws[0].name,
        "images": len(draws[0].queries),
        "gallery_images": len(draws[0].gallery),
        "regions": len(draws[0].queries.every_box),
        "probed_regions": 0 if draws[0].swaps is None else len(draws[0].swaps.regions),
        **_count_objects(draws[0].probed),
        "picture_size_px": draws[0].size_px,
        "seed": seed,
        "seeds": len(draws),
        "random_seeds": len(draws) * _weights_per_draw(random_seeds, draws),
        "layers": layers,
        "neighbours": NEIGHBOURS,
        "region_bins": REGION_BINS,
        "cells_regressed": ROWS,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "notes": list(draws[0].notes),
    }
    diagnosis = Diagnosis(draws[0], chosen, skipped_measures(draws[0]), settings)
    weights = _weights_per_draw(random_seeds, draws)
    # A model, its random weights and its image statistics are shown every draw.
    shown = (2 + weights) * len(draws)
    count = "{desc} {bar} {n_fmt} of {total_fmt} networks shown, {elapsed}, {remaining} to go"
    controls: _Controls = {}
    with tqdm(total=shown * len(loaded), bar_format=count, disable=not progress, dynamic_ncols=True) as bar:
        for number, model in enumerate(loaded, start=1):
            bar.set_description(model.name[-24:])
            with failures.of(model.name), enough():
                diagnosis.models.append(_diagnose_one(model, draws, weights, diagnosis, bar, controls))
            bar.update(shown * number - bar.n)
    failures.refuse_all(diagnosis.models)
    diagnosis.failed = {name: str(error) for name, error in failures.found.items()}
    settings["reading"] = [result.model.reading for result in diagnosis.models]
    return diagnosis


def _draw(data: str, images: int, size_px: int, seed: int, seeds: int) -> list[ProbeData]:
    """The data of every seed; of exact pairs, whose rows are fixed, all of them once."""
    if data == "scenes":
        return [build_scene_data(images, size_px, seed + k) for k in range(seeds)]
    splits = open_splits(data)
    if PAIRS_SPLIT not in splits:
        return [build_photo_data(data, images, size_px, seed + k) for k in range(seeds)]
    if seeds > 1:
        raise ValueError(f"{data} is a benchmark, whose rows are fixed: seeds is {seeds}, expected 1.")
    return [build_pair_data(data, splits)]


def _weights_per_draw(random_seeds: int, draws: Sequence[ProbeData]) -> int:
    """How many random weights are shown every draw of data, so that there are `random_seeds` in all."""
    return -(-random_seeds // len(draws))


def _count_objects(objects: ObjectProbe | None) -> dict[str, int]:
    """How many objects are known, and how many are to be recognised."""
    if objects is None:
        return {"known_objects": 0, "probed_objects": 0}
    return {"known_objects": len(objects.gallery.every_box), "probed_objects": len(objects.queries.every_box)}


@dataclasses.dataclass
class _Failures:
    """What went wrong with some models, which must not lose the results of the others."""

    found: dict[str, ValueError] = dataclasses.field(default_factory=dict)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Keeps whatever a model raises: somebody else wrote it."""
        try:
            yield
        except Exception as error:
            said = str(error) or "no more is known"
            if not isinstance(error, ValueError | FileNotFoundError | ImportError):
                said = f"{type(error).__name__}: {said}"
            failure = ValueError(said if name in said else f"{name}: {said}")
            failure.__cause__ = error
            self.found[name] = failure

    def refuse_all(self, left: Sequence[Any]) -> None:
        """Raises if no model is left."""
        if not left:
            first, *others = self.found.values() or [ValueError("no model is named; expected at least one.")]
            raise ValueError("\n".join(map(str, (first, *others)))) from first.__cause__


def _diagnose_one(
    model: FeatureModel,
    draws: Sequence[ProbeData],
    weights: int,
    diagnosis: Diagnosis,
    bar: tqdm[Any],
    controls: _Controls,
) -> ModelResult:
    started = time.perf_counter()
    measures = diagnosis.measures
    own, plain = [], []
    first: ProbeFeatures | None = None
    for draw in draws:
        results, features = evaluate(model, draw, measures)
        first = first or features
        own.append(results)
        bar.update()
        grids = [part.norms.shape[1:] for part in features.queries]
        control = statistics_model(model, [(int(h), int(w)) for h, w in grids])
        plain.append(evaluate(control, draw, measures, control=True)[0])
        bar.update()
        del features
    assert first is not None
    fresh = _untrained(model, draws, weights, measures, bar, controls)
    wanted = "debias" in measures and "debias" not in diagnosis.skipped and own[0][-1].verdict == "ok"
    return ModelResult(
        name=model.name,
        model=model,
        stages=pool_results(own),
        random=pool_results(fresh, another=True) if fresh else None,
        statistics=pool_results(plain),
        debias=judge_debias(model, own[0], first, draws[0]) if wanted else None,
        features=first,
        seconds=time.perf_counter() - started,
    )


# Of networks with random weights: what each of them gave, by all that it depends on.
_Controls = dict[tuple[Any, ...], list[list[StageResult]]]


def _untrained(
    model: FeatureModel,
    draws: Sequence[ProbeData],
    weights: int,
    measures: Sequence[str],
    bar: tqdm[Any],
    known: _Controls,
) -> list[list[StageResult]]:
    """Results of the model with random weights, every draw's one after the other.

    Checkpoints of one network have the same ones, so these are measured once and `known` afterwards.
    """
    if model.fresh is None:
        return []
    network = (model.architecture, model.stages, model.size_px, model.mean, model.std, model.reading)
    if network in known:
        bar.update(weights * len(draws))
        return known[network]
    found = []
    for draw in draws:
        for number in range(weights):
            untrained = model.fresh(_FIRST_WEIGHTS + draw.seed + _NEXT_WEIGHTS * number)
            untrained.fit_norms(draw.gallery.pixels[:FITTED_ON])
            found.append(evaluate(untrained, draw, measures, control=True)[0])
            bar.update()
    if model.architecture:
        known[network] = found
    return found


def judge_debias(
    model: FeatureModel, stages: list[StageResult], features: ProbeFeatures, data: ProbeData
) -> Debias | None:
    """The layer of the last stage, fitted on the gallery, and what it and its controls do to the queries."""
    number = len(stages) - 1
    fitted = fit_debias(model, stages[number], features.gallery[number], data.gallery, seed=data.seed)
    if fitted is None:
        return None
    found = {name: measure_debias(features, number, layer, data) for name, layer in fitted.controls.items()}
    before, after = (measure_debias(features, number, layer, data) for layer in (None, fitted.layer))
    return Debias(number, fitted.count, fitted.objects, fitted.curve, before, after, found, fitted.layer.to_conv())


@dataclasses.dataclass(frozen=True)
class _Fitted:
    layer: LinearLayer
    controls: dict[str, LinearLayer]
    count: int
    curve: list[StrengthPoint]
    objects: int


def fit_debias(
    model: FeatureModel, result: StageResult, known: StageFeatures, gallery: RegionImages, *, seed: int
) -> _Fitted | None:
    """The layer for the last stage and its controls, from gallery objects in other surroundings and places."""
    regions = largest_regions(gallery)
    if result.subspace is None or len(regions) < 2:
        return None
    pixels, boxes = draw_changes(gallery, regions, np.random.default_rng([seed, _STREAM]))
    changed = read_features(model, pixels.flatten(0, 1), list(boxes.flatten(0, 1)[:, None]))[-1].regions
    views = torch.cat([known.regions[regions][:, None], changed.unflatten(0, (-1, 3))], 1)
    count = choose_count(result.removal, result.subspace, views)
    projection, centring = (project_out(result.subspace, removed) for removed in (count, 0))
    layer, curve = fit_layer(views, projection)
    controls = {"projection": projection, "whitening": fit_layer(views, centring, spread_of_all)[0]}
    return _Fitted(layer, controls, count, curve, len(regions))
