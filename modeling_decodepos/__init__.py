"""Region features without context and position leaks: models, the three augmentations and the losses.

Importing this loads neither torch nor transformers, which take seconds: names are imported when they are first used,
and transformers' Auto classes hear of the models as soon as they are loaded themselves.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augmentations.background import foreground_mask, replace_background
    from .augmentations.region_cutout import CUT_FORMS, cut_regions, enlarge_cut, sample_region_cut
    from .augmentations.repositioning import (
        FOREGROUND_SCALES,
        Placement,
        place_boxes,
        placed_pixel_boxes,
        reposition_foreground,
        sample_placement,
    )
    from .configuration_decodepos import DecodePosConfig
    from .losses import DECOUPLING_PAIRS, DEPOSITIONING_PAIRS, OBJECTIVES, region_similarity_loss
    from .modeling_decodepos import DecodePosBackbone, DecodePosForPreTraining, DecodePosModel, ema_update
    from .region_pooling import pool_regions
    from .regions import View, boxes_to_pixels

__version__ = "0.1.0"

__all__ = [
    "CUT_FORMS", "DECOUPLING_PAIRS", "DEPOSITIONING_PAIRS", "FOREGROUND_SCALES", "OBJECTIVES", "DecodePosBackbone",
    "DecodePosConfig", "DecodePosForPreTraining", "DecodePosModel", "Placement", "View", "boxes_to_pixels",
    "cut_regions", "ema_update", "enlarge_cut", "foreground_mask", "place_boxes", "placed_pixel_boxes", "pool_regions",
    "region_similarity_loss", "replace_background", "reposition_foreground", "sample_placement", "sample_region_cut",
]  # fmt: skip

# Where the names above are looked for, one file after the other.
_FILES = ("regions", "augmentations.background", "augmentations.region_cutout", "augmentations.repositioning",
          "region_pooling", "losses", "configuration_decodepos", "modeling_decodepos")  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in (*_FILES, *__all__):
        for file in [name] if name in _FILES else _FILES:
            module = importlib.import_module(f".{file}", __name__)
            if name == file or hasattr(module, name):
                return module if name == file else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


# ------------------------------------------------------------------------------------------------------ registration

# What is imported once each of these is there; our files register their classes.
_FOLLOWS = {
    "transformers.models.auto.configuration_auto": f"{__name__}.configuration_decodepos",
    "transformers.models.auto.modeling_auto": f"{__name__}.modeling_decodepos",
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Imports what follows when the outermost import is over: transformers' modules import the Auto classes while they
    are half imported themselves, and ours need them whole."""

    depth = 0

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        watched = name.partition(".")[0] in ("transformers", __name__)
        spec = PathFinder.find_spec(name, path, target) if watched else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0:
                self.catch_up()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def catch_up(self) -> None:
        for name in _FOLLOWS.keys() & sys.modules.keys():
            if follower := _FOLLOWS.pop(name, ""):  # an import within this one may have come before
                importlib.import_module(follower)
        if not _FOLLOWS and self in sys.meta_path:
            sys.meta_path.remove(self)


_watch = _AfterImport()
sys.meta_path.insert(0, _watch)
_watch.catch_up()
