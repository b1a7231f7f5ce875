"""Run folders after a crash, a careless edit or a full disk: what is damaged is named, or made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.hostile.conftest import SMALL_RUN
from tests.hostile.running import refused, run

Damage = Callable[[Path], object]


def write(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def of_checkpoints(name: str, damage: Callable[[Path], object]) -> Damage:
    """The same file of both checkpoints damaged."""

    def both(folder: Path) -> None:
        for file in folder.glob(f"checkpoints/step_*/{name}"):
            damage(file)

    return both


def foreign_moments(file: Path) -> None:
    values = load_file(file)
    save_file({f"other.{key}": value for key, value in values.items()}, file)


def moments_of_another_shape(file: Path) -> None:
    values = load_file(file)
    save_file({key: value[:1].contiguous() if value.ndim else value for key, value in values.items()}, file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# What the next call of the same command, for more steps, says.
GOING_ON: dict[str, tuple[Damage, str]] = {
    "run.json a list": (write("run.json", b"[]"), "run.json is damaged"),
    "run.json cut": (write("run.json", b'{"recipe": {'), "run.json is damaged"),
    "run.json binary": (write("run.json", b"\xff\xfe\x80"), "run.json is damaged"),
    "run.json without a recipe": (write("run.json", b"{}"), "run.json is damaged"),
    "run.json with another": (write("run.json", b'{"recipe": 7}'), "run.json is damaged"),
    "state a list": (of_checkpoints("state.json", lambda file: file.write_text("[]")), "step_0000002.*state.json"),
    "state empty": (of_checkpoints("state.json", lambda file: file.write_text("")), "step_0000002.*state.json"),
    "state without step": (of_checkpoints("state.json", lambda file: file.write_text("{}")), "state.json"),
    "state deep": (of_checkpoints("state.json", lambda file: file.write_text("[" * 99_999)), "state.json"),
    "optimizer of another network": (of_checkpoints("optimizer.safetensors", foreign_moments), "step_0000002"),
    "optimizer of other shapes": (of_checkpoints("optimizer.safetensors", moments_of_another_shape), "step_0000002"),
    "optimizer cut": (of_checkpoints("optimizer.safetensors", cut), "step_0000002 is damaged"),
    "weights cut": (of_checkpoints("model.safetensors", cut), "step_0000002 is damaged"),
    "weights missing": (of_checkpoints("model.safetensors", Path.unlink), "step_0000002 is damaged"),
    "weights of another network": (of_checkpoints("model.safetensors", foreign_moments), "step_0000002"),
    "random numbers empty": (of_checkpoints("random.safetensors", lambda file: save_file({}, file)), "step_0000002"),
}


def going_on(folder: Path, scenes: Path, *more: object) -> list[object]:
    words = (*SMALL_RUN, "--probe_count", 4, "--save_steps", 1, "--measure_steps", 1, "--measure_images", 8)
    return [*words, "--data", scenes, "--output_dir", folder, "--max_steps", 3, "--allow_change", "max_steps", *more]


@pytest.mark.parametrize("name", GOING_ON)
def test_a_run_that_goes_on(name: str, damaged_run: Path, scenes: Path) -> None:
    damage, says = GOING_ON[name]
    damage(damaged_run)
    refused("pretrain", going_on(damaged_run, scenes), says)


# What belongs to the report, and is no reason to lose three steps of training.
BESIDE: dict[str, Damage] = {
    "probe.json": write("probe.json", b"garbage"),
    "probe.json a list": write("probe.json", b"[1]"),
    "probe.json of another version": write("probe.json", b'{"before": {"content": 1}}'),
    "neighbours.json": write("neighbours.json", b"\xff\xfe"),
    "neighbours.json without a start": write("neighbours.json", b'{"measured_on": {}}'),
    "log.jsonl": write("log.jsonl", b"\xff\xfe\n[]\n7\n"),
    "log.jsonl of lists": write("log.jsonl", b"[]\n"),
    "broken_images.jsonl": write("broken_images.jsonl", b"\xff\xfe\n"),
    "broken_images.jsonl of lists": write("broken_images.jsonl", b"[]\n7\n{}\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_a_run_costs_no_run(name: str, damaged_run: Path, scenes: Path) -> None:
    BESIDE[name](damaged_run)
    ended = run("pretrain", *going_on(damaged_run, scenes))
    assert ended.escaped is None and ended.code == 0, (ended.escaped, ended.text)
    assert json.loads((damaged_run / "run.json").read_text())["status"] == "finished"
    assert run("report", damaged_run).code == 0


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["backbone", "pretraining"])
def test_a_finished_run_that_lost_its_weights_writes_them_again(
    kind: str, file: str, damaged_run: Path, scenes: Path
) -> None:
    lost = damaged_run / "export" / kind / file
    held = lost.read_bytes()
    (lost.unlink if file == "config.json" else lambda: cut(lost))()
    words = going_on(damaged_run, scenes)
    words[words.index("--max_steps", len(SMALL_RUN)) + 1] = 2
    ended = run("pretrain", *words)
    assert ended.code == 0 and ended.escaped is None, (ended.escaped, ended.text)
    assert lost.read_bytes() == held


REPORTED: dict[str, Damage] = {
    **BESIDE,
    **{name: damage for name, (damage, _) in GOING_ON.items() if name.startswith("run.json")},
    "probe.png": write("probe.png", b"<html>"),
    "no log": lambda folder: (folder / "log.jsonl").unlink(),
}


@pytest.mark.parametrize("name", REPORTED)
def test_a_report_of_damaged_files_is_a_report_that_says_so(name: str, damaged_run: Path) -> None:
    REPORTED[name](damaged_run)
    ended = run("report", damaged_run)
    assert ended.escaped is None and ended.code == 0, (ended.escaped, ended.text)
    assert "<html" in (damaged_run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("what", ["absent", "a file", "empty"])
def test_no_run(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if what == "a file":
        folder.write_text("hello")
    if what == "empty":
        folder.mkdir()
    refused("report", [folder], str(folder))
    refused("publish run", [folder, "--repo", "org/name", "--dry_run"], str(folder))


PUBLISHED: dict[str, tuple[Damage, str]] = {
    "run.json cut": (write("run.json", b"{"), "run.json"),
    "no backbone": (lambda folder: shutil.rmtree(folder / "export" / "backbone"), "export/backbone"),
    "backbone without weights": (lambda folder: (folder / "export/backbone/model.safetensors").unlink(), "backbone"),
    "backbone cut": (lambda folder: cut(folder / "export/backbone/model.safetensors"), "backbone"),
    "config a list": (write("export/backbone/config.json", b"[]"), "config.json"),
    "about a list": (write("about.yaml", b"- 1\n"), "about.yaml"),
    "about too deep": (write("about.yaml", b"a: " + b"[" * 20_000), "about.yaml"),
    "results garbage": (write("results.json", b"garbage"), "results.json"),
    "results too deep": (write("results.json", b"[" * 99_999), "results.json"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_cannot_be_published(name: str, damaged_run: Path) -> None:
    damage, says = PUBLISHED[name]
    known = damaged_run / "run.json"  # whatever checkout this is
    known.write_text(json.dumps(json.loads(known.read_text()) | {"commit": "0123456789" * 4}))
    damage(damaged_run)
    refused("publish run", [damaged_run, "--repo", "org/name", "--dry_run"], says)
