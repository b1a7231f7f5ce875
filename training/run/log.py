"""What a run writes about itself: run.json, log.jsonl, and the numbers a progress bar shows."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dataset_scripts.files import read_json_lines, write_text
from training.data.batches import Broken, RegionBatch


class RunLog:
    """log.jsonl: one JSON object per logged step, flushed as it is written."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A resumed run repeats the steps after its checkpoint; their old lines go. A new one keeps none.
        lines = read_json_lines(path) if first_step > 0 else []
        kept = [line for line in lines if line.get("step", math.inf) <= first_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


class Meter:
    """What happened between two log lines: time, waiting for data, room that moved regions had, broken images."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0
        self.images = 0
        self.slack: list[float] = []
        self.can_move: list[bool] = []
        self.broken: list[Broken] = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens meanwhile: it is no training."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def add(self, images: int, batches: list[RegionBatch]) -> None:
        """Count one step: its images over all processes, and this process's batches."""
        self.images += images
        for batch in batches:
            self.slack += batch.slack.tolist()
            self.can_move += batch.can_move.tolist()
            self.broken += batch.broken

    def line(self) -> dict[str, float | None]:
        """The values to log; slack is null where no sample was mixed."""
        seconds = time.perf_counter() - self.started
        count = len(self.slack)
        return {
            "slack": sum(self.slack) / count if count else None,
            "can_move": sum(self.can_move) / count if count else None,
            "images_per_second": self.images / seconds,
            "data_wait": self.waited / seconds,
            "seconds": seconds,
            "peak_memory_gb": peak_memory_gb(),
        }


class Pace:
    """How fast a process trains, told once, early."""

    FIRST, LAST = 2, 5  # steps that count: the first one warms up

    def __init__(self) -> None:
        self.durations: list[float] = []

    def add(self, seconds: float) -> float | None:
        """Count a step; gives the seconds per step after the last one that counts, None after all others."""
        if len(self.durations) == self.LAST:
            return None
        self.durations.append(seconds)
        counted = self.durations[self.FIRST - 1 :]
        return sum(counted) / len(counted) if len(self.durations) == self.LAST else None


def minutes_to_go(step: int, total_steps: int, step_seconds: float, measure_steps: int, measure_seconds: float) -> int:
    """Minutes, at least one, that a run has to go from a step on, with what it measures on the way and at its end."""
    seconds = step_seconds * (total_steps - step)
    if measure_steps:
        # Rounded up: the last step is measured whether its turn has come or not.
        seconds += measure_seconds * (-(-total_steps // measure_steps) - step // measure_steps)
    return max(1, round(seconds / 60))


def peak_memory_gb() -> float:
    """The most memory this process has held so far, in 2^30 bytes: of the GPU if there is one, else its own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def count_things(number: int, thing: str, plural: str = "s") -> str:
    """A number with what it counts, in the right number."""
    return f"{number} {thing if number == 1 else thing + plural}"
