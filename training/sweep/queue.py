"""Trains and measures the rows of a sweep, some at a time; every row is finished and stored on its own.

    OUTPUT/runs/ARM-seedN/      the run folder of `training/pretrain.py`, its checkpoints removed once it is measured
    OUTPUT/rows/ARM-seedN.json  its numbers, in the form of results files, or why there are none
    OUTPUT/logs/ARM-seedN.txt   what the commands printed

A row is done when its file is there and was made from the same recipe and measures. What was stopped goes on from its
last checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from dataset_scripts.files import write_json
from model_cards.comparison import find_value, measure_name
from training.errors import EXIT_INTERRUPTED
from training.provenance import commit, now
from training.recipe import build_recipe
from training.run.log import read_log
from training.sweep.sweep import Row, Sweep

ROOT = Path(__file__).parents[2]
DIAGNOSIS = "diagnosis"
# Of no consequence for what is trained and measured.
_FREE = ("output_dir", "num_workers", "log_steps", "cache_dir", "cpu")


class Stopped(RuntimeError):
    """Time is up, or somebody asked: what is under way has saved its state."""


@dataclass(frozen=True)
class Place:
    """Where a row's files are."""

    output: Path
    row: Row

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.output / "runs" / self.row.weights.name

    @property
    def model(self) -> Path:
        """What is measured: the student with its own way to read regions, which a plain backbone does not know."""
        return self.run / "export" / "pretraining"

    @property
    def file(self) -> Path:
        """Its numbers."""
        return self.output / "rows" / f"{self.row.name}.json"

    @property
    def log(self) -> Path:
        """What its commands print."""
        return self.output / "logs" / f"{self.row.name}.txt"


def fingerprint(row: Row) -> str:
    """Hash of all that decides a row's numbers; without the keys at their defaults, so that a new key changes none."""
    defaults = build_recipe({}).values()
    recipe = {
        key: value for key, value in row.build_recipe().values().items() if key not in _FREE and value != defaults[key]
    }
    decisive = {"recipe": recipe, "untrained": row.sweep.arms[row.arm] is None, "measures": row.sweep.measures}
    decisive |= {"flags": row.flags} if row.flags else {}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_row(place: Place) -> dict[str, Any] | None:
    """A finished row, or None; one of another recipe is not finished."""
    if not place.file.is_file():
        return None
    try:
        values = json.loads(place.file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None
    return values if values.get("fingerprint") == fingerprint(place.row) else None


class Queue:
    """Works off the rows of a sweep."""

    def __init__(
        self, sweep: Sweep, output: Path, jobs: int, threads: int, budget_minutes: float, again: str | None = None
    ):
        self.sweep, self.output, self.jobs, self.threads = sweep, output, jobs, threads
        self.again = again
        if again not in (None, *sweep.measures):
            raise ValueError(f"--again {again}: {sweep.name} has the measures {', '.join(sweep.measures)}.")
        self.deadline = time.monotonic() + 60 * budget_minutes if budget_minutes else float("inf")
        self.stop = threading.Event()
        self.architecture = threading.Lock()
        self.training: dict[Path, threading.Lock] = defaultdict(threading.Lock)

    def work(self) -> None:
        """Train and measure what is not done yet, until all is or time is up."""
        places = [Place(self.output, row) for row in self.sweep.rows()]
        missing = [place for place in places if not self.is_done(place)]
        for undone in missing:
            refuse_other_run(undone)
        print(self.plan(places, missing), flush=True)
        with (
            stopping_on_signals(self.stop),
            ThreadPoolExecutor(self.jobs) as pool,
            tqdm(total=len(places), initial=len(places) - len(missing), unit="row", desc=self.sweep.name) as bar,
        ):
            waiting = iter(missing)
            running: dict[Future[None], Place] = {}
            while True:
                while len(running) < self.jobs and not self._is_over() and (place := next(waiting, None)) is not None:
                    running[pool.submit(self.finish_row, place)] = place
                if not running:
                    break
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    place = running.pop(future)
                    try:
                        future.result()
                    except Stopped:
                        continue
                    bar.update()
                    bar.write(f"{place.row.name}: {_summary(place)}")
                    bar.set_postfix_str(self.outlook(places))

    def is_done(self, place: Place) -> bool:
        """Whether a row's numbers are there, and those that are wanted again are from this commit."""
        values = load_row(place)
        if values is None or self.again is None:
            return values is not None
        here = commit()
        return all(result["commit"] == here for result in values["results"] if measured_by(result) == self.again)

    def plan(self, places: Sequence[Place], missing: Sequence[Place]) -> str:
        """What is to be done, and how long it will take if that can be known."""
        text = (
            f"{self.sweep.name}: {len(places)} rows, {len(places) - len(missing)} of them done; {self.jobs} at a time"
        )
        return f"{text}; {self.outlook(places)}"

    def outlook(self, places: Sequence[Place]) -> str:
        """The hours that are left, from what rows have taken so far."""
        rows = [(place, load_row(place)) for place in places]
        trained = [values for _, values in rows if values and values.get("train_seconds")]
        speeds = [values["images"] / values["train_seconds"] for values in trained]
        if not speeds:
            speeds = [speed for place in places for speed in _speed_so_far(place.run)]
        if not speeds:
            return "hours unknown until the first row has trained for a while"
        speed = sum(speeds) / len(speeds)
        extra = [values["measure_seconds"] for _, values in rows if values]
        left = [place for place, values in rows if values is None]
        images = sum(images_of(place.row) for place in left)
        seconds = images / speed + len(left) * (sum(extra) / len(extra) if extra else 0)
        return f"{speed:.0f} images/s a row, about {seconds / 3600 / self.jobs:.1f} h left"

    def finish_row(self, place: Place) -> None:
        """Train and measure one row, and store it."""
        values: dict[str, Any] = {
            "arm": place.row.arm,
            "seed": place.row.seed,
            "fingerprint": fingerprint(place.row),
            "recipe": place.row.build_recipe().values(),
        }
        if self.sweep.arms[place.row.arm] is None:
            model = f"random:{self._architecture(place)}"
        else:
            with self.training[place.run]:  # two arms may have the same weights
                failure = self._train(place)
            if place.row.weights == place.row:
                values |= {"images": images_of(place.row), "train_seconds": _trained_seconds(place.run)}
            if failure:
                write_json(place.file, {**values, "measure_seconds": 0, "results": [], "failure": failure})
                return
            model = str(place.model)
        values["command"] = shlex.join(self.train_command(place))
        started = time.monotonic()
        before = (load_row(place) or {}) if self.again else {}
        kept = [result for result in before.get("results", []) if measured_by(result) != self.again]
        results = self._measure(place, model, [self.again] if kept and self.again else list(self.sweep.measures))
        seconds = max(time.monotonic() - started, before.get("measure_seconds", 0))
        values |= {"measure_seconds": seconds, "results": [*kept, *results], "finished": now()}
        write_json(place.file, values)
        shutil.rmtree(place.run / "checkpoints", ignore_errors=True)

    def train_command(self, place: Place) -> list[str]:
        """The command that trains a row."""
        values = {**place.row.values, "output_dir": place.run}
        flags = [part for key, value in values.items() for part in (f"--{key}", _flag(value))]
        return ["python", "training/pretrain.py", str(self.sweep.recipe), *flags]

    def _architecture(self, place: Place) -> Path:
        """A folder with the config of the sweep's networks, for one that is not trained."""
        from training.run.model import build_model

        folder = self.output / "architecture"
        with self.architecture:
            if not (folder / "config.json").is_file():
                trained = Row(self.sweep, self.sweep.trained, place.row.seed)
                build_model(trained.build_recipe().model, 0).config.save_pretrained(folder)
        return folder

    def _train(self, place: Place) -> str | None:
        """Train a row, or go on; returns why there is nothing to measure, if so."""
        if place.model.is_dir():
            return None
        code = self._call(self.train_command(place), place.log)
        if code == EXIT_INTERRUPTED or (code and self._is_over()):  # it may not have come to its own handler yet
            raise Stopped
        if code or not place.model.is_dir():
            known = place.run / "run.json"
            reason = json.loads(known.read_text(encoding="utf-8")).get("reason") if known.is_file() else None
            return reason or f"exit code {code}: {_last_lines(place.log)}"
        return None

    def _measure(self, place: Place, model: str, measures: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of results that some of the sweep's measures give for a model."""
        from training.evaluation.results import load_results

        data = str(place.row.build_recipe().data.data)
        found = place.output / "rows" / f"{place.row.name}.measured.json"
        found.unlink(missing_ok=True)
        diagnosed = place.output / "diagnosis" / place.row.name
        results = []
        for protocol in measures:
            flags = self.sweep.measures[protocol]
            if protocol == DIAGNOSIS:
                command = ["python", "-m", "modeling_decodepos.diagnosis.command", model]
                common = {"data": data, "seed": place.row.seed, "output": diagnosed}
            else:
                command = ["python", "-m", "training.evaluation", protocol]
                common = {"model": model, "data": data, "arm": place.row.arm, "seeds": place.row.seed, "output": found}
            every = {**common, **flags, **place.row.flags}
            command += [part for key, value in every.items() for part in (f"--{key}", *_words(value))]
            if self._call(command, place.log):
                if self._is_over():
                    raise Stopped
                raise RuntimeError(f"{shlex.join(command)} failed: {_last_lines(place.log)}")
            if protocol == DIAGNOSIS:
                results = diagnosis_rows(diagnosed / "report.json", model, place.row, shlex.join(command))
        results = [*load_results(found), *results]
        found.unlink(missing_ok=True)
        return results

    def _call(self, command: Sequence[str], log: Path) -> int:
        """Run a command of this checkout; it is asked to stop when time is up."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": str(ROOT)}
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            process = subprocess.Popen(
                [sys.executable, *command[1:]],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            while process.poll() is None:
                if self._is_over():
                    process.terminate()
                    process.wait()
                time.sleep(0.2)
        return process.returncode

    def _is_over(self) -> bool:
        return self.stop.is_set() or time.monotonic() > self.deadline


def measured_by(result: dict[str, Any]) -> str:
    """The measure of a sweep that a result comes from."""
    return measure_name(result).split("/")[0]


def diagnosis_rows(report: Path, model: str, row: Row, command: str) -> list[dict[str, Any]]:
    """The numbers of a diagnosis as rows of results: those of the last stage, and the context leak of every stage."""
    from training.evaluation.results import machine

    found = json.loads(report.read_text(encoding="utf-8"))
    settings = ",".join(f"{key}={found['settings'][key]}" for key in ("data", "images", "picture_size_px"))
    if any(found["settings"].get("centre_cells", [])):
        settings += ",centre_cells=True"
    stages = found["models"][0]["stages"]
    numbers = {name: (name, number) for name, number in stages[-1]["numbers"].items()}
    for stage in stages[:-1]:
        if "context_leak" in stage["numbers"]:
            numbers[f"context_leak_{stage['stage']}"] = "context_leak", stage["numbers"]["context_leak"]
    return [
        {
            "model": model,
            "arm": row.arm,
            "protocol": f"{DIAGNOSIS}-{found['protocols'][name]}:{settings}",
            "metric": metric,
            "value": number["value"],
            "spread": {"std_over_seeds": None, "interval_95_over_images": [number["low"], number["high"]]},
            "seeds": [row.seed],
            "values": [number["value"]],
            "count": number["count"],
            "command": command,
            "commit": commit(),
            "data_hash": found["settings"].get("data_hash", found["settings"]["data"]),
            "machine": machine(),
            "label": "reduced scale",
            "measured": now(),
        }
        for metric, (name, number) in numbers.items()
        if name in found["protocols"] and number["value"] is not None
    ]


def refuse_other_run(place: Place) -> None:
    """Raises where the folder of a row holds a run of another recipe, whose weights would be measured in its place."""
    from training.run.resume import read_recipe, refuse_other_recipe

    known = place.run / "run.json"
    if place.row.sweep.arms[place.row.arm] is not None and known.is_file():
        recipe = place.row.build_recipe()
        run = dataclasses.replace(recipe.run, output_dir=str(place.run))
        refuse_other_recipe(place.run, read_recipe(known), dataclasses.replace(recipe, run=run))


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set the event; a second one ends the process."""

    def receive(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def images_of(row: Row) -> int:
    """Images that training a row takes."""
    if row.sweep.arms[row.arm] is None or row.weights != row:
        return 0
    run = row.build_recipe().run
    return run.max_steps * run.global_batch_size


def _speed_so_far(run: Path) -> list[float]:
    speeds = [line["images_per_second"] for line in read_log(run / "log.jsonl") if line.get("images_per_second")]
    return speeds[1:]


def _trained_seconds(run: Path) -> float:
    """From the run's own log, so that an interrupted row counts what it really took."""
    lines = [line for line in read_log(run / "log.jsonl") if line.get("images_per_second")]
    if len(lines) < 2:
        return 0.0
    spans = zip(lines[1:], lines[:-1], strict=True)
    batch = json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"]["global_batch_size"]
    return sum((line["step"] - before["step"]) * batch / line["images_per_second"] for line, before in spans)


def _summary(place: Place) -> str:
    values = load_row(place) or {}
    if "failure" in values:
        return f"nothing to measure: {values['failure']}"
    shown = []
    for name in place.row.sweep.show[:4]:
        value = find_value(values.get("results", []), name)
        shown.append(f"{name} {value:.3f}" if value is not None else f"{name} -")
    return ", ".join(shown) or f"{len(values.get('results', []))} numbers"


def _last_lines(log: Path) -> str:
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])[-500:]


def _flag(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list) else str(value)


def _words(value: Any) -> list[str]:
    if value is True:
        return []
    return [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]
