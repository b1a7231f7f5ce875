"""One evaluation over one process or many: who does which part, and how the parts become one whole.

The work is a list in a fixed order. Process r of n takes every n-th item from r on, no item twice and none to fill up,
so counts are right without removing duplicates; `collect` puts the results back into the order of the list.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of an evaluation, seen from one of them; by default a single one on the CPU."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> list[T]:
        """This process's part of the work."""
        return list(items[self.rank :: self.count])

    def collect(self, own: list[T]) -> list[T]:
        """What all processes made of their parts, one result per item, in the order of the work; on every process."""
        if self.count == 1:
            return own
        parts: list[list[T]] = [[] for _ in range(self.count)]
        dist.all_gather_object(parts, own)
        whole: list[T] = []
        for place in range(max(map(len, parts))):
            whole += [part[place] for part in parts if place < len(part)]
        return whole

    def collect_rows(self, own: list[Tensor]) -> list[Tensor]:
        """`collect` for (N_i, …) tensors of equal width on the CPU, by tensor collectives instead of pickles."""
        if self.count == 1:
            return own
        shapes = self.collect([tuple(rows.shape) for rows in own])
        if not shapes:
            return []
        sizes = [sum(shape[0] for shape in shapes[rank :: self.count]) for rank in range(self.count)]
        sample = shapes[0][1:]
        mine = torch.zeros((max(sizes), *sample), dtype=self._dtype(own))
        if own:
            mine[: sizes[self.rank]] = torch.cat(own)
        mine = mine.to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine)
        split = [
            part[:size].cpu().split([shape[0] for shape in shapes[rank :: self.count]])
            for rank, (part, size) in enumerate(zip(parts, sizes, strict=True))
        ]
        return [split[number % self.count][number // self.count] for number in range(len(shapes))]

    def _dtype(self, own: list[Tensor]) -> torch.dtype:
        known = [str(own[0].dtype)] if own else []
        return getattr(torch, self.collect(known)[0].removeprefix("torch."))

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes; the tensor of a single one as it is."""
        if self.count > 1:
            moved = value.to(self.device, copy=True)
            dist.all_reduce(moved)
            return moved.to(value.device)
        return value

    def sum_gradients(self, module: nn.Module) -> None:
        """Add up gradients over the processes; every process then makes the same update."""
        if self.count == 1:
            return
        for parameter in module.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:  # this process met nothing that needs it, another one may have
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)


def start_processes(device: str = "auto") -> Processes:
    """The processes that a launcher such as torchrun started, or the single one there is.

    Args:
        device: "auto" takes a GPU where there is one; else "cpu" or "cuda".
    """
    from accelerate import PartialState

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but PyTorch sees no GPU here; take --device cpu, or auto.")
    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu)
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != asked:
        raise ValueError(
            f"the launcher asked for {asked} processes but {state.num_processes} work together. On CPUs launch with "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m training.evaluation … --device cpu."
        )
    return Processes(state.process_index, state.num_processes, state.device)
