"""A ResNet's weights as files of other libraries, with the lines of their configuration that must go with them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from training.export.folders import Readme
from training.export.layouts import LAYOUTS, to_layout
from training.export.pixel_forms import PIXEL_FORMS
from training.export.resnets import BATCH_NORM, NAMED, check_exportable
from training.views.normalise import IMAGE_MEAN, IMAGE_STD

PIXELS = PIXEL_FORMS["imagenet"]


def write_library(backbone: PreTrainedModel, library: str, folder: Path, place: str) -> Readme:
    """Write a ResNet as a file of another library; what the README says.

    Args:
        backbone: A ResNet of transformers.
        library: A name of `LAYOUTS`.
        folder: Where to write.
        place: What the folder will be called when it is complete.
    """
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
    if library == "torchvision":
        readme = _torchvision(weights, name, folder, place)
    elif library == "timm":
        readme = _timm(weights, name, folder, place)
    else:
        readme = _detectron2(weights, name, stride_in_1x1, folder, place)
    readme.title = f"{name} for {library}"
    readme.facts = {
        "architecture": name,
        "layout": library,
        "stride_in": "1x1" if stride_in_1x1 else "3x3",
        "pixels": asdict(PIXELS),
        "batch_norm": BATCH_NORM,
    }
    return readme


def _torchvision(weights: dict[str, Tensor], name: str, folder: Path, place: str) -> Readme:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return Readme(
        "import torch, torchvision\nfrom safetensors.torch import load_file\n\n"
        f"model = torchvision.models.{name}()\nmodel.fc = torch.nn.Identity()\n"
        f'model.load_state_dict(load_file("{place}/model.safetensors"))'
    )


def _timm(weights: dict[str, Tensor], name: str, folder: Path, place: str) -> Readme:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": max(value.shape[0] for value in weights.values() if value.ndim == 4),
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, 224, 224],
            "mean": IMAGE_MEAN,
            "std": IMAGE_STD,
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


def _detectron2(weights: dict[str, Tensor], name: str, stride_in_1x1: bool, folder: Path, place: str) -> Readme:
    # Beside the names, matched by the longest common end for versions that put something before them.
    torch.save({"model": weights, "__author__": "decodepos", "matching_heuristics": True}, folder / "model.pth")
    depth, kind, _ = NAMED[name]
    code = "\n".join(
        [
            "MODEL:",
            f'  WEIGHTS: "{place}/model.pth"',
            f"  PIXEL_MEAN: {list(PIXELS.mean)}",
            f"  PIXEL_STD: {list(PIXELS.std)}",
            "  RESNETS:",
            f"    DEPTH: {depth}",
            f"    STRIDE_IN_1X1: {stride_in_1x1}",
            *(["    RES2_OUT_CHANNELS: 64"] if kind == "basic" else []),
            "INPUT:",
            f"  FORMAT: {PIXELS.channels}",
        ]
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
