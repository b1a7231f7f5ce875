import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from training.errors import RunStopped
from training.provenance import describe_run
from training.recipe import build_recipe
from training.run.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from training.run.health import name_checkpoint


@pytest.fixture
def parts() -> tuple[nn.Module, torch.optim.Optimizer, Accelerator]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    return model, optimizer, Accelerator(cpu=True)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("_")[1]) for path in folder.glob("step_*"))


def test_everything_comes_back_bit_for_bit(parts, tmp_path: Path):
    model, optimizer, accelerator = parts
    torch.manual_seed(5)
    path = save_checkpoint(tmp_path, 7, model, optimizer, accelerator, {"recipe": {"seed": 1}}, keep=2)
    expected = torch.rand(3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in optimizer.state}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    optimizer.state.clear()
    torch.manual_seed(6)
    state = load_checkpoint(path, model, optimizer, accelerator)
    assert (state["step"], state["recipe"]) == (7, {"seed": 1})
    assert torch.equal(torch.rand(3), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    for parameter, saved in moments.items():
        for key, value in saved.items():
            assert torch.equal(optimizer.state[parameter][key], value), key
            assert optimizer.state[parameter][key].stride() == value.stride(), key


def test_the_last_ones_are_kept_and_those_of_an_abandoned_run_go(parts, tmp_path: Path):
    model, optimizer, accelerator = parts
    for step in (50, 100, 150, 200):
        save_checkpoint(tmp_path, step, model, optimizer, accelerator, {}, keep=2)
    assert steps(tmp_path) == [150, 200]
    # Taken up again from step 100 or before: the old run's later steps must not be resumed.
    written = save_checkpoint(tmp_path, 120, model, optimizer, accelerator, {}, keep=2)
    assert steps(tmp_path) == [120]
    assert find_checkpoint(tmp_path, "auto") == written
    assert [path.name for path in tmp_path.iterdir()] == [written.name], "nothing temporary is left behind"


def test_copies_and_other_folders_are_left_alone(parts, tmp_path: Path):
    model, optimizer, accelerator = parts
    path = save_checkpoint(tmp_path, 10, model, optimizer, accelerator, {}, keep=1)
    copies = [tmp_path / name for name in ("step_0000010_good", "step_0000999_good", "step_best")]
    for copy in copies:
        shutil.copytree(path, copy)
    assert find_checkpoint(tmp_path, "auto") == path
    for step in (11, 9_999_999, 10_000_000):
        path = save_checkpoint(tmp_path, step, model, optimizer, accelerator, {}, keep=1)
        assert find_checkpoint(tmp_path, "auto") == path
    assert sorted(tmp_path.iterdir()) == sorted([path, *copies])
    assert name_checkpoint(tmp_path, 10_000_000) == f"The newest checkpoint that old is {path}."


def test_a_checkpoint_that_somebody_reads_is_deleted_later(parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """NFS refuses to empty a folder while a file in it is open."""
    model, optimizer, accelerator = parts
    delete = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    for step in (10, 20, 30):
        path = save_checkpoint(tmp_path, step, model, optimizer, accelerator, {}, keep=1)
        assert find_checkpoint(tmp_path, "auto") == path
    monkeypatch.setattr(shutil, "rmtree", delete)
    path = save_checkpoint(tmp_path, 40, model, optimizer, accelerator, {}, keep=1)
    assert list(tmp_path.iterdir()) == [path]


def test_half_written_and_half_deleted_ones_are_never_found(parts, tmp_path: Path):
    model, optimizer, accelerator = parts
    for name in (".writing_step_0000300", ".deleting_step_0000250"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    assert find_checkpoint(tmp_path, "auto") is None
    path = save_checkpoint(tmp_path, 10, model, optimizer, accelerator, {}, keep=1)
    assert find_checkpoint(tmp_path, "auto") == path


@pytest.mark.parametrize("cut_short", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=type)
def test_the_same_step_saved_again_never_leaves_none(
    parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_short: BaseException
):
    model, optimizer, accelerator = parts
    path = save_checkpoint(tmp_path, 10, model, optimizer, accelerator, {"note": "old"}, keep=2)
    rename = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source).name.startswith(".writing_"):
            raise cut_short
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises((RunStopped, KeyboardInterrupt)):
            save_checkpoint(tmp_path, 10, model, optimizer, accelerator, {"note": "new"}, keep=2)
    assert find_checkpoint(tmp_path, "auto") == path
    assert json.loads((path / "state.json").read_text())["note"] == "old"
    save_checkpoint(tmp_path, 10, model, optimizer, accelerator, {"note": "new"}, keep=2)
    assert json.loads((path / "state.json").read_text())["note"] == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_resumed_is_explained(parts, tmp_path: Path):
    model, optimizer, accelerator = parts
    with pytest.raises(FileNotFoundError, match="nowhere is no checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path / "nowhere"))
    assert find_checkpoint(tmp_path, "none") is None
    path = save_checkpoint(tmp_path, 10, model, optimizer, accelerator, {}, keep=1)
    with pytest.raises(ValueError, match="resume is none, but .* holds step_0000010"):
        find_checkpoint(tmp_path, "none")
    state = path / "state.json"
    state.write_text(state.read_text().replace('"processes": 1', '"processes": 4'))
    with pytest.raises(ValueError, match="written by 4 processes, this run has 1"):
        load_checkpoint(path, model, optimizer, accelerator)


def test_a_machine_without_git_can_train(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert describe_run(build_recipe({}), {})["commit"] == "unknown"
