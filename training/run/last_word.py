"""A program's last word: launchers follow a message of ours with a traceback of theirs, which says nothing of it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator

from training.errors import EXIT_INTERRUPTED

# Set by `accelerate launch`, and by torchrun, for what they start.
_LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
_STOPPED = {EXIT_INTERRUPTED: "stopped as asked; the same command goes on from its last checkpoint."}

# Runs by itself: waits for a process to end, at most half a minute, and then speaks.
_SPEAKER = """
import os, select, sys
waiting = select.poll()
waiting.register(os.pidfd_open(int(sys.argv[1])), select.POLLIN)
waiting.poll(30_000)
sys.stderr.write(sys.argv[2])
"""


@contextlib.contextmanager
def last_word(listen: bool = False) -> Iterator[None]:
    """The message that the program ends with here is said once more when its launcher, if there is one, has ended.

    The message is what `sys.exit` is given; with `listen`, what is written to stderr meanwhile.
    """
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard) if listen else contextlib.nullcontext():
            yield
    except SystemExit as stop:
        told = stop.code if isinstance(stop.code, str) else heard.getvalue() or _STOPPED.get(stop.code or 0, "")
        if stop.code and told.strip():
            _say_after_launcher(told.strip())
        raise
    finally:
        sys.stderr.write(heard.getvalue())


def _say_after_launcher(text: str) -> None:
    """Leave a process behind that says a text when the parent process has ended."""
    launched = any(name in os.environ for name in _LAUNCHED)
    if launched and os.environ.get("RANK", "0") == "0" and hasattr(os, "pidfd_open"):
        command = [sys.executable, "-S", "-E", "-c", _SPEAKER, str(os.getppid()), f"\n{text}\n"]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
