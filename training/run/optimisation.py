"""Optimisers and schedules. Learning rate and momentum are functions of the step; nothing here counts on its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

WARMUP_START = 0.01  # the warm-up begins at this share of the peak (SoCo)


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float, floor: float) -> float:
    """Linear warm-up to `peak`, then a cosine to `floor` at the last step."""
    if step < warmup_steps:
        return peak * (WARMUP_START + (1 - WARMUP_START) * step / warmup_steps)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return floor + (peak - floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def teacher_momentum_at(step: int, total_steps: int, base: float) -> float:
    """Cosine from `base` at step 0 to 1 at the last step."""
    return 1.0 - (1.0 - base) * (1.0 + math.cos(math.pi * step / total_steps)) / 2.0


def weight_decay_at(step: int, total_steps: int, start: float, end: float) -> float:
    """Cosine from `start` at step 0 to `end` at the last step; always `start` where `end` is negative."""
    return start if end < 0 else end + (start - end) * (1.0 + math.cos(math.pi * step / total_steps)) / 2.0


def set_schedule(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Give every parameter group this learning rate, and those that decay this weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def build_optimizer(model: nn.Module, name: str, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
    """An optimiser over the trainable parameters; biases and normalisation are neither decayed nor adapted."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "decays": True, "adapt": True},
        {"params": vectors, "weight_decay": 0.0, "decays": False, "adapt": False},
    ]
    if name == "lars":
        return LARS(groups, lr=0.0, momentum=momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=(momentum, 0.999))


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled per tensor to a share of the tensor's norm (You et al., 2017)."""

    def __init__(
        self, params: list[dict], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ):
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. The gradients are used up: the update is made in their memory."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates = [p.grad for p in weights]
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            if group["adapt"]:
                for update, ratio in zip(updates, self._trust_ratios(weights, updates, group["trust"]), strict=True):
                    update.mul_(ratio)
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(weights, buffers, alpha=-group["lr"])
        return loss

    @staticmethod
    def _trust_ratios(weights: list[torch.Tensor], updates: list[torch.Tensor], trust: float) -> list[torch.Tensor]:
        ratios = []
        for weight, update in zip(torch._foreach_norm(weights), torch._foreach_norm(updates), strict=True):
            # A tensor of zeros, or one without gradient, takes a plain step.
            usable = (weight > 0) & (update > 0)
            ratios.append(torch.where(usable, trust * weight / update.clamp(min=1e-30), 1.0))
        return ratios
