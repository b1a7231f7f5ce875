"""Interleaved timing, machine facts, and the last line that every benchmark prints.

A machine's speed drifts by tens of per cent while other work comes and goes, much more than the differences one wants
to see. So all variants run in one process, each once per round and in a new order every round, and a ratio is formed
inside a round, where both sides met the same machine. The result is the median over the rounds, min and max its
spread. Work of one thread can be measured in processor time: the same on an idle machine, and on a busy one without
the time in which others had the core.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from training.precision import cpu_info, has_fast_bf16


@dataclass(frozen=True)
class Spread:
    """Median and range of one number over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}..{self.high:.2f}]"


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest of some values."""
    return Spread(statistics.median(values), min(values), max(values))


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    seed: int = 0,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every variant in every round.

    Args:
        variants: What to time, by name.
        rounds: How often each variant is timed.
        seed: Of the order within the rounds.
        warmup: Untimed calls of each variant before the first round.
        clock: Gives seconds; `clock_for` chooses one.
    """
    for _ in range(warmup):
        for call in variants.values():
            call()
    order = list(variants)
    shuffle = random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            start = clock()
            variants[name]()
            seconds[name].append(clock() - start)
    return seconds


def clock_for(threads: int) -> Callable[[], float]:
    """Processor time for the work of one thread, time on the wall for more."""
    return time.process_time if threads == 1 else time.perf_counter


def clock_name(threads: int) -> str:
    """What `clock_for` gives, in words."""
    return "processor time" if threads == 1 else "wall time"


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Spread of the quotient, formed round by round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in aligned columns."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def print_result(name: str, peer: str, ratio: float, ours: float, theirs: float, unit: str, **more: object) -> None:
    """Print the line that other programs read; nothing may be printed after it.

    Args:
        name: The benchmark's.
        peer: What we are compared with.
        ratio: Ours over theirs, so that more is better.
        ours: Median of ours in `unit`.
        theirs: Median of theirs in `unit`.
        unit: Such as "images/s".
        **more: Anything else worth keeping.
    """
    line = {"name": name, "peer": peer, "ratio": ratio, "ours": ours, "theirs": theirs, "unit": unit, **more}
    print(json.dumps(_rounded(line)), flush=True)


def machine() -> dict[str, object]:
    """What a number depends on: processor, threads in use, versions, load at the start."""
    facts: dict[str, object] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "fast_bf16": has_fast_bf16(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 1)
    return facts


def print_machine() -> None:
    """Print the machine's facts on one line."""
    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)


def _cpu_name() -> str:
    info = cpu_info()
    family = f" (family {info['cpu family']}, model {info['model']})" if "cpu family" in info else ""
    return (info.get("model name") or platform.processor() or platform.machine()) + family


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
