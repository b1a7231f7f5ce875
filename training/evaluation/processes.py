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
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
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
        numbered = gather_object([(self.rank + place * self.count, result) for place, result in enumerate(own)])
        return [result for _, result in sorted(numbered, key=lambda pair: pair[0])]

    def collect_rows(self, own: list[Tensor]) -> list[Tensor]:
        """`collect` for (N_i, …) tensors of equal width on the CPU, which travel as one tensor."""
        if self.count == 1:
            return own
        parts = gather_object([(torch.cat(own), [len(rows) for rows in own])] if own else [])
        split = [whole.split(lengths) for whole, lengths in parts]  # whoever has no item comes after those who have
        return [split[number % len(split)][number // len(split)] for number in range(sum(map(len, split)))]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes; the tensor of a single one as it is."""
        summed: Tensor = value if self.count == 1 else reduce(value.to(self.device), "sum").to(value.device)
        return summed

    def sum_gradients(self, module: nn.Module) -> None:
        """Add up gradients over the processes; every process then makes the same update."""
        if self.count == 1:
            return
        for parameter in module.parameters():
            if parameter.requires_grad:
                # This process may have met nothing that needs it where another one did.
                parameter.grad = self.total(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def start_processes(device: str = "auto") -> Processes:
    """The processes that a launcher such as torchrun started, or the single one there is; auto takes a GPU if any."""
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
