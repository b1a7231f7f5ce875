"""A ResNet's weights as files of other libraries, with the lines of their configuration that must go with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from training.export.checkpoint_files import find_weights, read_checkpoint, unpack
from training.export.folders import Page
from training.export.key_layouts import LAYOUTS
from training.export.pixel_forms import PIXEL_FORMS
from training.export.renaming import from_layout, to_layout
from training.export.resnets import BATCH_NORM, NAMED, check_exportable
from training.views.normalise import IMAGE_MEAN, IMAGE_STD

PIXELS = PIXEL_FORMS["imagenet"]


@dataclass(frozen=True)
class Job:
    """A ResNet on its way into a file.

    Args:
        weights: Its tensors under the names of the library.
        name: Which ResNet it is.
        stride_in_1x1: Whether its bottlenecks have the stride in their first convolution.
        folder: Where to write.
        place: What the folder will be called when it is complete.
        title: What the page is to be headed.
    """

    weights: dict[str, Tensor]
    name: str
    stride_in_1x1: bool
    folder: Path
    place: str
    title: str


def write_library(backbone: PreTrainedModel, library: str, folder: Path, place: str) -> Page:
    """Write a ResNet as a file of another library, and read it back to see that every tensor came through."""
    name = check_exportable(backbone, library)
    stride_in_1x1 = bool(backbone.config.downsample_in_bottleneck) and NAMED[name][1] == "bottleneck"
    if stride_in_1x1 and library in ("torchvision", "timm", "mmpretrain"):
        raise ValueError(
            f"this ResNet has its stride in the 1x1 convolutions, and {library} builds {name} with it in the 3x3. "
            "Export it for detectron2 or mmdet, which can have it in both."
        )
    if library == "detectron2" and NAMED[name][1] == "basic":
        raise ValueError(
            f"detectron2's C4 head builds bottleneck blocks whatever its depth, so {name} has no place in it. "
            "--format detectron2-fpn has one."
        )
    state = {key: value.detach().contiguous() for key, value in backbone.state_dict().items()}
    title = f"{name} for {LAYOUTS[library].library}"
    page = WRITERS[library](Job(to_layout(state, LAYOUTS[library]), name, stride_in_1x1, folder, place, title))
    page.facts = {
        "architecture": name,
        "layout": library,
        "stride_in": "1x1" if stride_in_1x1 else "3x3",
        "pixels": asdict(PIXELS),
        "batch_norm": BATCH_NORM,
    }
    _check_written(state, library, folder)
    return page


def _check_written(state: dict[str, Tensor], library: str, folder: Path) -> None:
    file = find_weights(folder)
    again = from_layout(unpack(read_checkpoint(file), "student", file).weights, library).weights
    wrong = [key for key in state.keys() | again.keys() if key not in again or not torch.equal(state[key], again[key])]
    if wrong:
        raise RuntimeError(f"{file.name} does not read back as it was written, first in {wrong[0]}; is the disk full?")


def _torchvision(job: Job) -> Page:
    save_file(job.weights, job.folder / "model.safetensors", {"format": "pt"})
    code = (
        "import torch, torchvision\nfrom safetensors.torch import load_file\n\n"
        f"model = torchvision.models.{job.name}()\nmodel.fc = torch.nn.Identity()\n"
        f'model.load_state_dict(load_file("{job.place}/model.safetensors"))'
    )
    return Page(job.title, code)


def _timm(job: Job) -> Page:
    save_file(job.weights, job.folder / "model.safetensors", {"format": "pt"})
    features = max(value.shape[0] for value in job.weights.values() if value.ndim == 4)
    config = {
        "architecture": job.name,
        "num_classes": 0,
        "num_features": features,
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
    (job.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    code = f'import timm\n\nmodel = timm.create_model("local-dir:{job.place}", pretrained=True)'
    return Page(
        job.title,
        code,
        lines=[
            f'Older versions of timm: `timm.create_model("{job.name}", num_classes=0, '
            f'checkpoint_path="{job.place}/model.safetensors")`.'
        ],
    )


def _detectron2(job: Job) -> Page:
    # Beside the names, matched by the longest common end for versions that put something before them.
    torch.save(
        {"model": job.weights, "__author__": "decodepos", "matching_heuristics": True}, job.folder / "model.pth"
    )
    depth, kind, _ = NAMED[job.name]
    lines = [
        "MODEL:",
        f'  WEIGHTS: "{job.place}/model.pth"',
        f"  PIXEL_MEAN: {list(PIXELS.mean)}",
        f"  PIXEL_STD: {list(PIXELS.std)}",
        "  RESNETS:",
        f"    DEPTH: {depth}",
        f"    STRIDE_IN_1X1: {job.stride_in_1x1}",
        *(["    RES2_OUT_CHANNELS: 64"] if kind == "basic" else []),
        "INPUT:",
        f"  FORMAT: {PIXELS.channels}",
    ]
    code = "\n".join(lines)
    (job.folder / "detectron2.yaml").write_text(code + "\n", encoding="utf-8")
    where = "region head (`roi_heads.res5`)" if "roi_heads.res5.0.conv1.weight" in job.weights else "backbone"
    return Page(
        job.title,
        code,
        "yaml",
        lines=[
            f"The last stage lies in the {where}. These lines must be in the configuration: detectron2's defaults are "
            "BGR pixels without a deviation and the stride in the 1x1 convolution, and weights load just as well with "
            "those, to compute something else. `detectron2.yaml` has them; `cfg.merge_from_file` takes it.",
            "`model.pth` is a dictionary as detectron2's own checkpoints are, and its `DetectionCheckpointer` reads "
            "it by `MODEL.WEIGHTS`; it holds no pickled objects.",
        ],
    )


def _openmmlab(job: Job) -> Page:
    torch.save({"state_dict": job.weights, "meta": {"author": "decodepos"}}, job.folder / "model.pth")
    style = "caffe" if job.stride_in_1x1 else "pytorch"
    code = (
        f"backbone = dict(type='ResNet', depth={NAMED[job.name][0]}, style='{style}',\n"
        f"                init_cfg=dict(type='Pretrained', checkpoint='{job.place}/model.pth', prefix='backbone.'))\n"
    )
    return Page(job.title, code)


def _mmdet(job: Job) -> Page:
    page = _openmmlab(job)
    page.code += (
        f"data_preprocessor = dict(type='DetDataPreprocessor', mean={list(PIXELS.mean)},\n"
        f"                         std={list(PIXELS.std)}, bgr_to_rgb=True)"
    )
    return page


def _mmpretrain(job: Job) -> Page:
    page = _openmmlab(job)
    page.code += f"data_preprocessor = dict(mean={list(PIXELS.mean)}, std={list(PIXELS.std)}, to_rgb=True)"
    return page


WRITERS: dict[str, Callable[[Job], Page]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "detectron2": _detectron2,
    "detectron2-fpn": _detectron2,
    "mmdet": _mmdet,
    "mmpretrain": _mmpretrain,
}


def describe_native(extractor_config: Any) -> dict[str, Any]:
    """What a plain transformers folder should say of its network."""
    facts: dict[str, Any] = {"architecture": extractor_config.model_type, "pixels": asdict(PIXELS)}
    if extractor_config.model_type == "resnet":
        facts["stride_in"] = "1x1" if extractor_config.downsample_in_bottleneck else "3x3"
        facts["batch_norm"] = BATCH_NORM
    return facts
