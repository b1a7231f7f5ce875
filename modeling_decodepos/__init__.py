"""Region features without context and position leaks: models, the three augmentations and the losses."""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForPreTraining

from .background import foreground_mask, replace_background
from .configuration_decodepos import DecodePosConfig
from .losses import DECOUPLING_PAIRS, DEPOSITIONING_PAIRS, OBJECTIVES, region_similarity_loss
from .modeling_decodepos import DecodePosBackbone, DecodePosForPreTraining, DecodePosModel, ema_update
from .region_cutout import cut_regions, sample_region_cut
from .region_pooling import pool_regions
from .regions import View
from .repositioning import reposition_foreground, sample_placement

__version__ = "0.1.0"

__all__ = [
    "DECOUPLING_PAIRS",
    "DEPOSITIONING_PAIRS",
    "OBJECTIVES",
    "DecodePosBackbone",
    "DecodePosConfig",
    "DecodePosForPreTraining",
    "DecodePosModel",
    "View",
    "cut_regions",
    "ema_update",
    "foreground_mask",
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
