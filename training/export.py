"""What a run leaves for others: a plain backbone that needs no code of ours, and the full pre-training model.

python -m training.export runs/scenes_smoke/export/pretraining --format backbone --output my-backbone
"""

from __future__ import annotations

import argparse
import inspect
import shutil
from pathlib import Path

from transformers import PreTrainedModel, ResNetConfig, ResNetModel, ViTImageProcessorPil
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining
from training.pixels import IMAGE_MEAN, IMAGE_STD

AUTO_MAP = {
    "AutoConfig": "configuration_decodepos.DecodePosConfig",
    "AutoModel": "modeling_decodepos.DecodePosModel",
    "AutoBackbone": "modeling_decodepos.DecodePosBackbone",
    "AutoModelForPreTraining": "modeling_decodepos.DecodePosForPreTraining",
}


def export_backbone(model: DecodePosForPreTraining, path: Path | str, image_size_px: int = 224) -> Path:
    """The folder of the student's backbone in its own transformers class, which loads anywhere."""
    backbone = model.decodepos.backbone
    native = _native_resnet(backbone) if model.config.splits_backbone else backbone
    return _save(native, path, image_size_px)


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


def _native_resnet(backbone: PreTrainedModel) -> ResNetModel:
    assert isinstance(backbone.config, ResNetConfig)
    native = ResNetModel(backbone.config)
    native.load_state_dict(backbone.state_dict(), strict=True)
    return native


def _save(model: PreTrainedModel, path: Path | str, image_size_px: int) -> Path:
    path = Path(path)
    model.save_pretrained(path)
    processor = ViTImageProcessorPil(
        size={"height": image_size_px, "width": image_size_px}, resample=2, image_mean=IMAGE_MEAN, image_std=IMAGE_STD
    )
    processor.save_pretrained(path)
    return path


def main() -> None:
    """Export a pre-training checkpoint."""
    parser = argparse.ArgumentParser(description="Export a pre-training checkpoint.")
    parser.add_argument("model", help="folder or Hub id of a pre-training model")
    parser.add_argument("--format", choices=["backbone", "pretraining"], default="backbone")
    parser.add_argument("--image_size_px", type=int, default=224, help="size the preprocessor file asks for")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    write = {"backbone": export_backbone, "pretraining": export_pretraining}[args.format]
    model = DecodePosForPreTraining.from_pretrained(args.model)
    print(f"wrote {write(model, args.output, args.image_size_px)}")


if __name__ == "__main__":
    main()
