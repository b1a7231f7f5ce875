"""One picture and its regions -> the views of the method."""

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    """For one release: what stood in the file `training/views.py`."""
    for place in ("training.views.sampling", "training.show"):
        module = importlib.import_module(place)
        if not name.startswith("__") and hasattr(module, name):
            warnings.warn(f"training.views.{name} is {place}.{name} now", DeprecationWarning, stacklevel=2)
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
