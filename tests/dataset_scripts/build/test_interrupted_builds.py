"""Builds that end before they are done, in real processes: what is left, what is said, and that they go on."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from dataset_scripts import prepare
from dataset_scripts.build.parquet import MANIFEST_NAME, RowFailed, build_dataset, load_manifest
from dataset_scripts.check import check_dataset
from dataset_scripts.files import lock_folder
from dataset_scripts.prepare import main
from dataset_scripts.sources import scenes
from dataset_scripts.sources.scenes import scenes_source

ROOT = Path(__file__).parents[3]
ROWS, ROWS_PER_SHARD = 90, 15
SETUP = "import sys; from tests.dataset_scripts.build import test_interrupted_builds as builds; "


def slow_row(split: str, number: int) -> dict:
    time.sleep(0.05)
    return SOURCE.make_row(split, number)


SOURCE = scenes_source(train=ROWS, validation=0, size_px=32)
COMMAND = ["scenes", "--train", str(ROWS), "--validation", "0", "--size-px", "32"]


def run_slowly(*arguments: str) -> int:
    """The command, but with rows that take their time and with small shards."""

    def build(folder, source, workers, overwrite, engine="local"):
        return build_dataset(folder, replace(source, make_row=slow_row), workers, ROWS_PER_SHARD, overwrite, engine)

    with mock.patch.object(prepare, "build_dataset", build):
        return main(arguments)


def started(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SETUP + code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def has_finished_shard(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).exists() and bool(load_manifest(folder)["files"])


def start_slow_build(folder: Path, workers: int) -> subprocess.Popen:
    """A build that has a finished shard and is in the middle of others."""
    code = "sys.exit(builds.run_slowly(*sys.argv[1:]))"
    process = started(code, *COMMAND, "--output", str(folder), "--workers", str(workers))
    deadline = time.monotonic() + 120
    while not (has_finished_shard(folder) and list(folder.glob("data/.*.tmp"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alive_in(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until_gone(session: int) -> None:
    deadline = time.monotonic() + 30
    while alive_in(session):
        assert time.monotonic() < deadline, alive_in(session)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "scenes"
    build_dataset(folder, SOURCE, rows_per_shard=ROWS_PER_SHARD)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [
        (signal.SIGKILL, False, -signal.SIGKILL),
        (signal.SIGTERM, True, 143),  # what a scheduler does
        pytest.param(signal.SIGTERM, False, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, 130, marks=pytest.mark.slow),  # what Ctrl-C does
    ],
)
def test_a_stopped_build_leaves_no_process_and_goes_on(
    straight: Path, tmp_path: Path, number: int, whole_group: bool, code: int
):
    folder = tmp_path / "scenes"
    process = start_slow_build(folder, workers=2)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    wait_until_gone(process.pid)
    if number != signal.SIGKILL:
        assert said.strip().splitlines()[-1].startswith("Stopped. What is finished is kept")
        assert "Traceback" not in said
        assert not list(folder.rglob(".*.tmp"))
    done = load_manifest(folder)
    assert not done["complete"]
    assert 0 < len(done["files"]) < ROWS / ROWS_PER_SHARD
    expected = ("not finished", "README.md is missing", "is not in manifest.json")  # the last: a kill between the two
    assert [text for text in check_dataset(folder) if not any(part in text for part in expected)] == []

    kept = {path: (folder / path).stat().st_mtime_ns for path in done["files"]}
    build_dataset(folder, SOURCE, workers=1, rows_per_shard=ROWS_PER_SHARD)
    assert {path: (folder / path).stat().st_mtime_ns for path in kept} == kept
    assert contents(folder) == contents(straight)


def test_two_builds_of_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "scenes"
    with lock_folder(folder, "--output", "build"):
        assert main([*COMMAND, "--output", str(folder), "--workers", "1"]) == 2
        assert f"--output {folder} is in use by another build" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert main([*COMMAND, "--output", str(folder), "--workers", "1"]) == 0


LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_the_build_goes_on(straight: Path, tmp_path: Path, workers: int):
    """A file may not grow beyond a limit, which is what a full disk looks like to a program."""
    assert min((straight / path).stat().st_size for path in load_manifest(straight)["files"]) > 20_000
    folder = tmp_path / "scenes"
    code = LIMIT + "sys.exit(builds.run_slowly(*sys.argv[1:]))"
    process = started(code, *COMMAND, "--output", str(folder), "--workers", str(workers))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75
    (line,) = [text for text in said.splitlines() if text.startswith("error")]
    assert str(folder) in line and "full (File too large)" in line and "run the same command again" in line
    assert "Traceback" not in said
    assert list((folder / "data").iterdir()) == []
    build_dataset(folder, SOURCE, rows_per_shard=ROWS_PER_SHARD)
    assert contents(folder) == contents(straight)


def failing_row(split: str, number: int) -> dict:
    if number == 40:
        raise ValueError("boxes.csv has no image 40")
    return SOURCE.make_row(split, number)


def test_a_row_that_fails_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setattr(scenes, "scenes_source", lambda *_: replace(SOURCE, make_row=failing_row))
    folder = tmp_path / "scenes"
    assert main([*COMMAND, "--output", str(folder), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    expected = "row 40 of split 'train', for data/train-00000-of-00001.parquet: ValueError: boxes.csv has no image 40"
    assert f"error: {expected}\n" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_failing_row_crosses_processes_as_it_was(tmp_path: Path):
    with pytest.raises(RowFailed, match="row 40 of split 'train'.* no image 40"):
        build_dataset(tmp_path / "x", replace(SOURCE, make_row=failing_row), workers=2, rows_per_shard=30)
