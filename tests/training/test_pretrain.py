import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModel, ResNetModel

import training.pretrain as pretrain
from modeling_decodepos.losses import OBJECTIVES
from training.arguments import Recipe
from training.broken_images import TooManyBrokenImages
from training.images import open_images
from training.interruption import EXIT_INTERRUPTED, lock_folder
from training.loading import RegionDataset
from training.monitoring import write_json
from training.optimisation import build_optimizer

ROOT = Path(__file__).parents[2]
Make = Callable[..., Recipe]


def build_run(recipe: Recipe, total_steps: int = 20) -> tuple[pretrain.Run, RegionDataset]:
    """A run without its surroundings: no files, no loop."""
    objective = OBJECTIVES[recipe.model.objective]
    image_level = objective.level == "image"
    data = RegionDataset(
        open_images(recipe.data.data, "train"), recipe.views, list(objective.views), image_level=image_level
    )
    net = pretrain.build_model(recipe.model, recipe.run.seed)
    optimizer = build_optimizer(net, recipe.run.optimizer, 0.0, 0.9)
    run = pretrain.Run(Accelerator(cpu=True), net, net, optimizer, objective, recipe, total_steps, 1e-3)
    return run, data


def freeze_statistics(net: nn.Module) -> None:
    """Batch norms in eval mode: their statistics are the one thing that splitting a batch must change."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command_line(values: dict[str, Any], *launcher: str) -> list[str]:
    flags = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return [sys.executable, *launcher, "training/pretrain.py", *flags]


def run_command(values: dict[str, Any], *launcher: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command_line(values, *launcher),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=ENVIRONMENT | environment,
    )


@pytest.mark.parametrize("arm", sorted(OBJECTIVES))
def test_every_arm_learns_a_few_images_by_heart(make_recipe: Make, arm: str):
    run, data = build_run(make_recipe(objective=arm))
    batch = data.__getitems__([(0, i) for i in range(8)])
    losses = []
    for _ in range(20):
        losses.append(float(pretrain.training_step(run, [batch])["loss"]))
        run.step += 1
    pairs = sum(len(term.pairs) for term in run.objective.terms)
    assert abs(losses[0]) < 0.5 * 2 * pairs
    assert losses[-1] < losses[0] - 0.4 * pairs
    assert losses[-1] >= -2 * pairs


def test_the_teacher_moves_once_per_step_before_its_forward_pass(make_recipe: Make, monkeypatch: pytest.MonkeyPatch):
    run, data = build_run(make_recipe(accumulation_steps=2))
    batch = data.__getitems__([(0, i) for i in range(4)])
    pretrain.training_step(run, [batch, batch])
    run.step += 1
    events: list[str] = []
    update, forward = run.net.update_teacher, run.net.teacher["decodepos"].feature_map
    monkeypatch.setattr(run.net, "update_teacher", lambda m: (events.append(f"ema {m:.4f}"), update(m)))
    monkeypatch.setattr(
        run.net.teacher["decodepos"], "feature_map", lambda x: (events.append("teacher"), forward(x))[1]
    )
    student = run.net.decodepos.backbone.embedder.embedder.convolution.weight.detach().clone()
    before = run.net.teacher["decodepos"].backbone.embedder.embedder.convolution.weight.clone()
    pretrain.training_step(run, [batch, batch])
    momentum = run.momentum()
    assert events == [f"ema {momentum:.4f}", *["teacher"] * 4]  # two teacher views of two micro-batches
    after = run.net.teacher["decodepos"].backbone.embedder.embedder.convolution.weight
    # It followed the student as it was before this step's update, not after.
    torch.testing.assert_close(after, momentum * before + (1 - momentum) * student)


def test_splitting_a_batch_changes_neither_loss_nor_update(make_recipe: Make):
    weights, losses = [], []
    for split in (1, 4):
        run, data = build_run(make_recipe(accumulation_steps=split, mixed_share=0.5))
        freeze_statistics(run.net)
        keys = [(0, i) for i in range(8)]
        size = 8 // split
        batches = [data.__getitems__(keys[i : i + size]) for i in range(0, 8, size)]
        losses.append(float(pretrain.training_step(run, batches)["loss"]))
        weights.append(
            torch.cat([p.grad.flatten() if p.grad is not None else p.flatten() for p in run.net.parameters()])
        )
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(weights[0], weights[1], atol=2e-5, rtol=0)


def test_a_loss_that_is_not_finite_stops_before_the_update(make_recipe: Make):
    run, data = build_run(make_recipe())
    batch = data.__getitems__([(0, i) for i in range(4)])
    with torch.no_grad():
        run.net.predictor[3].bias[0] = float("nan")
    before = run.net.projector[0].weight.clone()
    with pytest.raises(FloatingPointError, match=r"nan at step 0; stopped before the update.*\[0, 1, 2, 3\]"):
        pretrain.training_step(run, [batch])
    assert torch.equal(run.net.projector[0].weight, before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixed_share": 0.0}, ["mixed_share is 0", "'both'", "--objective decoupling"]),
        ({"backbone": "/no/such/folder"}, ["backbone", "/no/such/folder", "resnet18"]),
        ({"global_batch_size": 25}, ["global_batch_size is 25", "24 images", "at most 24"]),
        ({"accumulation_steps": 3}, ["8 is not divisible by 3", "take 6"]),
        ({"data": "/no/such/photos"}, ["data", "/no/such/photos"]),
    ],
)
def test_what_a_user_can_get_wrong_is_one_message(make_recipe: Make, tmp_path: Path, changes: dict, words: list[str]):
    with pytest.raises((ValueError, OSError)) as error:
        pretrain.build_run(Accelerator(cpu=True), make_recipe(**changes), tmp_path)
    for word in words:
        assert word in str(error.value)


def test_a_folder_serves_one_run_at_a_time(tmp_path: Path):
    first = lock_folder(tmp_path / "run")
    with pytest.raises(ValueError, match="run is in use by another run"):
        lock_folder(tmp_path / "run")
    first.close()
    lock_folder(tmp_path / "run").close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be written"):
        lock_folder(tmp_path / "file")


def test_a_folder_belongs_to_one_recipe_once_it_holds_a_checkpoint(make_recipe: Make, tmp_path: Path):
    write_json(tmp_path / "run.json", {"recipe": make_recipe().values()})
    other = make_recipe(cut_ratio_max=0.5)
    pretrain.build_run(Accelerator(cpu=True), other, tmp_path)
    (tmp_path / "checkpoints/step_0000003").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"cut_ratio_max: 0.4 there, 0.5 now"):
        pretrain.build_run(Accelerator(cpu=True), other, tmp_path)


def test_a_run_that_cannot_move_its_regions_is_stopped():
    pretrain.stop_if_immobile(2, 10, most=0.2)
    with pytest.raises(RuntimeError, match=r"3 of 10 mixed samples.*--repositioning scaled"):
        pretrain.stop_if_immobile(3, 10, most=0.2)


def test_whole_run_then_resume_gives_the_same_weights(recipe_values: dict[str, Any], tmp_path: Path):
    """6 steps equal 3 + stop + 3, bit for bit, and what is exported loads without code of ours."""
    straight = recipe_values | {"output_dir": tmp_path / "straight", "save_steps": 3, "probe_count": 4}
    done = run_command(straight)
    assert done.returncode == 0, done.stderr
    assert 'AutoModel.from_pretrained("' in done.stdout
    halves = recipe_values | {"output_dir": tmp_path / "halves", "save_steps": 3, "probe_count": 4}
    assert run_command(halves).returncode == 0
    # As if the second half had been killed: its checkpoint gone, its log lines still there.
    last = tmp_path / "halves/checkpoints/step_0000006"
    for file in [*last.iterdir()]:
        file.unlink()
    last.rmdir()
    resumed = run_command(halves)
    assert resumed.returncode == 0, resumed.stderr
    assert "at step 3" in resumed.stdout
    for name in ("export/pretraining/model.safetensors", "export/backbone/model.safetensors", "probe.json"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes(), name
    logs = [
        [json.loads(x) for x in (tmp_path / d / "log.jsonl").read_text().splitlines()] for d in ("straight", "halves")
    ]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    assert (tmp_path / "straight/report.html").is_file()

    backbone = tmp_path / "straight/export/backbone"
    model, report = AutoModel.from_pretrained(backbone, output_loading_info=True)
    assert type(model) is ResNetModel
    assert not any(report.values())
    processor = json.loads((backbone / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 64, "width": 64}

    again = run_command(straight)
    assert again.returncode == 0, again.stderr
    assert "this run is complete" in again.stdout
    other = run_command(straight | {"cut_form": "independent"})
    assert other.returncode != 0
    assert "cut_form: 'collaborative' there, 'independent' now" in other.stderr


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
    with subprocess.Popen(command_line(stopped), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as run:
        log = tmp_path / "stopped/log.jsonl"
        while run.poll() is None and not (log.is_file() and log.read_text().count("\n") >= 5):
            time.sleep(0.01)
        run.send_signal(number)
        said, _ = run.communicate(timeout=120)
    if number == signal.SIGKILL:  # no warning: what was saved on the way is what there is
        assert run.returncode == -signal.SIGKILL, said
    else:
        assert run.returncode == EXIT_INTERRUPTED, said
        assert "the same command continues" in said
    assert run_command(stopped).returncode == run_command(straight).returncode == 0
    weights = [
        (tmp_path / name / "export/pretraining/model.safetensors").read_bytes() for name in ("straight", "stopped")
    ]
    assert weights[0] == weights[1]


def _train_as_one_of_two(rank: int, recipe: Recipe, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run, data = build_run(recipe)
    assert run.accelerator.num_processes == 2
    freeze_statistics(run.net)
    run.model = run.accelerator.prepare_model(run.net)
    batch = data.__getitems__([(0, i) for i in range(8)][4 * rank : 4 * rank + 4])
    logged = pretrain.training_step(run, [batch])
    weights = {name: p.detach() for name, p in run.net.named_parameters()} | {"loss": logged["loss"]}
    torch.save(weights, folder / f"{rank}.pt")


def test_two_processes_make_the_same_update_as_one(make_recipe: Make, tmp_path: Path):
    """A real process group: the loss divides by the pairs of both processes, which hold different numbers of them."""
    recipe = make_recipe(mixed_share=0.5, optimizer="lars", base_learning_rate=1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train_as_one_of_two, (recipe, tmp_path, port), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    run, data = build_run(recipe)
    freeze_statistics(run.net)
    loss = pretrain.training_step(run, [data.__getitems__([(0, i) for i in range(8)])])["loss"]
    assert float(first["loss"]) == pytest.approx(float(loss), abs=1e-5)
    for name, weight in run.net.named_parameters():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight.detach(), atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_the_launcher_of_the_readme_runs_two_processes(recipe_values: dict[str, Any], tmp_path: Path):
    values = recipe_values | {"output_dir": tmp_path / "two", "max_steps": 2}
    done = run_command(
        values, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", ACCELERATE_USE_CPU="true"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes x 1 micro-batches x 4 images" in done.stdout
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
    assert "1 more images cannot be read, 1 in all" in done.stdout + done.stderr


def train_here(recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    """A run in this process: its weights after the last step."""
    run, data, batches = pretrain.build_run(Accelerator(cpu=True), recipe, folder)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        pretrain.run_training(run, data, batches, folder)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return {name: weight.detach().clone() for name, weight in run.net.named_parameters()}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_run_continues_exactly(make_recipe: Make, tmp_path: Path, workers: int):
    folder = tmp_path / "run"
    values = {"streaming": True, "stream_block": 5, "num_workers": workers, "save_steps": 2, "max_steps": 4}
    recipe = make_recipe(output_dir=str(folder), accumulation_steps=2, **values)
    straight = train_here(recipe, folder)
    shutil.rmtree(folder / "checkpoints/step_0000004")
    resumed = train_here(recipe, folder)
    assert all(torch.equal(weight, resumed[name]) for name, weight in straight.items())
    other = make_recipe(output_dir=str(folder), accumulation_steps=2, **values | {"num_workers": 3})
    with pytest.raises(ValueError, match=f"num_workers: {workers} there, 3 now"):
        pretrain.build_run(Accelerator(cpu=True), other, folder)


def test_too_many_broken_images_stop_a_run(make_recipe: Make, pictures: Path, tmp_path: Path):
    for name in ("a/02.jpg", "a/04.jpg", "b/05.jpg"):
        (pictures / name).write_bytes(b"no picture")
    recipe = make_recipe(data=str(pictures), max_broken_share=0.1, output_dir=str(tmp_path / "run"))
    with pytest.raises(TooManyBrokenImages, match=r"of 12 images cannot be read, more than max_broken_share 0.1"):
        train_here(recipe, tmp_path / "run")
