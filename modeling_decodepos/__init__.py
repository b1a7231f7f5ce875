"""Region features without context and position leaks: models, the three augmentations and the losses."""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForPreTraining

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

AutoConfig.register(DecodePosConfig.model_type, DecodePosConfig)
AutoModel.register(DecodePosConfig, DecodePosModel)
AutoBackbone.register(DecodePosConfig, DecodePosBackbone)
AutoModelForPreTraining.register(DecodePosConfig, DecodePosForPreTraining)
