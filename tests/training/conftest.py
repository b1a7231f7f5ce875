"""A tiny data set and a tiny recipe, made once for the session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset_scripts import prepare
from training.recipe import Recipe, build_recipe

IMAGES = 24


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training scenes of 64 pixels."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    size = ["--train", str(IMAGES), "--validation", "4", "--size-px", "64", "--workers", "1"]
    assert prepare.main(["scenes", "--output", str(folder), *size]) in (0, None)
    return folder


@pytest.fixture
def recipe_values(scenes: Path, tmp_path: Path) -> dict[str, Any]:
    """Keys of a run that takes a second."""
    return {
        "data": str(scenes),
        "view_size_px": 64,
        "backbone": "resnet_tiny",
        "mixed_precision": "no",  # whatever this machine is fast in
        "region_bins": 4,
        "projector_hidden_size": 32,
        "projection_size": 16,
        "output_dir": str(tmp_path / "run"),
        "max_steps": 6,
        "global_batch_size": 8,
        "optimizer": "adamw",
        "base_learning_rate": 0.02,
        "log_steps": 1,
        "measure_steps": 0,
        "measure_size_px": 0,  # the views' size
        "probe_count": 4,
        "cpu": True,
    }


@pytest.fixture
def make_recipe(recipe_values: dict[str, Any]) -> Callable[..., Recipe]:
    """The tiny recipe with some keys changed."""
    return lambda **changes: build_recipe({**recipe_values, **changes}, name="tiny")


def save_pictures(folder: Path, names: list[str], seed: int = 0) -> Path:
    """Small pictures of noise in different sizes, in the format each name ends with."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + number % 5, 60 - number % 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A plain folder of twelve pictures, and of things that are none."""
    folder = save_pictures(
        tmp_path / "pictures", [f"{'ab'[n % 2]}/{n:02}.{('jpg', 'png')[n % 3 == 0]}" for n in range(12)]
    )
    (folder / "notes.txt").write_text("not a picture")
    (folder / "a/._00.jpg").write_bytes(b"what a file system left behind")
    return folder
