"""A frozen network on a CPU, faster: batch norms folded into convolutions, few pictures at a time, a core for each.

What it gives stays the same but for rounding. Memory limits such a network: a norm and an activation of their own read
and write every map once more, and the maps of many pictures do not fit into a core's cache.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-4
"""Of the largest output: a folded network that differs by more is not taken."""

_AHEAD = 2  # parts for each thread

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)

Net = TypeVar("Net", bound=nn.Module)
Part = TypeVar("Part")
Result = TypeVar("Result")


@torch.no_grad()
def fold_batch_norms(net: Net, call: Callable[[Net, Tensor], Tensor], examples: Sequence[Tensor]) -> Net:
    """A copy whose batch norms are part of the convolutions before them; the network itself where nothing folds.

    Which convolution a norm follows is seen on the first example. The copy counts only if `call` gives the same with
    it, but for rounding, on all of them.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        return net
    seen = _watch(net, lambda: call(net, examples[0]))
    norms = {name: seen.giver(name) for name in seen.inputs if isinstance(net.get_submodule(name), nn.BatchNorm2d)}
    convolutions = {norm: giver for norm, giver in norms.items() if giver in seen.convolutions}
    if not convolutions:
        return net
    folded = copy.deepcopy(net)
    for norm, convolution in convolutions.items():
        pair: Any = (folded.get_submodule(convolution), folded.get_submodule(norm))
        folded.set_submodule(convolution, fuse_conv_bn_eval(*pair))
        folded.set_submodule(norm, nn.Identity())
    for name in seen.inputs:
        module = folded.get_submodule(name)
        if isinstance(module, _ACTIVATIONS) and seen.giver(name) in convolutions:
            module.inplace = True
    return folded if all(_close(call(net, example), call(folded, example)) for example in examples) else net


@dataclass
class _Seen:
    """What convolutions, norms and activations took and gave when each ran once."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[int, str] = field(default_factory=dict)  # who gave a tensor, by its id
    convolutions: set[str] = field(default_factory=set)

    def giver(self, name: str) -> str | None:
        """The module whose output this one took as it was."""
        return self.outputs.get(id(self.inputs[name]))


def _watch(net: nn.Module, run: Callable[[], object]) -> _Seen:
    """What every module took and gave. One that runs twice is left out: it may follow different ones."""
    seen, alive, counts = _Seen(), [], dict.fromkeys((name for name, _ in net.named_modules()), 0)

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not inputs:
                return
            counts[name] += 1
            alive.append(output)  # an id is a tensor's as long as it lives
            seen.inputs[name], seen.outputs[id(output)] = inputs[0], name

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, *_ACTIVATIONS)) and not module.training
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    seen.inputs = {name: taken for name, taken in seen.inputs.items() if counts[name] == 1}
    seen.convolutions = {name for name in seen.inputs if isinstance(net.get_submodule(name), nn.Conv2d)}
    return seen


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max())


def each_on_a_core(call: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """What `call` gives for each part, in order, on as many threads as torch may use, each with a single one inside.

    Two threads with a part each do more than both with one part: small layers and pictures hardly divide. Few parts
    are taken ahead of whoever takes the results.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for part in parts:
                waiting.append(pool.submit(call, part))
                if len(waiting) > _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)  # the number that threads to come begin with
