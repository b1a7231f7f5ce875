"""Where each library keeps the tensors of a ResNet, and those tensors renamed, there and back.

All layouts hold the same network. They differ in the names of its layers, in what stands before those names, in what
else lies in the same file, and in the pixels it was trained on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Literal

from modeling_decodepos.imagenet import IMAGE_MEAN, IMAGE_STD

if TYPE_CHECKING:  # the command line needs the names of the layouts, and no torch
    from torch import Tensor

STAGES, MOST_BLOCKS, MOST_CONVOLUTIONS = 4, 64, 3
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Under the names of transformers: what every ResNet has, whatever its depth.
STEM = "embedder.embedder.convolution.weight"
LAST_STAGE = f"encoder.stages.{STAGES - 1}.layers.0.layer.0.convolution.weight"

# What stands before the names, and before those of the last stage: a C4 detector has that in its region head.
Prefix = tuple[str, str]
BARE: Prefix = ("", "")
C4: Prefix = ("backbone.", "roi_heads.")
FPN: Prefix = ("backbone.bottom_up.", "backbone.bottom_up.")


@dataclass(frozen=True)
class Layout:
    """One way to store a ResNet.

    Attributes:
        stem, conv, shortcut: Templates of the names of a convolution and of its batch norm.
        first_stage: Its number.
        prefixes: What the names may begin with; files are written with the first.
        leftovers: Pattern of the keys of what else such files hold and a backbone has no use for.
    """

    stem: tuple[str, str]
    conv: tuple[str, str]
    shortcut: tuple[str, str]
    first_stage: int
    prefixes: tuple[Prefix, ...]
    leftovers: str


CLASSIFIER = r"fc\.(\d\.)?(weight|bias)"
# The converters of MoCo and torchvision put `stem.` before everything that is in no stage.
DETECTOR = (
    r"(proposal_generator|roi_heads|box_head|linear|(stem\.)?fc)\.(?!res5\.).+"
    r"|(backbone\.)?fpn_(lateral|output)\d.+|pixel_(mean|std)"
)
TORCHVISION = Layout(
    stem=("conv1", "bn1"),
    conv=("layer{stage}.{block}.conv{conv}", "layer{stage}.{block}.bn{conv}"),
    shortcut=("layer{stage}.{block}.downsample.0", "layer{stage}.{block}.downsample.1"),
    first_stage=1,
    prefixes=(BARE,),
    leftovers=CLASSIFIER,
)
DETECTRON2 = Layout(
    stem=("stem.conv1", "stem.conv1.norm"),
    conv=("res{stage}.{block}.conv{conv}", "res{stage}.{block}.conv{conv}.norm"),
    shortcut=("res{stage}.{block}.shortcut", "res{stage}.{block}.shortcut.norm"),
    first_stage=2,
    prefixes=(C4, FPN, BARE),
    leftovers=DETECTOR,
)
LAYOUTS = {
    "torchvision": TORCHVISION,
    "timm": TORCHVISION,
    "detectron2": DETECTRON2,
    "detectron2-fpn": replace(DETECTRON2, prefixes=(FPN, C4, BARE)),
}
READABLE = ("torchvision", "timm", "detectron2")  # the last reads both of its forms


@dataclass(frozen=True)
class PixelForm:
    """Order of the channels, and what is subtracted and divided by, on the scale of 0 to 255 and in that order."""

    channels: Literal["RGB", "BGR"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def rgb_pixels(image_mean: Sequence[float], image_std: Sequence[float]) -> PixelForm:
    """The form of RGB pixels with a mean and a deviation on the scale of 0 to 1."""
    mean, std = (tuple(round(255 * value, 3) for value in values) for values in (image_mean, image_std))
    return PixelForm("RGB", mean, std)


_IMAGENET = rgb_pixels(IMAGE_MEAN, IMAGE_STD)
_MEAN, _STD = _IMAGENET.mean, _IMAGENET.std
# What our networks see is the first. All subtract the same mean: see `resnets.adapt_stem`.
PIXEL_FORMS = {
    "imagenet": _IMAGENET,
    "caffe": PixelForm("BGR", _MEAN[::-1], (1.0, 1.0, 1.0)),
    "imagenet_bgr": PixelForm("BGR", _MEAN[::-1], _STD[::-1]),
}


@cache
def key_table(layout: Layout, prefix: Prefix) -> dict[str, str]:
    """The key of transformers for every key that a ResNet of any depth may have in a layout."""
    trunk, last = prefix
    layers: list[tuple[str, str, tuple[str, str], dict[str, int]]] = [("embedder.embedder", trunk, layout.stem, {})]
    for stage, block in product(range(STAGES), range(MOST_BLOCKS)):
        native, start = f"encoder.stages.{stage}.layers.{block}", last if stage == STAGES - 1 else trunk
        numbers = {"stage": stage + layout.first_stage, "block": block}
        layers.append((f"{native}.shortcut", start, layout.shortcut, numbers))
        for conv in range(MOST_CONVOLUTIONS):
            layers.append((f"{native}.layer.{conv}", start, layout.conv, {**numbers, "conv": conv + 1}))
    table = {}
    for native, start, templates, numbers in layers:
        conv_name, norm_name = (start + template.format(**numbers) for template in templates)
        table[f"{conv_name}.weight"] = f"{native}.convolution.weight"
        table |= {f"{norm_name}.{tensor}": f"{native}.normalization.{tensor}" for tensor in NORM_TENSORS}
    return table


def to_layout(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The tensors of transformers' ResNet under the names of a layout, behind its first prefix."""
    theirs = {native: key for key, native in key_table(layout, layout.prefixes[0]).items()}
    return {theirs[key]: value for key, value in weights.items()}


def from_layout(weights: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], Counter[str]]:
    """The tensors of a file under the names of transformers' ResNet, and how many it holds besides, by first name."""
    layout = LAYOUTS[name]
    table = _matching_table(weights, layout)
    if table is None:
        stems = [f"{prefix}{layout.stem[0]}.weight" for prefix, _ in layout.prefixes]
        raise ValueError(
            f"no ResNet in the layout {name!r} here: that would have {' or '.join(stems)}, and a last stage; the file "
            f"has {', '.join(list(weights)[:4])} … {suggest_layout(weights)}"
        )
    others = [key for key in weights if key not in table]
    if unknown := [key for key in others if not re.fullmatch(layout.leftovers, key)]:
        raise ValueError(
            f"{len(unknown)} keys are no part of a ResNet in the layout {name!r}: {', '.join(unknown[:4])}. "
            "Nothing was converted."
        )
    backbone = {table[key]: value for key, value in weights.items() if key in table}
    return backbone, Counter(key.partition(".")[0] for key in others)


def suggest_layout(keys: Iterable[str]) -> str:
    """How to read a file with these keys, in a sentence."""
    keys = set(keys)
    if keys & {STEM, f"resnet.{STEM}"}:
        return "These are the keys of transformers' own ResNet: give its folder without --from."
    names = [name for name in READABLE if _matching_table(keys, LAYOUTS[name]) is not None]
    if not names:
        return f"Its keys are of no layout known here ({', '.join(READABLE)})."
    return f"Its keys look like {' or '.join(names)}: say --from {names[0]}."


def _matching_table(keys: Iterable[str], layout: Layout) -> dict[str, str] | None:
    tables = [key_table(layout, prefix) for prefix in layout.prefixes]
    return next((table for table in tables if {STEM, LAST_STAGE} <= {table.get(key) for key in keys}), None)
