"""The Ray engine on a real Ray of two cores on this machine; and what is said where Ray is not installed."""

import importlib.util
import os
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dataset_scripts.build.parquet import RowFailed, build_dataset, load_manifest
from dataset_scripts.prepare import main
from dataset_scripts.sources.scenes import scenes_source

ROOT = Path(__file__).parents[3]
SOURCE = scenes_source(train=24, validation=8, size_px=32)

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
# Ray leaves sockets and files to the garbage collector.
quietly = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dying_row(marker: Path, split: str, number: int) -> dict:
    """A row whose worker is killed, as for memory, the first time it is made."""
    if (split, number) == ("train", 9) and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return SOURCE.make_row(split, number)


def failing_row(split: str, number: int) -> dict:
    if (split, number) == ("train", 20):
        raise OSError("no such picture")
    return SOURCE.make_row(split, number)


@pytest.mark.slow
@with_ray
@quietly
def test_a_cluster_writes_the_same_bytes_through_losses_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of a default that will change
    straight, folder = tmp_path / "straight", tmp_path / "scenes"
    build_dataset(straight, SOURCE, rows_per_shard=4)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(RowFailed, match="row 20 of split 'train'.*OSError: no such picture"):
            build_dataset(folder, replace(SOURCE, make_row=failing_row), workers=1, rows_per_shard=4, engine="ray")
        begun = load_manifest(folder)["files"]
        assert len(begun) == 5
        written = {path: (folder / path).stat().st_mtime_ns for path in begun}
        for path in list(begun)[:3]:
            (folder / path).unlink()  # so that row 9 is made again

        marker = tmp_path / "died"
        killed = replace(SOURCE, make_row=partial(dying_row, marker))
        build_dataset(folder, killed, workers=0, rows_per_shard=4, engine="ray")
        assert marker.exists()
        assert contents(folder) == contents(straight)
        for path in list(begun)[3:]:
            assert (folder / path).stat().st_mtime_ns == written[path]
        assert ray.is_initialized()  # it was not the build's to end
    finally:
        ray.shutdown()


@pytest.mark.slow
@with_ray
@quietly
def test_the_command_starts_and_ends_a_ray_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    command = ["scenes", "--train", "6", "--validation", "3", "--size-px", "32", "--workers", "2"]
    assert main([*command, "--output", str(tmp_path / "ray"), "--engine", "ray"]) == 0
    assert not ray.is_initialized()
    assert main([*command, "--output", str(tmp_path / "local")]) == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_without_ray_the_cure_is_named(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["scenes", "--train", "3", "--size-px", "32", "--output", str(tmp_path / "scenes")]
    assert main([*command, "--engine", "ray"]) == 2
    assert "pip install -e '.[train,ray]'" in capsys.readouterr().err


def test_an_output_that_the_machines_do_not_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from dataset_scripts.build import engines, parquet

    def elsewhere(items, work, workers, count):
        """Writes and takes the file away, as a machine with a disk of its own does."""
        for item in items:
            entry = work(item, count)
            shutil.move(tmp_path / "scenes" / item.path, tmp_path / "elsewhere")
            yield item, entry

    monkeypatch.setitem(engines.ENGINES, "ray", elsewhere)
    monkeypatch.setattr(parquet, "SHARED_WITHIN_S", 0.3)
    with pytest.raises(ValueError, match="was written, but is not to be seen on .* share"):
        build_dataset(tmp_path / "scenes", SOURCE, engine="ray")
    assert load_manifest(tmp_path / "scenes")["files"] == {}
