"""What a run may end with, other than its last step."""

from __future__ import annotations

# EX_TEMPFAIL of sysexits.h: not done, and the same command continues.
EXIT_INTERRUPTED = 75


class RunStopped(RuntimeError):
    """Training must not go on; the message says why, and what to change."""


class WentWrong(RunStopped):
    """The network is worse than it was, and all processes know: the best state so far is to be left instead."""

    def __init__(self, message: str, cause: str = ""):
        super().__init__(message)
        self.cause = cause  # where the message knows more than the measures tell


class UnusableData(RunStopped):
    """The images or regions are none to train on. Met in a data worker, it loses the traceback it comes with."""

    def __init__(self, message: str):
        # A DataLoader raises a worker's exception once more, around the text of the first one's traceback.
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())
