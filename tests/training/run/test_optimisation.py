import math

import pytest
import torch
from torch import nn

from training.run.optimisation import LARS, build_optimizer, learning_rate_at, teacher_momentum_at


def test_learning_rate_rises_then_falls_to_the_floor():
    at = [learning_rate_at(s, total_steps=100, warmup_steps=10, peak=2.0, floor=0.1) for s in range(101)]
    assert at[0] == pytest.approx(0.02)  # SoCo's warm-up starts at a hundredth
    assert at[10] == 2.0
    assert max(at) == at[10]
    assert at[55] == pytest.approx(1.05)  # half way down the cosine
    assert at[100] == pytest.approx(0.1)


def test_teacher_momentum_runs_from_base_to_one():
    at = [teacher_momentum_at(s, 80, 0.99) for s in range(81)]
    assert at[0] == pytest.approx(0.99)
    assert at[40] == pytest.approx(0.995)
    assert at[80] == 1.0
    assert at == sorted(at)


def test_lars_equals_the_textbook_in_float64():
    torch.manual_seed(0)
    weight, bias = (
        nn.Parameter(torch.randn(4, 3, dtype=torch.float64)),
        nn.Parameter(torch.randn(4, dtype=torch.float64)),
    )
    groups = [
        {"params": [weight], "weight_decay": 0.1, "adapt": True},
        {"params": [bias], "weight_decay": 0.0, "adapt": False},
    ]
    optimizer = LARS(groups, lr=0.5, momentum=0.9, trust=0.01)
    expected = [weight.detach().clone(), bias.detach().clone()]
    velocity = [torch.zeros_like(p) for p in expected]
    for _ in range(3):
        gradients = [torch.randn_like(p) for p in expected]
        weight.grad, bias.grad = (g.clone() for g in gradients)
        optimizer.step()
        for i, (decay, adapt) in enumerate([(0.1, True), (0.0, False)]):
            update = gradients[i] + decay * expected[i]
            if adapt:
                update = update * 0.01 * math.sqrt((expected[i] ** 2).sum()) / math.sqrt((update**2).sum())
            velocity[i] = 0.9 * velocity[i] + update
            expected[i] = expected[i] - 0.5 * velocity[i]
    torch.testing.assert_close(weight.detach(), expected[0])
    torch.testing.assert_close(bias.detach(), expected[1])


def test_lars_makes_its_buffers_once(monkeypatch: pytest.MonkeyPatch):
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([{"params": [weight], "adapt": True}], lr=1.0)
    made, make = [], torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda value: made.append(value) or make(value))
    for _ in range(3):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    assert len(made) == 1


def test_lars_moves_a_tensor_of_zeros():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS([{"params": [weight], "weight_decay": 0.0, "adapt": True}], lr=1.0)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -torch.ones(2, 2))


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_only_matrices_are_decayed_and_the_frozen_are_left_out(name: str):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    groups = build_optimizer(model, name, weight_decay=0.3, momentum=0.9).param_groups
    assert [p.ndim for p in groups[0]["params"]] == [4]
    assert groups[0]["weight_decay"] == 0.3
    assert [p.ndim for p in groups[1]["params"]] == [1, 1, 1]
    assert groups[1]["weight_decay"] == 0.0
