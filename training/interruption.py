"""Stopping: finish the step on SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import time
from types import FrameType

import torch
from accelerate import Accelerator

# EX_TEMPFAIL of sysexits.h: not done, and the same command continues.
EXIT_INTERRUPTED = 75
# Seconds within which a launcher and its scheduler may both pass on one request.
ONE_REQUEST = 3.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunStopped(RuntimeError):
    """Training must not go on; the message says why, and what to change."""


class StopRequest:
    """Whether this process was asked to stop. A request that is repeated after a moment is obeyed at once."""

    def __init__(self) -> None:
        self.received = False
        self.first = 0.0
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self.first = True, time.monotonic()
        elif time.monotonic() - self.first > ONE_REQUEST:  # sooner it is the same one, handed on by a launcher
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked, told to all of them alike, so that they stop at the same step."""
        if accelerator.num_processes == 1:
            return self.received
        asked = torch.tensor(int(self.received), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum"))


def leave_signals_to_parent() -> None:
    """For data workers: a stop is the training process's to handle, and it ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers signal whole groups; the parent ends its workers
