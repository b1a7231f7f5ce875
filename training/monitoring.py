"""What a run writes about itself: run.json, log.jsonl, and the numbers a progress bar shows."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dataset_scripts.files import write_text
from training.arguments import Recipe, origins
from training.images import ImageSource
from training.loading import Broken, RegionBatch
from training.streaming import ImageStream

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub", "safetensors", "numpy", "decodepos")


class RunLog:
    """log.jsonl: one JSON object per logged step, flushed as it is written."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A resumed run repeats the steps after its checkpoint; their old lines go. A new one keeps none.
        kept = [line for line in read_log(path) if first_step > 0 and line["step"] <= first_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line cut off by a crash is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


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


def peak_memory_gb() -> float:
    """The most memory this process has held so far, in 2^30 bytes: of the GPU if there is one, else its own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def describe_run(recipe: Recipe, data: dict[str, Any]) -> dict[str, Any]:
    """What run.json holds when a run starts."""
    return {
        "name": Path(recipe.run.output_dir).name,
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "started": now(),
        "finished": None,
        "status": "running",
        "recipe": recipe.values(),
        "recipe_name": recipe.name,
        "origins": origins(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "commit": commit(),
        "data": data,
        "machine": _machine(),
    }


def describe_data(path: str, source: ImageSource | ImageStream) -> dict[str, Any]:
    """Where the images came from, with the fingerprint that tells them from others."""
    return {
        "path": path,
        "split": source.split,
        "images": len(source),
        "hash": source.fingerprint,
        "regions": source.region_source,
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file so that it is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(values, indent=2) + "\n")


def count_things(number: int, thing: str, plural: str = "s") -> str:
    """A number with what it counts, in the right number."""
    return f"{number} {thing if number == 1 else thing + plural}"


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "not installed"


def commit() -> str:
    """The commit of this code, marked where the checkout has changes that no commit has.

    Results and the pages that are written from them are no code: a sweep that stores its own would mark the next row.
    """
    here = Path(__file__).parent
    written = (":(exclude,top)model_cards/results", ":(exclude,top)docs")

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    try:
        return (ask("rev-parse", "HEAD") or "unknown") + (
            "+changes" if ask("status", "--porcelain", "--untracked-files=no", "--", ":/", *written) else ""
        )
    except FileNotFoundError:  # there is no git here
        return "unknown"


def _machine() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
