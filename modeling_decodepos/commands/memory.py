"""What to say where a size is beyond the memory."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# torch on a CPU and on a GPU, OpenCV, threads that get no stack, and C++ beneath anything.
_WORDS = (
    *("can't allocate memory", "out of memory", "Insufficient memory", "can't start new thread"),
    *("bad_alloc", "bad allocation"),
)
_ASKED = re.compile(r"(?:allocate|of size) (\d+(?:\.\d+)?) ?([KMGT]i?B|bytes)?")


@contextmanager
def named_shortage(keys: Mapping[str, Any], fix: str = "", kind: type[Exception] = ValueError) -> Iterator[None]:
    """Within it, a lack of memory is an error of a `kind`: how much was asked for, and which `keys` decide that.

    What raises may be anything: Python, NumPy, Arrow, OpenCV, torch on any device, or a worker process of these.
    """
    try:
        yield
    except Exception as error:
        if not is_shortage(error):
            raise
        sizes = ", ".join(f"{name} {value}" for name, value in keys.items())
        raise kind(
            f"out of memory{_asked(str(error))}. What decides it: {sizes}. Make one of them smaller{fix}."
        ) from error


def is_shortage(error: BaseException) -> bool:
    """Whether memory was wanting."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(words in str(error) for words in _WORDS)


def _asked(text: str) -> str:
    """How much was asked for at last, where the error tells."""
    if not (found := _ASKED.search(text)):
        return ""
    number, unit = found.groups()
    if unit not in (None, "bytes"):
        return f": {number} {unit} more"
    gib = float(number) / 2**30
    return f": {gib:.2f} GiB more" if gib >= 1 else f": {gib * 2**10:.3g} MiB more"
