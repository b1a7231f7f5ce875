"""Places where nothing can be written: every command says so, before the work rather than after it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.conftest import SMALL_RUN
from tests.hostile.running import refused

Place = Callable[[Path], Path]


def a_file(folder: Path) -> Path:
    (folder / "there").write_text("mine")
    return folder / "there"


def a_full_folder(folder: Path) -> Path:
    (folder / "there").mkdir()
    (folder / "there" / "mine.txt").write_text("mine")
    return folder / "there"


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file" / "there"


def a_link_to_nowhere(folder: Path) -> Path:
    (folder / "there").symlink_to(folder / "absent" / "deeper")
    return folder / "there"


def a_long_name(folder: Path) -> Path:
    return folder / ("a" * 300)


def not_a_name(folder: Path) -> Path:
    return Path("/proc/decodepos/there")


FILES: dict[str, Place] = {
    "a folder": a_full_folder,
    "below a file": below_a_file,
    "a long name": a_long_name,
    "a system's folder": not_a_name,
}
FOLDERS: dict[str, Place] = {
    "a file": a_file,
    "a link to nowhere": a_link_to_nowhere,
    "below a file": below_a_file,
    "a long name": a_long_name,
    "a system's folder": not_a_name,
}


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must not have begun when a place is found to be unusable."""
    import modeling_decodepos.diagnosis.run
    import training.evaluation.measure
    import training.pretrain

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("the work had begun")

    monkeypatch.setattr(training.evaluation.measure, "evaluate", begun)
    monkeypatch.setattr(modeling_decodepos.diagnosis.run, "load_model", begun)
    monkeypatch.setattr(training.pretrain, "train", begun)


def words_of(command: str, place: Path, whole_models: Path, squares: Path, scenes: Path) -> list[object]:
    """The words of a command that would write there."""
    model = whole_models / "plain"
    return {
        "evaluate": ["object_knn", "--model", model, "--data", squares, "--size_px", 64],
        "diagnose": ["random:resnet_tiny", "--images", 8, "--size", 64],
        "export": [model],
        "pretrain": [*SMALL_RUN, "--data", scenes, "--output_dir", place],
        "prepare": ["scenes", "--train", 2, "--validation", 0, "--size_px", 32, "--workers", 1],
        "preview": [scenes],
        "views": ["--data", scenes],
        "find": [model, "--count", 4, "--untrained", 1],
        "sweep": ["training/sweeps/losses_scenes.yaml"],
        "cache": ["--data", scenes, "--cache_px", 32, "--workers", 0],
    }[command] + (["--output", place] if command != "pretrain" else [])


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("command", ["diagnose", "export", "pretrain", "prepare", "cache", "sweep"])
def test_a_folder_is_due(
    command: str, name: str, tmp_path: Path, whole_models: Path, squares: Path, scenes: Path
) -> None:
    place = FOLDERS[name](tmp_path)
    words = words_of(command, place, whole_models, squares, scenes)
    refused(command, words, place.name[:40], codes=(1, 2, os.EX_TEMPFAIL))
    if name == "a file":
        assert place.read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", ["evaluate", "views", "find", "preview"])
def test_a_file_is_due(
    command: str, name: str, tmp_path: Path, whole_models: Path, squares: Path, scenes: Path
) -> None:
    place = FILES[name](tmp_path)
    words = words_of(command, place, whole_models, squares, scenes)
    refused(command, words, place.name[:40], codes=(1, 2, os.EX_TEMPFAIL))
