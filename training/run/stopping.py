"""Stopping: finish the step on SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from dataset_scripts.files import DISK_FULL

# Seconds within which a launcher and its scheduler may both pass on one request.
ONE_REQUEST = 3.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def is_disk_full(error: OSError | SafetensorError) -> bool:
    """Whether a file could not be written for want of room."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return any(f"os error {number})" in str(error) for number in DISK_FULL)  # Rust's words


class StopRequest:
    """Whether this process was asked to stop: KeyboardInterrupt at once, but between training steps, see `put_off`.

    A request that is repeated after a moment is obeyed as the system does.
    """

    def __init__(self) -> None:
        self.received = self.is_put_off = False
        self.first = 0.0
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Meanwhile a request is noted, for `agreed` to tell; whoever has not looked by the end is interrupted."""
        self.is_put_off = True
        try:
            yield
        finally:
            self.is_put_off = False
        if self.received:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self.first = True, time.monotonic()
            if not self.is_put_off:
                raise KeyboardInterrupt
        elif time.monotonic() - self.first > ONE_REQUEST:  # sooner it is the same one, handed on by a launcher
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked, told to all of them alike, so that they stop at the same step."""
        if accelerator.num_processes == 1:
            return self.received
        asked = torch.tensor(int(self.received), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum"))
