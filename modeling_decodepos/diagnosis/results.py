"""What a diagnosis found: per model, stage by stage, beside its controls."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .data.probe import ProbeData
from .measures.debias import StrengthPoint, choose_strength, save_layer
from .measures.evaluate import ProbeFeatures, StageResult
from .measures.metrics import EXTRA_PROTOCOLS, METRICS
from .models.load import FeatureModel
from .statistics.estimates import Estimate, difference

FORMAT = 1
"""Of report.json."""


@dataclass
class Debias:
    """The remedy of one stage, and what it does to the queries."""

    stage: int
    count: int  # positional directions that it removes
    objects: int  # that it was fitted on
    curve: list[StrengthPoint]  # on the gallery
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    controls: dict[str, dict[str, Estimate]]  # the same behind other layers
    layer: nn.Conv2d

    @property
    def strength(self) -> float:
        """How strongly it shrinks what surroundings and place change."""
        return choose_strength(self.curve) if self.curve else 0.0

    @property
    def changes(self) -> dict[str, tuple[Estimate, Estimate]]:
        """Every number before and after."""
        return {key: (value, self.after[key]) for key, value in self.before.items()}

    def to_dict(self) -> dict[str, Any]:
        """The remedy as JSON takes it."""
        gains = {key: difference(after, before) for key, (before, after) in self.changes.items()}
        return {
            "directions": self.count,
            "strength": self.strength,
            "objects": self.objects,
            "curve": [vars(point) for point in self.curve],
            "before_after": {
                key: [before.to_dict(), after.to_dict()] for key, (before, after) in self.changes.items()
            },
            "difference": {key: gain.to_dict() for key, gain in gains.items()},
            "controls": {
                name: {key: value.to_dict() for key, value in numbers.items()}
                for name, numbers in self.controls.items()
            },
        }


def describe_debias(debias: Debias) -> str:
    """In words, what the layer does."""
    done = []
    if debias.count:
        done.append(f"{debias.count} positional direction{'s' if debias.count > 1 else ''} removed")
    if debias.strength:
        done.append(f"changes shrunk with strength {debias.strength:g}")
    return ", ".join(done) or "nothing but the mean subtracted: more did not help on the gallery"


@dataclass
class ModelResult:
    """One model, and its two controls, stage by stage."""

    name: str
    model: FeatureModel
    stages: list[StageResult]
    random: list[StageResult] | None
    statistics: list[StageResult]
    debias: Debias | None
    features: ProbeFeatures
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
            "debias": debias and {"stage": self.stages[debias.stage].name, **debias.to_dict()},
        }


@dataclass
class Diagnosis:
    """Everything that was measured; `failed` says of models that could not be why not."""

    data: ProbeData
    measures: tuple[str, ...]
    skipped: dict[str, str]
    settings: dict[str, Any]
    models: list[ModelResult] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it: no NaN, nothing that was not measured without its reason."""
        return {
            "format": FORMAT,
            "protocols": {metric.key: metric.protocol for metric in METRICS} | EXTRA_PROTOCOLS,
            "settings": self.settings,
            "measures": list(self.measures),
            "skipped": self.skipped,
            "models": [model.to_dict() for model in self.models],
            "differences": self.differences(),
            "failed": self.failed,
        }

    def differences(self) -> list[dict[str, Any]]:
        """Of every further model, how much the numbers of its last stage are above those of the first model.

        Both saw the same pictures, so these intervals are narrower than those of single models. There are none over
        several draws of data: the intervals would know of pictures, and not of draws.
        """
        if self.settings["seeds"] > 1:
            return []
        return [
            {"model": model.name, "from": self.models[0].name, "numbers": _above(model.last, self.models[0].last)}
            for model in self.models[1:]
        ]

    def save_layers(self, output: Path) -> list[str]:
        """The debias layer of every model that has one; names of the files."""
        files = []
        for number, result in enumerate(self.models):
            if (debias := result.debias) is not None:
                about = {
                    "model": result.name,
                    "stage": result.stages[debias.stage].name,
                    "directions": debias.count,
                    "strength": debias.strength,
                    "protocol": EXTRA_PROTOCOLS["debias"],
                    "data": self.data.name,
                    "seed": self.settings["seed"],
                }
                files.append(f"debias_{number}.safetensors")
                save_layer(debias.layer, output / files[-1], about)
        return files


def _above(one: StageResult, other: StageResult) -> dict[str, Any]:
    """The numbers of one stage less those of another, with their intervals, as JSON takes them."""
    shared = one.numbers.keys() & other.numbers.keys()
    return {
        key: difference(value, other.numbers[key]).to_dict() for key, value in one.numbers.items() if key in shared
    }
