"""What hostile cases damage: small models, data and a finished run, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import ResNetModel

from modeling_decodepos import DecodePosForPreTraining
from tests.hostile.running import run
from tests.modeling.conftest import shake, tiny_config, tiny_resnet
from tests.training.conftest import scenes  # noqa: F401
from tests.training.evaluation.conftest import squares  # noqa: F401
from training.export.folders import export_pretraining

SMALL_RUN = (
    *("--view_size_px", 64, "--backbone", "resnet_tiny", "--region_bins", 4, "--projector_hidden_size", 16),
    *("--projection_size", 8, "--global_batch_size", 4, "--optimizer", "adamw", "--base_learning_rate", 0.02),
    *("--log_steps", 1, "--max_steps", 2, "--measure_steps", 0, "--probe_count", 0, "--cpu"),
)


@pytest.fixture(scope="session")
def whole_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain ResNet and a pre-training model of ours, as folders."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    shake(ResNetModel(tiny_resnet())).save_pretrained(folder / "plain")
    export_pretraining(shake(DecodePosForPreTraining(tiny_config())), folder / "ours", 64)
    return folder


@pytest.fixture
def copy_model(whole_models: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them, to be damaged."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(whole_models / kind, tmp_path / f"damaged-{kind}"))

    return copy


@pytest.fixture(scope="session")
def finished_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The folder of a run of two steps, with both checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = (*SMALL_RUN, "--probe_count", 4, "--save_steps", 1, "--measure_steps", 1, "--measure_images", 8)
    ended = run("pretrain", *words, "--data", scenes, "--output_dir", folder)
    assert ended.code == 0 and ended.escaped is None, (ended.escaped, ended.text)
    return folder


@pytest.fixture
def damaged_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
