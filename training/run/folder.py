"""What a run folder holds, as far as it can be read: for the report and for publishing."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from dataset_scripts.files import read_json, read_json_lines
from modeling_decodepos.losses import OBJECTIVES, Objective
from training.probes.before_after import ProbeResult
from training.recipe import GROUPS
from training.run.gains import DIAGNOSIS, Gain, find_gains
from training.run.log import count_things

DEFAULTS: dict[str, Any] = {item.name: item.default for group in GROUPS for item in dataclasses.fields(group)}
"""Of every key of a recipe."""

_PNG, _JPEG = b"\x89PNG", b"\xff\xd8\xff"
PICTURES = {"views.png": _PNG, "probe.png": _PNG, "neighbours.jpg": _JPEG, "similarity.png": _PNG}
"""Names of the pictures and the bytes they begin with."""


@dataclass
class RunFiles:
    """What a run folder holds."""

    folder: Path
    description: dict[str, Any] = field(default_factory=dict)  # run.json
    log: list[dict[str, Any]] = field(default_factory=list)  # the lines of log.jsonl
    before: ProbeResult | None = None  # the probe before training
    after: ProbeResult | None = None
    gains: list[Gain] = field(default_factory=list)  # of a diagnosis of both ends
    pictures: dict[str, bytes] = field(default_factory=dict)  # those of `PICTURES` that are there
    broken: dict[str, str] = field(default_factory=dict)  # why an image could not be read, by its id
    problems: list[str] = field(default_factory=list)  # what is missing or broken in the folder

    def about(self, key: str) -> dict[str, Any]:
        """A part of run.json that has parts of its own; empty if there is none."""
        return _dictionary(self.description.get(key))

    @property
    def recipe(self) -> dict[str, Any]:
        """Every key of the recipe."""
        return self.about("recipe")

    def setting(self, key: str) -> float:
        """A number of the recipe, or its default where the recipe has none."""
        value = self.recipe.get(key)
        return value if is_number(value) else float(DEFAULTS[key])

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.description.get("name") or self.folder.resolve().name)

    @property
    def objective(self) -> Objective | None:
        """The table of loss pairs, if it is one this version knows."""
        objective = OBJECTIVES.get(str(self.recipe.get("objective")))
        return objective.contrasted() if objective and self.recipe.get("pair_loss") == "contrast" else objective

    @property
    def terms(self) -> list[str]:
        """Names of the loss terms."""
        named = self.description.get("terms")
        if isinstance(named, list):
            return [str(name) for name in named]
        return [term.name for term in self.objective.terms] if self.objective else []

    @property
    def step(self) -> int:
        """The last logged step."""
        return int(self.last("step") or 0)

    @property
    def total_steps(self) -> int:
        """Steps the run was to have; 0 if nothing says."""
        known = (self.description.get("steps"), self.recipe.get("max_steps"))
        return next((int(value) for value in known if is_number(value) and value), 0)

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.description.get("status") == "finished"

    def points(self, key: str) -> tuple[list[float], list[float | None]]:
        """Steps and values of a key, from the log lines that have it (measures have lines of their own)."""
        lines = [line for line in self.log if key in line and is_number(line.get("step"))]
        return [line["step"] for line in lines], [float(v) if is_number(v := line[key]) else None for line in lines]

    def values(self, key: str) -> list[float]:
        """Every logged number of a key."""
        return [line[key] for line in self.log if is_number(line.get(key))]

    def last(self, key: str) -> float | None:
        """The last logged number of a key."""
        return next(reversed(self.values(key)), None)

    def mean(self, key: str) -> float | None:
        """Mean of a key over the time that the lines stand for."""
        lines = [line for line in self.log if is_number(line.get(key)) and is_number(line.get("seconds"))]
        total = sum(line["seconds"] for line in lines)
        return sum(line[key] * line["seconds"] for line in lines) / total if total > 0 else None


def read_run(folder: Path, diagnosis: Path | None = None) -> RunFiles:
    """What a run folder holds; pieces that are missing or broken are named in `problems`.

    `diagnosis` is the folder of that of both ends, if it does not lie in the run's.
    """
    if not (folder / "run.json").is_file() and not (folder / "log.jsonl").is_file():
        raise FileNotFoundError(f"{folder} holds neither run.json nor log.jsonl; expected the output_dir of a run.")
    run = RunFiles(folder)
    run.description = _read_json(folder / "run.json", run.problems, required=True)
    log_file = folder / "log.jsonl"
    run.log = read_json_lines(log_file)
    written = log_file.read_text(encoding="utf-8", errors="replace").splitlines() if log_file.is_file() else []
    unread = sum(1 for line in written if line.strip()) - len(run.log)
    if unread > 0:
        run.problems.append(
            f"log.jsonl breaks off: {count_things(unread, 'line')} after step {run.step} could not be read. The run "
            "was probably stopped while it wrote."
        )
    elif not run.log:
        run.problems.append("log.jsonl has no lines: the run ended before it logged a step, so there are no curves.")
    for name, values in _read_json(folder / "probe.json", run.problems).items():
        if name in ("before", "after"):
            try:
                setattr(run, name, ProbeResult.from_dict(values))
            except (KeyError, TypeError):
                run.problems.append(f"probe.json: {name!r} is not a probe result of this version; it is left out.")
    try:
        run.gains = find_gains(_read_json((diagnosis or folder / DIAGNOSIS) / "report.json", run.problems))
    except (KeyError, TypeError, IndexError, AttributeError):
        run.problems.append("diagnosis/report.json is of another version; what was gained is left out.")
    for name in filter(lambda name: (folder / name).is_file(), PICTURES):
        data = (folder / name).read_bytes()
        if data.startswith(PICTURES[name]):
            run.pictures[name] = data
        else:
            kind = "PNG" if name.endswith(".png") else "JPEG"
            run.problems.append(f"{name} is not a {kind} file; it is left out.")
    for line in read_json_lines(folder / "broken_images.jsonl"):
        run.broken.setdefault(str(line.get("image_id")), str(line.get("reason")))
    return run


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_json(path: Path, problems: list[str], required: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if required:
            problems.append(f"{path.name} is missing: recipe, data and versions are unknown.")
        return {}
    try:
        return read_json(path)
    except ValueError as error:
        problems.append(f"{path.name} cannot be read ({error}); what it holds is left out.")
        return {}


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
