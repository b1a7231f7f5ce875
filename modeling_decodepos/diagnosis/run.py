"""`diagnose`: any number of models, one set of probe data, every measure with its controls, one report."""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm

from .debias import build_layer, save_layer
from .estimates import Estimate
from .features import REGION_BINS
from .image_statistics import statistics_model
from .measuring import (
    Asked,
    StageResult,
    choose_removal,
    count_pictures,
    measure,
    measure_debias,
    pool_results,
    skipped_measures,
)
from .metrics import EXTRA_PROTOCOLS, METRICS, choose_measures
from .models import FeatureModel, load_model
from .objects import NEIGHBOURS
from .photo_data import build_photo_data
from .place import ROWS
from .probe_data import ProbeData
from .scene_data import build_scene_data

FORMAT = 1
"""Of report.json."""

Model = str | nn.Module | Callable[[torch.Tensor], torch.Tensor] | FeatureModel


@dataclass
class Debias:
    """What projecting positional directions out of one stage does."""

    stage: int
    count: int
    changes: dict[str, tuple[Estimate, Estimate]]
    layer: nn.Conv2d


@dataclass
class ModelResult:
    """One model, and its two controls, stage by stage."""

    name: str
    model: FeatureModel
    stages: list[StageResult]
    random: list[StageResult] | None
    statistics: list[StageResult]
    debias: Debias | None
    asked: Asked
    seconds: float

    @property
    def last(self) -> StageResult:
        """The last stage: what most users take features from."""
        return self.stages[-1]

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON takes them."""
        debias = self.debias
        return {
            "name": self.name,
            "picture_size_px": self.model.size_px,
            "note": self.model.note,
            "seconds": round(self.seconds, 1),
            "stages": [stage.to_dict() for stage in self.stages],
            "controls": {
                "random_init": None if self.random is None else [stage.to_dict() for stage in self.random],
                "image_statistics": [stage.to_dict() for stage in self.statistics],
            },
            "debias": None
            if debias is None
            else {
                "stage": self.stages[debias.stage].name,
                "directions": debias.count,
                "before_after": {k: [a.to_dict(), b.to_dict()] for k, (a, b) in debias.changes.items()},
            },
        }


@dataclass
class Diagnosis:
    """Everything that was measured."""

    data: ProbeData
    measures: tuple[str, ...]
    skipped: dict[str, str]
    settings: dict[str, Any]
    models: list[ModelResult] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it: no NaN, nothing that was not measured without its reason."""
        return {
            "format": FORMAT,
            "protocols": {metric.key: metric.protocol for metric in METRICS} | EXTRA_PROTOCOLS,
            "settings": self.settings,
            "measures": list(self.measures),
            "skipped": self.skipped,
            "models": [model.to_dict() for model in self.models],
        }

    def save(self, output: Path | str) -> Path:
        """The folder with report.html, report.json, the figures, and one debias layer per model."""
        from .report import write_report

        return write_report(self, Path(output))

    def save_layers(self, output: Path) -> list[str]:
        """The debias layer of every model that has one; names of the files."""
        files = []
        for number, result in enumerate(self.models):
            if result.debias is not None:
                file = f"debias_{number}.safetensors"
                about = {
                    "model": result.name,
                    "stage": result.stages[result.debias.stage].name,
                    "directions": result.debias.count,
                    "protocol": EXTRA_PROTOCOLS["debias"],
                    "data": self.data.name,
                    "seed": self.settings["seed"],
                }
                save_layer(result.debias.layer, output / file, about)
                files.append(file)
        return files


def diagnose(
    models: Sequence[Model] | Model,
    data: str | ProbeData = "scenes",
    *,
    images: int = 96,
    size_px: int = 160,
    seed: int = 0,
    seeds: int = 1,
    layers: int = 4,
    measures: str | None = None,
    device: str = "cpu",
    centre_cells: bool = False,
    progress: bool = False,
) -> Diagnosis:
    """How much position and surroundings are in the features of some models, next to their controls.

    Args:
        models: What `load_model` takes: Hub ids, folders, modules, functions.
        data: scenes (drawn in memory), a folder of Parquet files in our contract or of pictures, or a Hub id.
        images: Pictures in the gallery, and as many to ask about.
        size_px: Side of the pictures; a model that cannot take it gets them resized.
        seed: Of everything drawn by chance.
        seeds: Repetitions with other data (of scenes; of photos, another draw) and other random weights.
        layers: Layers of a ViT that are read.
        measures: Comma-separated names; all by default.
        device: Where the models run.
        centre_cells: Read regions where a ResNet's cells have their centres; see `load_model`.
        progress: Whether to show a progress bar.
    """
    if images < 4 or seeds < 1:
        raise ValueError(f"images is {images} and seeds {seeds}; expected at least 4 and at least 1.")
    chosen = choose_measures(measures)
    asked_for = list(models) if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    loaded = [
        load_model(spec, size_px=size_px, layers=layers, device=device, centre_cells=centre_cells)
        for spec in asked_for
    ]
    draws = (
        [data] if isinstance(data, ProbeData) else [build_data(data, images, size_px, seed + k) for k in range(seeds)]
    )
    settings = {
        "data": draws[0].name,
        "images": len(draws[0].queries),
        "gallery_images": len(draws[0].gallery),
        "regions": len(draws[0].queries.every_box),
        "probed_regions": 0 if draws[0].swaps is None else len(draws[0].swaps.regions),
        "picture_size_px": draws[0].size_px,
        "seed": seed,
        "seeds": len(draws),
        "layers": layers,
        "neighbours": NEIGHBOURS,
        "region_bins": REGION_BINS,
        "centre_cells": [model.centre_cells for model in loaded],
        "cells_regressed": ROWS,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "notes": list(draws[0].notes),
    }
    diagnosis = Diagnosis(draws[0], chosen, skipped_measures(draws[0]), settings)
    total = sum(
        count_pictures(model, draw, chosen, control=False) + 2 * count_pictures(model, draw, chosen, control=True)
        for model in loaded
        for draw in draws
    )
    with tqdm(total=total, unit=" pictures", disable=not progress, dynamic_ncols=True) as bar:
        for model in loaded:
            bar.set_description(model.name[-24:])
            diagnosis.models.append(_diagnose_one(model, draws, diagnosis, lambda n: bar.update(n) and None))
        bar.update(total - bar.n)
    return diagnosis


def build_data(name: str, images: int, size_px: int, seed: int) -> ProbeData:
    """Probe data by name: scenes, a folder, or a Hub id."""
    build = build_scene_data if name == "scenes" else functools.partial(build_photo_data, name)
    return build(images, size_px, seed)


def _diagnose_one(
    model: FeatureModel, draws: Sequence[ProbeData], diagnosis: Diagnosis, tick: Callable[[int], None]
) -> ModelResult:
    started = time.perf_counter()
    measures = diagnosis.measures
    own, fresh, plain = [], [], []
    first: Asked | None = None
    for draw in draws:
        results, asked = measure(model, draw, measures, tick=tick)
        first = first or asked
        own.append(results)
        grids = [part.norms.shape[1:] for part in asked.queries]
        control = statistics_model(model, [(int(h), int(w)) for h, w in grids])
        plain.append(measure(control, draw, measures, control=True, tick=tick)[0])
        del asked
        if model.fresh is not None:
            untrained = dataclasses.replace(model.fresh(1000 + draw.seed), centre_cells=model.centre_cells)
            fresh.append(measure(untrained, draw, measures, control=True, tick=tick)[0])
    assert first is not None
    debias = None
    if "debias" in measures and "debias" not in diagnosis.skipped and own[0][-1].verdict == "ok":
        debias = _debias(own[0], first, draws[0])
    return ModelResult(
        name=model.name,
        model=model,
        stages=pool_results(own),
        random=pool_results(fresh) if fresh else None,
        statistics=pool_results(plain),
        debias=debias,
        asked=first,
        seconds=time.perf_counter() - started,
    )


def _debias(stages: list[StageResult], asked: Asked, data: ProbeData) -> Debias | None:
    number = len(stages) - 1
    subspace = stages[number].subspace
    if subspace is None or not len(subspace.directions):
        return None
    count = choose_removal(stages[number], data)
    changes = measure_debias(asked, number, subspace, count, data)
    return Debias(number, count, changes, build_layer(subspace, count))
