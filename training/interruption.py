"""SIGTERM and Ctrl-C: finish the step, save, and leave with a code that says the work can go on."""

from __future__ import annotations

import signal
from types import FrameType

import torch
from accelerate import Accelerator

# EX_TEMPFAIL of sysexits.h: not done, and the same command continues.
EXIT_INTERRUPTED = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was asked to stop. A second request is obeyed at once."""

    def __init__(self) -> None:
        self.received = False
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        for signal_number in _SIGNALS:
            signal.signal(signal_number, signal.SIG_DFL)
        self.received = True

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked, told to all of them alike, so that they stop at the same step."""
        if accelerator.num_processes == 1:
            return self.received
        asked = torch.tensor(int(self.received), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum"))


def leave_signals_to_parent() -> None:
    """For data workers: a stop is the training process's to handle, and it ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
