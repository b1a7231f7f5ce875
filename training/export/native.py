"""Folders that transformers loads: the backbone in its own class, and the whole pre-training model."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ResNetConfig, ResNetModel, ViTImageProcessorPil
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining, DecodePosModel
from training.views.normalise import IMAGE_MEAN, IMAGE_STD

AUTO_MAP = {
    "AutoConfig": "configuration_decodepos.DecodePosConfig",
    "AutoModel": "modeling_decodepos.DecodePosModel",
    "AutoBackbone": "modeling_decodepos.DecodePosBackbone",
    "AutoModelForPreTraining": "modeling_decodepos.DecodePosForPreTraining",
}


def export_backbone(model: DecodePosForPreTraining, path: Path | str, image_size_px: int = 224) -> Path:
    """The folder of the student's backbone in its own transformers class, which loads anywhere."""
    return save_backbone(model.decodepos, path, image_size_px)


def save_backbone(extractor: DecodePosModel, path: Path | str, image_size_px: int = 224) -> Path:
    """The folder of a feature extractor's backbone in its own transformers class."""
    backbone: Any = extractor.backbone
    if isinstance(backbone.config, ResNetConfig):  # others load a plain model, not the backbone class
        plain: Any = ResNetModel(backbone.config)
        plain.to(backbone.dtype).load_state_dict(backbone.state_dict(), strict=True)
        backbone = plain.eval()
    return _save(backbone, path, image_size_px)


def export_pretraining(model: DecodePosForPreTraining, path: Path | str, image_size_px: int = 224) -> Path:
    """The folder of student, teacher and heads, with the code that `trust_remote_code=True` needs."""
    model.config.auto_map = dict(AUTO_MAP)
    try:
        saved = _save(model, path, image_size_px)
    finally:
        del model.config.auto_map
    # Remote code copies flat siblings only: the modeling file and what it imports relatively.
    source = inspect.getfile(type(model))
    for file in {source, *get_relative_import_files(source)}:
        shutil.copy(file, saved / Path(file).name)
    return saved


def _save(model: PreTrainedModel, path: Path | str, image_size_px: int) -> Path:
    path = Path(path)
    model.save_pretrained(path)
    processor = ViTImageProcessorPil(
        size={"height": image_size_px, "width": image_size_px}, resample=2, image_mean=IMAGE_MEAN, image_std=IMAGE_STD
    )
    processor.save_pretrained(path)
    return path
