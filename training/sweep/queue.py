"""Trains and measures the rows of a sweep, some at a time; every row is finished and stored on its own.

    OUTPUT/runs/ARM-seedN/      the run folder of `training/pretrain.py`, its checkpoints removed once it is measured
    OUTPUT/rows/ARM-seedN.json  its numbers, in the form of results files, or why there are none
    OUTPUT/logs/ARM-seedN.txt   what the commands printed

A row is done when its file is there and was made from the same recipe and measures. What was stopped goes on from its
last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from dataset_scripts.files import lock_folder, read_json_lines, write_json
from model_cards.comparison import find_value, measure_name
from modeling_decodepos.commands.settings import read_value
from training.errors import EXIT_INTERRUPTED
from training.evaluation.results import Measured, build_rows, load_results
from training.provenance import commit, now
from training.run.model import build_model
from training.run.resume import read_recipe, refuse_other_recipe
from training.sweep.results import restore_rows, write_results
from training.sweep.sweep import Row, Sweep, load_sweep

ROOT = Path(__file__).parents[2]
DIAGNOSIS = "diagnosis"


class Stopped(RuntimeError):
    """Time is up, or somebody asked: what is under way has saved its state."""


def run_sweep(args: argparse.Namespace) -> int:
    """Train and measure, then write results.json and report.html for what is done; returns how many rows are left."""
    changes = {}
    for pair in args.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, found {pair!r}.")
        changes[key] = read_value(value)
    sweep = load_sweep(args.sweep, changes, args.only)
    if args.dry_run:
        for row in sweep.rows(args.output):
            print(shlex.join(train_command(row)))
        return 0
    queue = Queue(sweep, args.output, args.threads, args.again)
    with lock_folder(args.output):
        for published in args.known:
            count = restore_rows(sweep, args.output, published)
            print(f"{published}: {count} rows taken; those of other recipes or measures run again", flush=True)
        queue.work(args.jobs, args.budget_minutes)
        return write_results(sweep, args.output, args.results)


class Queue:
    """Works off the rows of a sweep, `threads` for each; of those that are done, `again` is measured once more."""

    def __init__(self, sweep: Sweep, output: Path, threads: int = 1, again: str | None = None):
        if again not in (None, *sweep.measures):
            raise ValueError(f"--again {again}: {sweep.name} has the measures {', '.join(sweep.measures)}.")
        self.sweep, self.output, self.threads, self.again = sweep, output, threads, again
        self.stop = threading.Event()
        self.training: dict[Path, threading.Lock] = defaultdict(threading.Lock)  # two arms may have the same weights

    def work(self, jobs: int, budget_minutes: float) -> None:
        """Train and measure what is not done yet, some rows at a time, until all is or time is up."""
        rows = self.sweep.rows(self.output)
        missing = [row for row in rows if not self.is_done(row)]
        for row in missing:
            refuse_other_run(row)
        done = len(rows) - len(missing)
        print(f"{self.sweep.name}: {len(rows)} rows, {done} of them done; {jobs} at a time", flush=True)
        self.stop_when_asked(budget_minutes)
        self.write_architecture(rows)
        # The bar counts images, for those are what takes the time: so it can say how much is left.
        every, left = (sum(row.images for row in some) for some in (rows, missing))
        bar = tqdm(total=every, initial=every - left, unit="img", desc=self.sweep.name)
        over = threading.Event()  # where one fails, those that have not begun are left

        def begin(row: Row) -> None:
            if over.is_set():
                raise Stopped
            try:
                self.finish_row(row)
            except Stopped:
                raise
            except BaseException:
                over.set()  # here, for this thread takes the next row before the main one hears of it
                raise

        with bar, ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(begin, row): row for row in missing}
            try:
                for future in as_completed(futures):
                    with suppress(Stopped):
                        future.result()
                        row = futures[future]
                        bar.update(row.images)
                        bar.write(f"{row.name}: {_summary(row)}")
            finally:
                over.set()

    def stop_when_asked(self, budget_minutes: float) -> None:
        """Ask all that runs to stop when time is up, and at Ctrl-C and SIGTERM; a second one ends this process."""

        def receive(number: int, frame: Any) -> None:
            self.stop.set()
            signal.signal(number, signal.SIG_DFL)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, receive)
        if budget_minutes:
            timer = threading.Timer(60 * budget_minutes, self.stop.set)
            timer.daemon = True
            timer.start()

    def write_architecture(self, rows: Sequence[Row]) -> None:
        """Write a folder with the config of the sweep's networks, for those that are not trained."""
        untrained, folder = any(row.is_untrained for row in rows), self.output / "architecture"
        if untrained and not (folder / "config.json").is_file():
            trained = next(row for row in rows if not row.is_untrained)
            build_model(trained.build_recipe().model, 0).config.save_pretrained(folder)

    def is_done(self, row: Row) -> bool:
        """Whether a row's numbers are there, and those that are wanted again are from this commit."""
        values = row.load()
        if values is None or self.again is None:
            return values is not None
        here = commit()
        return all(result["commit"] == here for result in values["results"] if measured_by(result) == self.again)

    def finish_row(self, row: Row) -> None:
        """Train and measure one row, and store it."""
        if self.stop.is_set():
            raise Stopped
        values: dict[str, Any] = {
            "arm": row.arm,
            "seed": row.seed,
            "fingerprint": row.fingerprint,
            "recipe": row.build_recipe().values(),
        }
        if row.is_untrained:
            model = f"random:{self.output / 'architecture'}"
        else:
            model = str(row.model)
            with self.training[row.run]:
                failure = self._train(row)
            if row.weights == row:
                values |= {"images": row.images, "train_seconds": _trained_seconds(row.run)}
            if failure:
                write_json(row.file, {**values, "measure_seconds": 0, "results": [], "failure": failure})
                return
        values["command"] = shlex.join(train_command(row))
        started = time.monotonic()
        before = (row.load() or {}) if self.again else {}
        kept = [result for result in before.get("results", []) if measured_by(result) != self.again]
        results = self._measure(row, model, [self.again] if kept and self.again else list(self.sweep.measures))
        seconds = max(time.monotonic() - started, before.get("measure_seconds", 0))
        values |= {"measure_seconds": seconds, "results": [*kept, *results], "finished": now()}
        write_json(row.file, values)
        shutil.rmtree(row.run / "checkpoints", ignore_errors=True)

    def _train(self, row: Row) -> str | None:
        """Train a row, or go on; returns why there is nothing to measure, if so."""
        if row.model.is_dir():
            return None
        code = self._call(train_command(row), row.log)
        if code == EXIT_INTERRUPTED or (code and self.stop.is_set()):  # it may not have come to its own handler yet
            raise Stopped
        if code or not row.model.is_dir():
            known = row.run / "run.json"
            reason = json.loads(known.read_text(encoding="utf-8")).get("reason") if known.is_file() else None
            return reason or f"exit code {code}: {_last_lines(row.log)}"
        return None

    def _measure(self, row: Row, model: str, measures: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of results that some of the sweep's measures give for a model."""
        data = str(row.build_recipe().data.data)
        found = row.file.with_suffix(".measured.json")
        found.unlink(missing_ok=True)
        diagnosed = self.output / "diagnosis" / row.name
        results = []
        for protocol in measures:
            if protocol == DIAGNOSIS:
                command = ["python", "-m", "modeling_decodepos.diagnosis.command", model]
                common = {"data": data, "seed": row.seed, "output": diagnosed}
            else:
                command = ["python", "-m", "training.evaluation", protocol]
                common = {"model": model, "data": data, "arm": row.arm, "seeds": row.seed, "output": found}
            every = {**common, **self.sweep.measures[protocol], **row.flags}
            command += [part for key, value in every.items() for part in (f"--{key}", *_words(value))]
            if self._call(command, row.log):
                if self.stop.is_set():
                    raise Stopped
                raise RuntimeError(f"{shlex.join(command)} failed: {_last_lines(row.log)}")
            if protocol == DIAGNOSIS:
                results = diagnosis_rows(diagnosed / "report.json", model, row, shlex.join(command))
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
                if self.stop.wait(0.2):
                    process.terminate()
                    process.wait()
        return process.returncode


def train_command(row: Row) -> list[str]:
    """The command that trains a row."""
    values = {**row.values, "output_dir": row.run}
    flags = [part for key, value in values.items() for part in (f"--{key}", _flag(value))]
    return ["python", "training/pretrain.py", str(row.sweep.recipe), *flags]


def measured_by(result: dict[str, Any]) -> str:
    """The measure of a sweep that a result comes from."""
    return measure_name(result).split("/")[0]


def diagnosis_rows(report: Path, model: str, row: Row, command: str) -> list[dict[str, Any]]:
    """The numbers of a diagnosis as rows of results: those of the last stage, and the context leak of every stage."""
    found = json.loads(report.read_text(encoding="utf-8"))
    settings = ",".join(f"{key}={found['settings'][key]}" for key in ("data", "images", "picture_size_px"))
    for reading in set(found["settings"]["reading"]) - {"aligned"}:
        settings += ",centre_cells=True" if reading == "known" else f",reading={reading}"
    stages = found["models"][0]["stages"]
    numbers = {name: (name, number) for name, number in stages[-1]["numbers"].items()}
    for stage in stages[:-1]:
        if "context_leak" in stage["numbers"]:
            numbers[f"context_leak_{stage['stage']}"] = "context_leak", stage["numbers"]["context_leak"]
    data_hash, here, results = found["settings"].get("data_hash", found["settings"]["data"]), commit(), []
    for metric, (name, number) in numbers.items():
        if name in found["protocols"] and number["value"] is not None:
            protocol = f"{DIAGNOSIS}-{found['protocols'][name]}:{settings}"
            origin = {"model": model, "arm": row.arm, "protocol": protocol, "commit": here}
            origin |= {"data_hash": data_hash, "label": "reduced scale"}
            measured = Measured(number["value"], (number["low"], number["high"]), number["count"])
            results += build_rows(origin, {row.seed: {metric: measured}}, {})
    for result in results:
        del result["settings"]  # the protocol names them
        result["command"] = command
    return results


def refuse_other_run(row: Row) -> None:
    """Raises where the folder of a row holds a run of another recipe, whose weights would be measured in its place."""
    known = row.run / "run.json"
    if not row.is_untrained and known.is_file():
        recipe = row.build_recipe()
        run = dataclasses.replace(recipe.run, output_dir=str(row.run))
        refuse_other_recipe(row.run, read_recipe(known), dataclasses.replace(recipe, run=run))


def _trained_seconds(run: Path) -> float:
    """From the run's own log, so that an interrupted row counts what it really took; its first line is warming up."""
    return sum([line["seconds"] for line in read_json_lines(run / "log.jsonl") if line.get("images_per_second")][1:])


def _summary(row: Row) -> str:
    values = row.load() or {}
    if "failure" in values:
        return f"nothing to measure: {values['failure']}"
    shown = []
    for name in row.sweep.show[:4]:
        value = find_value(values["results"], name)
        shown.append(f"{name} -" if value is None else f"{name} {value:.3f}")
    return ", ".join(shown) or f"{len(values['results'])} numbers"


def _last_lines(log: Path) -> str:
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])[-500:]


def _flag(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list) else str(value)


def _words(value: Any) -> list[str]:
    if value is True:
        return []
    return [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]
