"""What a sweep file says: a base recipe, arms that each change some of its keys, seeds, and what is measured.

name: arms_scenes                             # of the results file
question: Does it help?                       # that the sweep answers, for its page
recipe: training/recipes/ablation_both.yaml   # what all arms share …
keys: {view_size_px: 64, max_steps: 1500}     # … and what differs from that file in all of them
seeds: [0, 1, 2]
baseline: byol_region                         # every arm is compared with this one, seed by seed
arms:
  untrained: null                             # the network as it starts
  byol_region: {objective: byol_region}
  both: {objective: both}
  both_centred: {weights_of: both, measure_with: {centre_cells: true}}  # the same weights, read otherwise
measures:                                     # flags of `python -m training.evaluation` and `decodepos-diagnose`
  object_knn: {size_px: 64}
show: [object_knn/class_mean_k20]             # the numbers of the table, in this order
contrasts:                                    # sums of arms, seed by seed, each with its interval
  both less region BYOL: {both: 1, byol_region: -1}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataset_scripts.files import read_json
from modeling_decodepos.commands.settings import fields, from_values, nearest, read_yaml
from training.recipe import Recipe, build_recipe, load_recipe

Keys = Mapping[str, Any]
_WEIGHTS, _FLAGS = "weights_of", "measure_with"
# Recipe keys of no consequence for what is trained and measured.
_FREE = ("output_dir", "num_workers", "log_steps", "cache_dir", "cpu")


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked."""

    name: str
    recipe: Path
    arms: Mapping[str, Keys | None]
    seeds: tuple[int, ...]
    baseline: str
    measures: Mapping[str, Keys]
    keys: Keys = field(default_factory=dict)
    show: tuple[str, ...] = ()
    question: str = ""
    contrasts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def rows(self, output: Path = Path()) -> list[Row]:
        """What is to be trained and measured, all arms of a seed before the next seed: a sweep cut short is fair."""
        return [Row(self, arm, seed, output) for seed in self.seeds for arm in self.arms]


@dataclass(frozen=True)
class Row:
    """One arm with one seed, and where its files are below the folder of the sweep."""

    sweep: Sweep
    arm: str
    seed: int
    output: Path

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm}-seed{self.seed}"

    @property
    def is_untrained(self) -> bool:
        """Whether the network is measured as it starts."""
        return self.sweep.arms[self.arm] is None

    @property
    def keys(self) -> Keys:
        """What the sweep file says of the arm."""
        return self.sweep.arms[self.arm] or {}

    @property
    def weights(self) -> Row:
        """The row whose weights are measured: this one, unless its arm has those of another."""
        return replace(self, arm=self.keys[_WEIGHTS]) if _WEIGHTS in self.keys else self

    @property
    def flags(self) -> Keys:
        """Flags of this arm's measurements, beside those that all arms have."""
        flags: Keys = self.keys.get(_FLAGS, {})
        return flags

    @property
    def values(self) -> dict[str, Any]:
        """Recipe keys of the weights, beside those of the recipe file."""
        return {**self.sweep.keys, **self.weights.keys, "seed": self.seed}

    def build_recipe(self) -> Recipe:
        """The whole recipe."""
        return load_recipe(self.sweep.recipe, self.values)

    @property
    def images(self) -> int:
        """Images that training it takes."""
        run = self.build_recipe().run
        return 0 if self.is_untrained or self.weights != self else run.max_steps * run.global_batch_size

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides its numbers; without the keys at their defaults, so that a new key changes none."""
        defaults, recipe = build_recipe({}).values(), self.build_recipe().values()
        recipe = {key: value for key, value in recipe.items() if key not in _FREE and value != defaults[key]}
        decisive = {"recipe": recipe, "untrained": self.is_untrained, "measures": self.sweep.measures}
        decisive |= {"flags": self.flags} if self.flags else {}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.output / "runs" / self.weights.name

    @property
    def model(self) -> Path:
        """What is measured: the student with its own way to read regions, which a plain backbone does not know."""
        return self.run / "export" / "pretraining"

    @property
    def file(self) -> Path:
        """Its numbers."""
        return self.output / "rows" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What its commands print."""
        return self.output / "logs" / f"{self.name}.txt"

    def load(self) -> dict[str, Any] | None:
        """What is stored of it once it is finished; one of another recipe is not finished."""
        try:
            values = read_json(self.file)
        except (OSError, ValueError):
            return None
        return values if values.get("fingerprint") == self.fingerprint else None


def load_sweep(path: Path, changes: Keys | None = None, only: Sequence[str] | None = None) -> Sweep:
    """The sweep of a YAML file; `changes` are recipe keys for all arms, over the file's, `only` its arms wanted."""
    # An empty key is a missing one.
    values = {name: value for name, value in read_yaml(path).items() if value or name not in fields(Sweep)}
    values["keys"] = {**values.get("keys", {}), **(changes or {})}
    sweep = from_values(Sweep, values, str(path))
    for name, weights in sweep.contrasts.items():
        fits = isinstance(weights, Mapping) and all(isinstance(weight, int | float) for weight in weights.values())
        if not fits or not weights or set(weights) - set(sweep.arms):
            raise ValueError(f"{path}, contrast {name}: found {weights}; expected arms and their weights.")
    if only:
        if unknown := sorted(set(only) - set(sweep.arms)):
            raise ValueError(f"{path} has no arm {unknown[0]!r}.{nearest(unknown[0], sweep.arms)}")
        wanted = {*only, sweep.baseline}
        wanted |= {str((sweep.arms.get(arm) or {}).get(_WEIGHTS)) for arm in wanted}
        sweep = replace(
            sweep,
            arms={arm: keys for arm, keys in sweep.arms.items() if arm in wanted},
            contrasts={name: weights for name, weights in sweep.contrasts.items() if set(weights) <= wanted},
        )
    if sweep.baseline not in sweep.arms:
        raise ValueError(f"{path}: baseline is {sweep.baseline!r}, no arm.{nearest(sweep.baseline, sweep.arms)}")
    if all(keys is None for keys in sweep.arms.values()):
        raise ValueError(f"{path}: no arm is trained; give one a mapping of recipe keys.")
    for row in sweep.rows():
        if _WEIGHTS in row.keys and (
            set(row.keys) != {_WEIGHTS, _FLAGS} or _WEIGHTS in (sweep.arms.get(row.keys[_WEIGHTS]) or {_WEIGHTS: ""})
        ):
            raise ValueError(
                f"{path}, arm {row.arm}: expected {_WEIGHTS}: a trained arm, and {_FLAGS}: flags of the measurements; "
                f"found {dict(row.keys)}."
            )
        try:
            row.build_recipe()
        except ValueError as error:
            raise ValueError(f"{path}, arm {row.arm}: {error}") from None
    return sweep
