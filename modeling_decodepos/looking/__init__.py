"""See what a backbone makes of a picture: its map in colours, what is alike, and what leaks into the feature of a box.

from modeling_decodepos.looking import look, save_look

save_look(look(["facebook/dinov2-small", "random:vit_small"], ["photo.jpg"]), "look")    # look.png and look.html
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import save_look
    from .run import Look, look
    from .sheet import draw_look

__all__ = ["Look", "draw_look", "look", "save_look"]

_FILES = {"Look": "run", "look": "run", "draw_look": "sheet", "save_look": "page"}


def __getattr__(name: str) -> Any:
    """A name's file is imported when the name is first used: torch takes seconds, and `--help` needs none."""
    if name in _FILES:
        return getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
