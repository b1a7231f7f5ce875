"""A sample of the same as real processes: the exit code, what stands on standard error, and nothing written."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.forks import ROOT
from tests.training.runs import ENVIRONMENT


def process(folder: Path, *words: object) -> subprocess.CompletedProcess:
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_processes_end_with_a_sentence(tmp_path: Path, whole_models: Path, scenes: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_bytes((whole_models / "ours" / "config.json").read_bytes())
    (damaged / "model.safetensors").write_bytes(bytes(2000))
    place, out = tmp_path / "place", tmp_path / "out"
    place.write_text("mine")
    train = (ROOT / "training" / "pretrain.py", "--data", scenes, "--output_dir")
    cases = {
        "weights of .*damaged cannot be used": (
            *("-m", "training.export", damaged, "--output", out),
            *("--format", "pretraining"),
        ),
        "max_steps is '010'": (*train, out, "--max_steps", "010"),
        "output_dir .*place cannot be written": (*train, place, "--max_steps", "1", "--cpu"),
        "--device banana cannot be used here": (
            *("-m", "modeling_decodepos.diagnosis.command", "random:resnet_tiny"),
            *("--output", out, "--device", "banana"),
        ),
        "temperature is nan": (
            *("-m", "training.evaluation", "object_knn", "--model", "random:resnet_tiny", "--data", scenes),
            *("--output", out, "--temperature", ".nan"),
        ),
        "image_size_px: it is 0": ("-m", "training.export", damaged, "--output", out, "--image_size_px", "0"),
        "the Hub takes no repository": ("-m", "dataset_scripts.publish", scenes, "--repo", "org/a--b", "--dry_run"),
    }  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        ended = pool.map(lambda words: process(tmp_path, *words), cases.values())
    for says, found in zip(cases, ended, strict=True):
        assert found.returncode in (1, 2), (says, found)
        assert "Traceback" not in found.stderr, found.stderr
        assert re.search(says, found.stderr), (says, found.stderr)
    assert not out.exists() and place.read_text() == "mine"
