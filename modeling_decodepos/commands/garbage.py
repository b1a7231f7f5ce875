"""Python's search for garbage, kept out of the start and the end of a command, of which it takes a third."""

from __future__ import annotations

import atexit
import gc


def collect_less() -> None:
    """Search after 10,000 new objects where Python does after 700, and not through everything once more at the end.

    For a process that is a command: what importing torch and transformers makes stays until it ends.
    """
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)
