import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining, ResNetModel

import modeling_decodepos  # noqa: F401  registers the Auto classes
from modeling_decodepos import DecodePosForPreTraining
from tests.forks import ROOT, Fork, python
from tests.training.runs import ENVIRONMENT, Make, command_line, run_command, run_here, small_run
from training.data.sources import open_images
from training.errors import EXIT_INTERRUPTED, RunStopped
from training.pretrain import start_tracker
from training.probes.during import build_online
from training.run.checkpoints import saved_steps
from training.run.finish import compare_neighbours, look_before

TWO = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")


def weights_of(folder: Path) -> bytes:
    return (folder / "export/pretraining/model.safetensors").read_bytes()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_whole_run_then_resume_gives_the_same_weights(
    recipe_values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """6 steps equal 3 + stop + 3, bit for bit, and what is exported loads without code of ours."""
    straight = recipe_values | {"output_dir": tmp_path / "straight", "save_steps": 3, "probe_count": 4}
    done = run_command(straight)
    assert done.returncode == 0, done.stderr
    assert 'AutoModel.from_pretrained("' in done.stdout
    halves = straight | {"output_dir": tmp_path / "halves"}
    assert run_here(halves) == 0
    # As if the second half had been killed: its checkpoint gone, its log lines still there.
    shutil.rmtree(tmp_path / "halves/checkpoints/step_0000006")
    resumed = run_command(halves)
    assert resumed.returncode == 0, resumed.stderr
    assert "at step 3" in resumed.stdout
    for name in ("export/pretraining/model.safetensors", "export/backbone/model.safetensors", "probe.json"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes(), name
    logs = [log_of(tmp_path / name) for name in ("straight", "halves")]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    assert (tmp_path / "straight/report.html").is_file()

    backbone = tmp_path / "straight/export/backbone"
    model, report = AutoModel.from_pretrained(backbone, output_loading_info=True)
    assert type(model) is ResNetModel
    assert not any(report.values())
    processor = json.loads((backbone / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 64, "width": 64}
    # A checkpoint is a model folder too.
    checkpoint = tmp_path / "straight/checkpoints/step_0000006"
    loaded, report = AutoModelForPreTraining.from_pretrained(checkpoint, output_loading_info=True)
    assert type(loaded) is DecodePosForPreTraining
    assert not any(report.values())

    capsys.readouterr()
    assert run_here(straight) == 0
    assert "this run is complete" in capsys.readouterr().out
    other = run_here(straight | {"cut_form": "independent"})
    assert "cut_form: 'collaborative' there, 'independent' now" in str(other)
    assert "--allow_change cut_form" in str(other)


def test_a_change_is_made_only_when_it_is_named(
    recipe_values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
):
    values = recipe_values | {"output_dir": tmp_path / "run", "save_steps": 2, "max_steps": 2}
    assert run_here(values) == 0
    changed = values | {"max_steps": 4, "cut_ratio_max": 0.5}
    said = str(run_here(changed | {"allow_change": "max_steps"}))
    assert "cut_ratio_max: 0.4 there, 0.5 now" in said and "max_steps:" not in said
    assert run_here(changed | {"allow_change": "max_steps,cut_ratio_mxa"}) == 2
    said = capsys.readouterr().err
    assert "allow_change names cut_ratio_mxa" in said and "Did you mean 'cut_ratio_max'?" in said
    first = json.loads((tmp_path / "run/run.json").read_text())
    assert run_here(changed | {"allow_change": "max_steps, cut_ratio_max"}) == 0
    described = json.loads((tmp_path / "run/run.json").read_text())
    assert "resumed" not in first and [again["step"] for again in described["resumed"]] == [2]
    assert all(described[name] == first[name] for name in ("started", "command"))
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2, 3, 4]


@contextmanager
def started(command: list[str], **environment: str) -> Iterator[Fork]:
    """The command as a process group of its own, gone when this closes."""
    process = python().start(command, env=ENVIRONMENT | environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def processes_of(folder: Path) -> list[int]:
    """Every process that was started for a run, torchrun's workers too, which are in groups of their own."""
    commands = {int(path.parent.name): path for path in Path("/proc").glob("[0-9]*/cmdline")}
    found = []
    for number, path in commands.items():
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(number)
    return found


def wait_for(condition: Callable[[], bool], process: Fork) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.001)
    assert process.poll() is None, "it ended before it could be stopped"


def logged_steps(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGKILL))]
)
def test_a_run_that_was_stopped_continues_as_if_it_had_not(
    recipe_values: dict[str, Any], tmp_path: Path, number: signal.Signals
):
    straight = recipe_values | {
        "output_dir": tmp_path / "straight",
        "max_steps": 30,
        "num_workers": 1,
        "save_steps": 2,
    }
    stopped = straight | {"output_dir": tmp_path / "stopped"}
    with started(command_line(stopped)) as run:
        wait_for(lambda: logged_steps(tmp_path / "stopped") >= 5, run)
        os.killpg(run.pid, number)  # its workers too, as schedulers do
        said, _ = run.communicate(timeout=120)
    if number == signal.SIGKILL:  # no warning: what was saved on the way is what there is
        assert run.returncode == -signal.SIGKILL, said
    else:
        assert run.returncode == EXIT_INTERRUPTED, said
        assert "the same command continues" in said
    assert run_here(stopped) == run_here(straight) == 0
    assert weights_of(tmp_path / "straight") == weights_of(tmp_path / "stopped")


def writes_a_later_checkpoint(folder: Path) -> Callable[[], bool]:
    """Whether a checkpoint is being written while an earlier one is there."""
    saved = folder / "checkpoints"
    return lambda: bool(saved_steps(saved)) and any(saved.glob(".writing_*/model.safetensors"))


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    recipe_values: dict[str, Any], tmp_path: Path
):
    wide = {"projector_hidden_size": 4096, "projection_size": 256}  # so that writing takes a while
    straight = recipe_values | wide | {"output_dir": tmp_path / "straight", "max_steps": 5, "save_steps": 1}
    stopped = straight | {"output_dir": tmp_path / "stopped"}
    with started(command_line(stopped)) as run:
        wait_for(writes_a_later_checkpoint(tmp_path / "stopped"), run)
        run.send_signal(signal.SIGKILL)
        run.wait()
    left = [path.name for path in (tmp_path / "stopped/checkpoints").iterdir()]
    assert any(name.startswith((".writing_", ".deleting_")) for name in left), left
    assert run_here(stopped) == run_here(straight) == 0
    assert weights_of(tmp_path / "straight") == weights_of(tmp_path / "stopped")
    left = sorted(path.name for path in (tmp_path / "stopped/checkpoints").iterdir())
    assert left == ["step_0000004", "step_0000005"]


@pytest.mark.parametrize(
    "moment",
    [
        "between steps",
        pytest.param("in a checkpoint", marks=pytest.mark.slow),
        pytest.param("SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_two_processes_that_were_killed_continue_as_if_they_had_not(
    recipe_values: dict[str, Any], tmp_path: Path, moment: str
):
    wide = {"projector_hidden_size": 4096} if moment == "in a checkpoint" else {}
    straight = recipe_values | wide | {"output_dir": tmp_path / "straight", "max_steps": 8, "save_steps": 1}
    stopped = straight | {"output_dir": tmp_path / "stopped"}
    cpu = {"ACCELERATE_USE_CPU": "true"}
    with started(command_line(stopped, *TWO), **cpu) as run:
        if moment == "in a checkpoint":
            wait_for(writes_a_later_checkpoint(tmp_path / "stopped"), run)
        else:
            wait_for(lambda: logged_steps(tmp_path / "stopped") >= 3, run)
        if moment == "SIGTERM":
            run.send_signal(signal.SIGTERM)  # torchrun hands it on
        else:
            for number in (run.pid, *processes_of(tmp_path / "stopped")):
                os.kill(number, signal.SIGKILL)
        run.wait()
    assert run.returncode != 0
    assert not (tmp_path / "stopped/export").exists()
    for values in (stopped, straight):
        done = run_command(values, *TWO, **cpu)
        assert done.returncode == 0, done.stderr[-3000:]
    assert weights_of(tmp_path / "straight") == weights_of(tmp_path / "stopped")
    drawn = load_file(tmp_path / "stopped/checkpoints/step_0000008/random.safetensors")["cpu"]
    assert not torch.equal(*drawn), "both processes would drop the same"
    # One process is another world: refused, unless it is named.
    (tmp_path / "stopped/run.json").unlink()
    assert "written by 2 processes, this run has 1" in str(run_here(stopped))
    shutil.rmtree(tmp_path / "stopped/checkpoints/step_0000008")
    assert run_here(stopped | {"allow_change": "processes"}) == 0


def test_a_full_disk_costs_no_checkpoint(recipe_values: dict[str, Any], tmp_path: Path):
    """A file may not grow beyond a limit, which is what a full disk looks like to a program."""
    values = recipe_values | {"output_dir": tmp_path / "run", "save_steps": 3}
    straight = values | {"output_dir": tmp_path / "straight"}
    assert run_here(values) == run_here(straight) == 0
    shutil.rmtree(tmp_path / "run/checkpoints/step_0000006")
    limited = [
        "-c",
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
        *command_line(values),
    ]
    done = python().run(limited, env=ENVIRONMENT)
    assert done.returncode == 1
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_0000003"]
    described = json.loads((tmp_path / "run/run.json").read_text())
    assert described["status"] == "stopped"
    assert "step 6 could not be written" in described["reason"] and "step_0000003" in described["reason"]
    assert run_here(values) == 0
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "straight")


def test_a_damaged_checkpoint_is_named(recipe_values: dict[str, Any], tmp_path: Path):
    values = recipe_values | {"output_dir": tmp_path / "run", "save_steps": 3}
    assert run_here(values) == 0
    damaged = tmp_path / "run/checkpoints/step_0000006"
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:1000])
    said = str(run_here(values))
    assert f"checkpoint {damaged} is damaged" in said and "Delete that folder" in said
    shutil.rmtree(damaged)
    assert run_here(values) == 0


def test_a_lonely_process_is_refused(recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """`accelerate launch --cpu --num_processes 2` starts one process, in this environment."""
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "asked for several processes but 1 work together" in str(run_here(recipe_values))
    monkeypatch.delenv("MASTER_PORT")
    assert "asked for 3 processes but 1 work together" in str(run_here(recipe_values | {"processes": 3}))


def test_a_port_in_use_is_named(recipe_values: dict[str, Any]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        done = run_command(recipe_values, **place, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")
    assert done.returncode == 1
    assert f"cannot meet at 127.0.0.1:{port}" in done.stderr and "--main_process_port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_machines_work_together(recipe_values: dict[str, Any], tmp_path: Path, launcher: str):
    """Two nodes on loopback with one process each, started as the documentation says, equal one node with two."""
    values = recipe_values | {"max_steps": 3, "processes": 2}
    port = str(free_port())
    nodes = []
    for rank in ("0", "1"):
        if launcher == "torchrun":
            meeting = ("--master_addr", "127.0.0.1", "--master_port", port)
            command = (
                "-m",
                "torch.distributed.run",
                "--nnodes",
                "2",
                "--nproc_per_node",
                "1",
                "--node_rank",
                rank,
                *meeting,
            )
        else:
            config = str(ROOT / "training/launchers/multi_node.yaml")
            meeting = ("--machine_rank", rank, "--main_process_ip", "127.0.0.1", "--main_process_port", port)
            size = ("--num_machines", "2", "--num_processes", "2")
            command = ("-m", "accelerate.commands.launch", "--config_file", config, *size, *meeting)
        line = command_line(values | {"output_dir": tmp_path / "nodes"}, *command)
        nodes.append(
            subprocess.Popen(
                [sys.executable, *line],
                cwd=ROOT,
                env=ENVIRONMENT | {"ACCELERATE_USE_CPU": "true"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-2000:] + said[1][-2000:]
    done = run_command(values | {"output_dir": tmp_path / "one"}, *TWO, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights_of(tmp_path / "nodes") == weights_of(tmp_path / "one")


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_named(recipe_values: dict[str, Any], tracker: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.run.setup.find_spec", lambda name: None)
        assert f"tracker is {tracker!r}, which is not installed here: pip install {tracker}" in str(
            run_here(recipe_values | {"tracker": tracker})
        )


def test_a_space_is_for_trackio(recipe_values: dict[str, Any]):
    said = str(run_here(recipe_values | {"space_id": "me/runs"}))
    assert "space_id is 'me/runs', but tracker is 'none': give --tracker trackio" in said


def test_a_tracker_hears_of_one_run_and_of_its_space(make_recipe: Make):
    recipe = make_recipe(tracker="trackio", space_id="me/runs")
    calls: list[dict[str, Any]] = []
    accelerator = SimpleNamespace(init_trackers=lambda name, config, init_kwargs: calls.append(init_kwargs))
    run: Any = SimpleNamespace(recipe=recipe, state={}, step=0, accelerator=accelerator)
    start_tracker(run)
    start_tracker(run)  # as after a stop, with the state of the checkpoint
    first, second = (call["trackio"] for call in calls)
    assert first == second == {"name": run.state["tracker_run"], "resume": "allow", "space_id": "me/runs"}

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no such host")

    accelerator.init_trackers = refuse
    with pytest.raises(RunStopped, match=r"trackio cannot be started \(ConnectionError: no such host\)"):
        start_tracker(run)


def test_log_lines_reach_tensorboard(recipe_values: dict[str, Any], tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = recipe_values | {"tracker": "tensorboard", "max_steps": 3, "save_steps": 2}
    assert run_here(values) == 0
    shutil.rmtree(Path(recipe_values["output_dir"]) / "checkpoints/step_0000003")
    assert run_here(values) == 0  # step 3 once more
    folder = next(Path(recipe_values["output_dir"]).rglob("events.out*")).parent
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


@pytest.mark.slow
def test_the_launcher_of_the_readme_runs_two_processes(recipe_values: dict[str, Any], tmp_path: Path):
    values = recipe_values | {"output_dir": tmp_path / "two", "max_steps": 2}
    done = run_command(
        values, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", ACCELERATE_USE_CPU="true"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes x 1 micro-batch x 4 images" in done.stdout
    assert len((tmp_path / "two/log.jsonl").read_text().splitlines()) == 2


def test_a_run_on_a_plain_folder_with_a_broken_picture_and_a_cache(
    recipe_values: dict[str, Any], pictures: Path, tmp_path: Path
):
    (pictures / "a/02.jpg").write_bytes((pictures / "a/02.jpg").read_bytes()[:-300])
    values = recipe_values | {
        "data": pictures,
        "max_steps": 2,
        "cache_px": 32,
        "num_workers": 1,
        "max_broken_share": 0.1,
    }
    done = run_command(values)
    assert done.returncode == 0, done.stderr
    assert "regions: random boxes, drawn anew in every epoch: region_source is auto" in done.stdout
    run = tmp_path / "run"
    described = json.loads((run / "run.json").read_text())["data"]
    assert described["images"] == 12 and described["regions"] == "random"
    assert described["hash"].startswith("sha256 of relative paths and file sizes ")
    (cached,) = (tmp_path / ".cache").iterdir()
    assert list(json.loads((cached / "index.json").read_text())["broken"]) == ["1"]
    assert (run / "views.png").is_file()
    (line,) = (run / "broken_images.jsonl").read_text().splitlines()
    assert json.loads(line)["image_id"] == "a/02.jpg"
    assert "1 more image cannot be read, 1 in all" in done.stdout


def test_a_run_is_measured_from_its_first_step_to_its_last(recipe_values: dict[str, Any], tmp_path: Path):
    folder = tmp_path / "measured"
    values = recipe_values | {"measure_steps": 4, "measure_images": 16, "save_steps": 4, "output_dir": folder}
    assert run_here(values | {"max_steps": 6}) == 0
    log = log_of(folder)
    measured = [line for line in log if "object_knn" in line]
    assert [line["step"] for line in measured] == [0, 4, 6]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert all(0 < line["effective_rank"] <= line["full_rank"] for line in log if "loss" in line)
    description = json.loads((folder / "run.json").read_text())
    assert description["measured_on"]["gallery"].startswith("train: 8 images")
    neighbours = json.loads((folder / "neighbours.json").read_text())
    assert neighbours["before"]["queries"] == neighbours["after"]["queries"]
    assert (folder / "neighbours.jpg").is_file()
    state = json.loads((folder / "checkpoints/step_0000004/state.json").read_text())
    assert state["knn_watchdog"]["start"] == measured[0]["object_knn_class_mean"]
    assert state["collapse_watch"]["healthy_step"] == 4
    assert state["best"]["measure"] == "object_knn_three_situations"


def test_a_run_ends_well_when_other_images_are_measured_on_than_at_its_start(make_recipe: Make, tmp_path: Path):
    for images in (16, 12):
        recipe = make_recipe(measure_steps=2, measure_images=images)
        run, _ = small_run(recipe)
        online = build_online(recipe.data, recipe.run, recipe.views.view_size_px)
        if images == 16:
            look_before(run, online, tmp_path)
        compare_neighbours(run, online, tmp_path)
        assert (tmp_path / "neighbours.jpg").is_file() == (images == 16)
        (tmp_path / "neighbours.jpg").unlink(missing_ok=True)


@pytest.mark.slow
def test_measuring_changes_nothing_in_training(recipe_values: dict[str, Any], tmp_path: Path):
    weights = []
    for steps in (0, 2):
        values = recipe_values | {"output_dir": tmp_path / str(steps), "measure_steps": steps, "measure_images": 16}
        assert run_here(values) == 0
        weights.append((tmp_path / str(steps) / "export/pretraining/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_run_continues_exactly(recipe_values: dict[str, Any], tmp_path: Path, workers: int):
    values = recipe_values | {"streaming": True, "stream_block": 5, "num_workers": workers, "accumulation_steps": 2}
    straight = values | {"output_dir": tmp_path / "straight", "save_steps": 2, "max_steps": 4}
    halves = straight | {"output_dir": tmp_path / "halves"}
    assert run_here(straight) == run_here(halves) == 0
    shutil.rmtree(tmp_path / "halves/checkpoints/step_0000004")
    assert f"num_workers: {workers} there, 3 now" in str(run_here(halves | {"num_workers": 3}))
    assert run_here(halves) == 0
    assert weights_of(tmp_path / "straight") == weights_of(tmp_path / "halves")


def test_too_many_broken_images_stop_a_run(recipe_values: dict[str, Any], pictures: Path):
    for name in ("a/02.jpg", "a/04.jpg", "b/05.jpg"):
        (pictures / name).write_bytes(b"no picture")
    values = recipe_values | {"data": pictures, "max_broken_share": 0.1}
    said = str(run_here(values))
    assert "of 12 images cannot be read, more than max_broken_share 0.1" in said
    run = Path(recipe_values["output_dir"])
    saved = [path.name for path in saved_steps(run / "checkpoints")]
    assert saved == [f"step_{log_of(run)[-1]['step']:07d}"], "the step before the stop was not saved"
    for name in ("a/02.jpg", "a/04.jpg"):
        shutil.copy(pictures / "b/07.jpg", pictures / name)
    said = str(run_here(values))
    assert f"is not what {run}/checkpoints/{saved[0]} was trained on" in said and "--allow_change data" in said
    before = json.loads((run / "run.json").read_text())["data"]["hash"]
    assert f"data: {before} there, {open_images(pictures).fingerprint} now" in said
    assert run_here(values | {"allow_change": "data"}) == 0
    listed = [json.loads(line)["image_id"] for line in (run / "broken_images.jsonl").read_text().splitlines()]
    assert listed == ["b/05.jpg"], "those that were repaired are still listed"


def test_what_keeps_a_run_from_beginning_or_ending_is_told_in_a_line(
    recipe_values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    def asked_to_stop(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    def full_disk(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    values = recipe_values | {"max_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr("training.pretrain.look_before", asked_to_stop)
        assert run_here(values) == EXIT_INTERRUPTED
        assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr("training.pretrain.look_before", lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr("training.run.finish.export_backbone", asked_to_stop)
        assert run_here(values) == EXIT_INTERRUPTED
        patch.setattr("training.run.finish.export_backbone", full_disk)
        said = str(run_here(values))
    assert "No space left" in said and "Make room, then run the same command" in said
    described = json.loads((tmp_path / "run/run.json").read_text())
    assert described["status"] == "stopped" and "No space left" in described["reason"]
    assert run_here(values) == 0
    described = json.loads((tmp_path / "run/run.json").read_text())
    assert described["status"] == "finished" and "reason" not in described
