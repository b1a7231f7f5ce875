import json
import os
import socket
from pathlib import Path

import pytest
import torch

import training.pretrain as pretrain
from modeling_decodepos.losses import OBJECTIVES
from tests.forks import call_in_two
from tests.training.runs import Make, freeze_statistics, small_run
from training.errors import RunStopped
from training.recipe import Recipe
from training.run.health import stop_if_immobile
from training.run.report import BEST_OF_PAIR


@pytest.mark.parametrize("arm", sorted(OBJECTIVES))
def test_every_arm_learns_a_few_images_by_heart(make_recipe: Make, arm: str):
    run, data = small_run(make_recipe(objective=arm))
    batch = data.__getitems__([(0, i) for i in range(8)])
    losses = []
    for _ in range(20):
        losses.append(float(pretrain.training_step(run, [batch])["loss"]))
        run.step += 1
    pairs = sum(len(term.pairs) for term in run.objective.terms)
    matched = sum(len(term.pairs) for term in run.objective.of_features().terms)  # each 1 by chance, the others 0
    first = losses[0]
    assert abs(first - matched) < 0.5 * 2 * pairs
    assert losses[-1] < first - 0.4 * (pairs - matched) - 0.25 * matched
    assert losses[-1] >= sum(len(term.pairs) * BEST_OF_PAIR[term.kind] for term in run.objective.terms)


def test_the_teacher_moves_once_per_step_before_its_forward_pass(make_recipe: Make, monkeypatch: pytest.MonkeyPatch):
    run, data = small_run(make_recipe(accumulation_steps=2))
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


@pytest.mark.parametrize("objective", ["both", "isolated"])
def test_splitting_a_batch_changes_neither_loss_nor_update(make_recipe: Make, objective: str):
    weights, losses = [], []
    for split in (1, 4):
        run, data = small_run(make_recipe(objective=objective, accumulation_steps=split, mixed_share=0.5))
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
    run, data = small_run(make_recipe())
    batch = data.__getitems__([(0, i) for i in range(4)])
    with torch.no_grad():
        run.net.predictor[3].bias[0] = float("nan")
    before = run.net.projector[0].weight.clone()
    with pytest.raises(
        RunStopped, match="nan at step 0; stopped before the update.*not_finite_0.json names the images"
    ):
        pretrain.training_step(run, [batch])
    kept = json.loads((Path(run.recipe.run.output_dir) / "not_finite_0.json").read_text())
    assert kept == {"step": 0, "loss": "nan", "image_ids": [data.source.image_id(i) for i in range(4)]}
    assert torch.equal(run.net.projector[0].weight, before)


def test_a_run_that_cannot_move_its_regions_is_stopped():
    stop_if_immobile(2, 10, most=0.2)
    with pytest.raises(RunStopped, match=r"3 of 10 mixed samples.*--repositioning scaled"):
        stop_if_immobile(3, 10, most=0.2)


def _train_as_one_of_two(rank: int, recipe: Recipe, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run, data = small_run(recipe)
    assert run.accelerator.num_processes == 2
    freeze_statistics(run.net)
    run.model = run.accelerator.prepare_model(run.net)
    batch = data.__getitems__([(0, i) for i in range(8)][4 * rank : 4 * rank + 4])
    logged = pretrain.training_step(run, [batch])
    torch.save(run.net.state_dict() | {"loss": logged["loss"]}, folder / f"{rank}.pt")


@pytest.mark.parametrize("objective", ["both", "isolated_both"])
def test_two_processes_make_the_same_update_as_one(make_recipe: Make, tmp_path: Path, objective: str):
    """A real process group: the loss divides by the pairs of both processes, which hold different numbers of them."""
    recipe = make_recipe(objective=objective, mixed_share=0.5, optimizer="lars", base_learning_rate=1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call_in_two(_train_as_one_of_two, recipe, tmp_path, port)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    run, data = small_run(recipe)
    freeze_statistics(run.net)
    loss = pretrain.training_step(run, [data.__getitems__([(0, i) for i in range(8)])])["loss"]
    assert float(first["loss"]) == pytest.approx(float(loss), abs=1e-5)
    for name, weight in run.net.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight.detach(), atol=1e-6, rtol=1e-4, msg=name)
