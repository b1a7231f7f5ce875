"""Where a run or a number comes from: command, commit, versions, data and machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training.data.sources import ImageSource
from training.data.streaming import ImageStream
from training.recipe import Recipe, origins

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub", "safetensors", "numpy", "decodepos")


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
