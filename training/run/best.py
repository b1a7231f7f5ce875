"""What a run that continues weights leaves: its end, or the best state that it was in before, the start included."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors.torch import load_file

from training.run.anchor import START_FOLDER
from training.run.checkpoints import saved_steps, step_of
from training.run.model import build_model
from training.run.setup import Run

WATCHED = ("object_knn_class_mean", "object_knn", "region_retrieval")
"""What the watchdog looks at: the first of these that the data allow."""

THREE_SITUATIONS = ("object_knn_class_mean", "object_knn_surroundings", "object_knn_moved")
"""How well objects are named as they are, before other surroundings, and moved."""


def score(measures: Mapping[str, float]) -> tuple[str, float] | None:
    """Name and value of what tells the better of two states: higher is better. None where nothing was measured."""
    if all(name in measures for name in THREE_SITUATIONS):
        return "object_knn_three_situations", fmean(measures[name] for name in THREE_SITUATIONS)
    name = next((name for name in WATCHED if name in measures), None)
    return None if name is None else (name, measures[name])


def noise(share: float, measures: Mapping[str, float], measure: str) -> float:
    """Two standard errors of a share: among all regions, or those of which something was exchanged or moved."""
    count = measures.get("measured_regions", math.inf)
    if measure not in ("object_knn_class_mean", "object_knn"):
        count = measures.get("exchanged_regions", count)
    return 2 * math.sqrt(share * (1 - share) / count)


@dataclass(frozen=True)
class Left:
    """A state that a run leaves in place of its end, for run.json and for people."""

    step: int  # 0: the start
    why: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return vars(self).copy()


def better_than_end(run: Run) -> Left | None:
    """The best state of a run that came to its end, if the end has lost more than noise since then."""
    best, last = run.state.get("best"), run.state.get("measured", {}).get("last", {})
    found = score(last)
    if not run.continues_weights or best is None or found is None or found[0] != best["measure"]:
        return None
    allowed = noise(best["value"], last, best["measure"])
    if best["value"] - found[1] <= allowed or _checkpoint(run, best["step"]) is None:
        return None
    return Left(
        best["step"],
        f"What is exported is {_state(best['step'])}, not the end: {_in_words(best)} there and {found[1]:.3f} at the "
        f"end, a loss of more than noise ({allowed:.3f}). {_cause(run, best['step'])}",
    )


def best_so_far(run: Run, cause: str = "") -> Left | None:
    """The best state of a run that was stopped; None where there is none to go back to: fresh weights know nothing."""
    if not run.continues_weights:
        return None
    best = run.state.get("best", {"step": 0})
    if _checkpoint(run, best["step"]) is None:  # it lies where the run was taken up from
        best = {"step": 0}
    known = f"the best so far ({_in_words(best)})" if "value" in best else "since nothing was measured"
    why = f"What is exported is {_state(best['step'])}, {known}. {_cause(run, best['step'], cause)}"
    return Left(best["step"], why)


def bring_back(run: Run, step: int) -> None:
    """Give the networks of a run the weights that they had at the start or at a checkpoint."""
    folder = _checkpoint(run, step)
    assert folder is not None
    if step == 0:
        weights = build_model(run.recipe.model, run.recipe.run.seed, folder).state_dict()
    else:
        weights = load_file(folder / "model.safetensors")
    run.net.load_state_dict(weights, strict=True)


def _checkpoint(run: Run, step: int) -> Path | None:
    """The folder of a state, if it is there."""
    output = Path(run.recipe.run.output_dir)
    saved = {step_of(path): path for path in saved_steps(output / "checkpoints")} | {0: output / START_FOLDER}
    return saved[step] if step in saved and saved[step].is_dir() else None


def _state(step: int) -> str:
    return f"the state of step {step}" if step else "the start"


def _in_words(best: Mapping[str, Any]) -> str:
    names = {
        "object_knn_three_situations": "object k-NN as objects are, before other surroundings and moved, on average"
    }
    return f"{names.get(best['measure'], best['measure'])}: {best['value']:.3f}"


def _cause(run: Run, best_step: int, known: str = "") -> str:
    """The likely causes, as far as they can be told, and what to change."""
    causes = [known] if known else []
    if run.recipe.model.batch_norm == "train":
        causes.append("batch norms that take new statistics from the views of training (set batch_norm to frozen)")
    if run.peak_learning_rate > 0 and best_step <= run.warmup_steps:
        rate = run.recipe.run.base_learning_rate
        causes.append(f"a learning rate above what keeps the network (lower base_learning_rate, which is {rate:g})")
    return f"Likely cause: {'; or '.join(causes or ['what it was trained on (look at views.png)'])}."
