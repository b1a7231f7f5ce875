"""Region features without context and position leaks: models, the three augmentations and the losses.

Importing this loads neither torch nor transformers, which take seconds: names are imported when they are first used,
and transformers' Auto classes hear of the models as soon as they are loaded themselves.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .background import foreground_mask, replace_background
    from .configuration_decodepos import DecodePosConfig
    from .losses import DECOUPLING_PAIRS, DEPOSITIONING_PAIRS, OBJECTIVES, region_similarity_loss
    from .modeling_decodepos import DecodePosBackbone, DecodePosForPreTraining, DecodePosModel, ema_update
    from .region_cutout import CUT_FORMS, cut_regions, enlarge_cut, sample_region_cut
    from .region_pooling import pool_regions
    from .regions import View, boxes_to_pixels
    from .repositioning import (
        FOREGROUND_SCALES,
        Placement,
        place_boxes,
        placed_pixel_boxes,
        reposition_foreground,
        sample_placement,
    )

__version__ = "0.1.0"

__all__ = [
    "CUT_FORMS",
    "DECOUPLING_PAIRS",
    "DEPOSITIONING_PAIRS",
    "FOREGROUND_SCALES",
    "OBJECTIVES",
    "DecodePosBackbone",
    "DecodePosConfig",
    "DecodePosForPreTraining",
    "DecodePosModel",
    "Placement",
    "View",
    "boxes_to_pixels",
    "cut_regions",
    "ema_update",
    "enlarge_cut",
    "foreground_mask",
    "place_boxes",
    "placed_pixel_boxes",
    "pool_regions",
    "region_similarity_loss",
    "replace_background",
    "reposition_foreground",
    "sample_placement",
    "sample_region_cut",
]

_FILES = {
    "background": "foreground_mask replace_background",
    "configuration_decodepos": "DecodePosConfig",
    "losses": "DECOUPLING_PAIRS DEPOSITIONING_PAIRS OBJECTIVES region_similarity_loss",
    "modeling_decodepos": "DecodePosBackbone DecodePosForPreTraining DecodePosModel ema_update",
    "region_cutout": "CUT_FORMS cut_regions enlarge_cut sample_region_cut",
    "region_pooling": "pool_regions",
    "regions": "View boxes_to_pixels",
    "repositioning": "FOREGROUND_SCALES Placement place_boxes placed_pixel_boxes reposition_foreground "
    "sample_placement",
}


def __getattr__(name: str) -> Any:
    for file, names in _FILES.items():
        if name == file or name in names.split():
            module = importlib.import_module(f".{file}", __name__)
            return module if name == file else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ------------------------------------------------------------------------------------------------------ registration


def _register_config() -> None:
    from transformers import AutoConfig

    from .configuration_decodepos import DecodePosConfig

    AutoConfig.register(DecodePosConfig.model_type, DecodePosConfig)


def _register_models() -> None:
    from transformers import AutoBackbone, AutoModel, AutoModelForPreTraining

    from .modeling_decodepos import DecodePosBackbone, DecodePosConfig, DecodePosForPreTraining, DecodePosModel

    AutoModel.register(DecodePosConfig, DecodePosModel)
    AutoBackbone.register(DecodePosConfig, DecodePosBackbone)
    AutoModelForPreTraining.register(DecodePosConfig, DecodePosForPreTraining)


# What follows the import of a module. Our files import the Auto classes, so they register when they are whole.
_FOLLOWS: dict[str, Callable[[], object]] = {
    "transformers.models.auto.configuration_auto": lambda: importlib.import_module(
        f"{__name__}.configuration_decodepos"
    ),
    "transformers.models.auto.modeling_auto": lambda: importlib.import_module(f"{__name__}.modeling_decodepos"),
    f"{__name__}.configuration_decodepos": _register_config,
    f"{__name__}.modeling_decodepos": _register_models,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules of `_FOLLOWS` as usual, and calls what follows when they are loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _FOLLOWS else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if follow := _FOLLOWS.pop(name, None):
                follow()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AfterImport())
for _name in [name for name in _FOLLOWS if name in sys.modules]:
    _FOLLOWS.pop(_name)()
