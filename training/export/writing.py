"""A network as a folder of another library, of transformers, or as a graph, with the lines that load it.

python -m training.export runs/scenes_smoke/export/pretraining --format backbone --output my-backbone
python -m training.export resnet50.pth --from torchvision --format backbone --output my-start
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modeling_decodepos.modeling_decodepos import DecodePosModel
from training.export.folders import Readme, export_backbone, new_folder, write_readme
from training.export.graphs import write_graph
from training.export.layouts import LAYOUTS, PixelForm, rgb_pixels, to_layout
from training.export.loading import LoadedNetwork
from training.export.resnets import BATCH_NORM, NAMED, check_exportable


def export(loaded: LoadedNetwork, format_name: str, output: Path, image_size_px: int = 224) -> Readme:
    """Write a network to a new folder in a format of `training.export.__main__.FORMATS`; what its README says."""
    extractor, place = loaded.extractor, output.name
    with new_folder(output) as folder:
        if format_name in LAYOUTS:
            readme = _write_library(extractor, format_name, folder, place)
        elif format_name == "backbone":
            readme = _write_backbone(extractor, folder, place, image_size_px)
        else:
            readme = write_graph(extractor, format_name, folder, place, image_size_px)
        readme.lines += [f"When it was read: {note}." for note in loaded.notes]
        write_readme(folder, readme, loaded.origin)
    return readme


def _write_backbone(extractor: DecodePosModel, folder: Path, place: str, image_size_px: int) -> Readme:
    export_backbone(extractor, folder, image_size_px)
    config: Any = extractor.config.backbone_config
    facts: dict[str, Any] = {"architecture": config.model_type, "pixels": asdict(_pixels(extractor))}
    if config.model_type == "resnet":
        facts |= {"stride_in": "1x1" if config.downsample_in_bottleneck else "3x3", "batch_norm": BATCH_NORM}
    return Readme(
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{place}")\nmodel = AutoModel.from_pretrained("{place}")',
        f"{config.model_type} backbone for transformers",
        facts=facts,
        lines=[f"To start a run from it: `accelerate launch training/pretrain.py --backbone {place}`."],
    )


def _pixels(extractor: DecodePosModel) -> PixelForm:
    return rgb_pixels(extractor.config.image_mean, extractor.config.image_std)


def _write_library(extractor: DecodePosModel, library: str, folder: Path, place: str) -> Readme:
    backbone: Any = extractor.backbone
    name = check_exportable(backbone, library)
    kind = NAMED[name][1]
    stride_in_1x1 = bool(backbone.config.downsample_in_bottleneck) and kind == "bottleneck"
    if stride_in_1x1 and library in ("torchvision", "timm"):
        raise ValueError(
            f"this ResNet has its stride in the 1x1 convolutions, and {library} builds {name} with it in the 3x3. "
            "Export it for detectron2, which can have it in both."
        )
    if library == "detectron2" and kind == "basic":
        raise ValueError(
            f"detectron2's C4 head builds bottleneck blocks whatever its depth, so {name} has no place in it. "
            "--format detectron2-fpn has one."
        )
    weights = to_layout({key: value.contiguous() for key, value in backbone.state_dict().items()}, LAYOUTS[library])
    if library in ("torchvision", "timm"):
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        readme = _torchvision(name, place) if library == "torchvision" else _timm(extractor, name, folder, place)
    else:
        readme = _detectron2(weights, _pixels(extractor), name, stride_in_1x1, folder, place)
    readme.title = f"{name} for {library}"
    readme.facts = {
        "architecture": name,
        "layout": library,
        "stride_in": "1x1" if stride_in_1x1 else "3x3",
        "pixels": asdict(_pixels(extractor)),
        "batch_norm": BATCH_NORM,
    }
    return readme


def _torchvision(name: str, place: str) -> Readme:
    return Readme(
        "import torch, torchvision\nfrom safetensors.torch import load_file\n\n"
        f"model = torchvision.models.{name}()\nmodel.fc = torch.nn.Identity()\n"
        f'model.load_state_dict(load_file("{place}/model.safetensors"))'
    )


def _timm(extractor: DecodePosModel, name: str, folder: Path, place: str) -> Readme:
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": extractor.config.hidden_size,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, 224, 224],
            "mean": extractor.config.image_mean,
            "std": extractor.config.image_std,
            "interpolation": "bilinear",
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    older = f'timm.create_model("{name}", num_classes=0, checkpoint_path="{place}/model.safetensors")'
    return Readme(
        f'import timm\n\nmodel = timm.create_model("local-dir:{place}", pretrained=True)',
        lines=[f"Older versions of timm: `{older}`."],
    )


def _detectron2(
    weights: dict[str, Tensor], pixels: PixelForm, name: str, stride_in_1x1: bool, folder: Path, place: str
) -> Readme:
    # Beside the names, matched by the longest common end for versions that put something before them.
    torch.save({"model": weights, "__author__": "decodepos", "matching_heuristics": True}, folder / "model.pth")
    depth, kind, _ = NAMED[name]
    width = "    RES2_OUT_CHANNELS: 64\n" if kind == "basic" else ""
    code = (
        f'MODEL:\n  WEIGHTS: "{place}/model.pth"\n  PIXEL_MEAN: {list(pixels.mean)}\n  PIXEL_STD: {list(pixels.std)}\n'
        f"  RESNETS:\n    DEPTH: {depth}\n    STRIDE_IN_1X1: {stride_in_1x1}\n"
        f"{width}INPUT:\n  FORMAT: {pixels.channels}"
    )
    (folder / "detectron2.yaml").write_text(code + "\n", encoding="utf-8")
    where = "region head (`roi_heads.res5`)" if "roi_heads.res5.0.conv1.weight" in weights else "backbone"
    lines = [
        f"The last stage lies in the {where}. These lines must be in the configuration: detectron2's defaults are "
        "BGR pixels without a deviation and the stride in the 1x1 convolution, and weights load just as well with "
        "those, to compute something else. `detectron2.yaml` has them; `cfg.merge_from_file` takes it.",
        "`model.pth` is a dictionary as detectron2's own checkpoints are, and its `DetectionCheckpointer` reads "
        "it by `MODEL.WEIGHTS`; it holds no pickled objects.",
    ]
    return Readme(code, language="yaml", lines=lines)
