"""Where each library and release keeps the tensors of a ResNet. Facts as tables: no code here knows a library by name.

All of these hold the same network. They differ in the names of its layers, in what stands before those names, and in
what else lies in the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerNames:
    """Templates of the names of a ResNet's layers, and the numbers at which stages and convolutions begin."""

    stem: str
    stem_norm: str
    conv: str
    norm: str
    shortcut: str
    shortcut_norm: str
    first_stage: int
    first_conv: int = 1


@dataclass(frozen=True)
class Prefix:
    """What stands before the names. A C4 detector has the last stage elsewhere: in its region head."""

    trunk: str
    last_stage: str | None = None


@dataclass(frozen=True)
class Layout:
    """One way to store a ResNet.

    Args:
        names: Names of the layers.
        student: Prefixes the network may have. Files are written with the first one.
        teacher: Prefixes of its EMA copy, where files have one.
        leftovers: What else such files hold and a backbone has no use for: pattern of the key, and what it is.
        varies: Whether files of this layout differ in things that no tensor tells, the place of the stride and the
            form of the pixels, so that one has to say them.
        library: What the README of an exported folder calls it.
    """

    names: LayerNames
    student: tuple[Prefix, ...]
    library: str
    teacher: tuple[Prefix, ...] = ()
    leftovers: Mapping[str, str] = field(default_factory=dict)
    varies: bool = False


TRANSFORMERS = LayerNames(
    stem="embedder.embedder.convolution",
    stem_norm="embedder.embedder.normalization",
    conv="encoder.stages.{stage}.layers.{block}.layer.{conv}.convolution",
    norm="encoder.stages.{stage}.layers.{block}.layer.{conv}.normalization",
    shortcut="encoder.stages.{stage}.layers.{block}.shortcut.convolution",
    shortcut_norm="encoder.stages.{stage}.layers.{block}.shortcut.normalization",
    first_stage=0,
    first_conv=0,
)
TORCHVISION = LayerNames(
    stem="conv1",
    stem_norm="bn1",
    conv="layer{stage}.{block}.conv{conv}",
    norm="layer{stage}.{block}.bn{conv}",
    shortcut="layer{stage}.{block}.downsample.0",
    shortcut_norm="layer{stage}.{block}.downsample.1",
    first_stage=1,
)
DETECTRON2 = LayerNames(
    stem="stem.conv1",
    stem_norm="stem.conv1.norm",
    conv="res{stage}.{block}.conv{conv}",
    norm="res{stage}.{block}.conv{conv}.norm",
    shortcut="res{stage}.{block}.shortcut",
    shortcut_norm="res{stage}.{block}.shortcut.norm",
    first_stage=2,
)

BARE = Prefix("")
C4 = Prefix("backbone.", "roi_heads.")
FPN = Prefix("backbone.bottom_up.")

CLASSIFIER = {r"fc\.(\d\.)?(weight|bias)": "classifier (fc)"}
QUEUE = {r"queue2?(_ptr)?": "queue of negatives"}
DETECTOR = {
    r"proposal_generator\..+": "proposal generator",
    r"roi_heads\.(?!res5\.).+": "region heads",
    r"(backbone\.)?fpn_(lateral|output)\d.+": "feature pyramid",
    r"box_head\..+": "box head",
    r"pixel_(mean|std)": "pixel statistics",
    # The converters of MoCo and torchvision put `stem.` before everything that is in no stage.
    r"(stem\.)?fc\..+": "classifier (fc)",
    r"linear\..+": "classifier (linear)",
}
OPENMMLAB = {
    r"(neck|head|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head)\..+": "neck and heads",
    r"data_preprocessor\..+": "pixel statistics",
    r"encoder_k\.(module\.1\..+|steps)": "projector of the teacher",
    **CLASSIFIER,
    **QUEUE,
}

LAYOUTS: dict[str, Layout] = {
    "torchvision": Layout(TORCHVISION, (BARE,), "torchvision", leftovers=CLASSIFIER),
    "timm": Layout(TORCHVISION, (BARE,), "timm", leftovers=CLASSIFIER),
    "detectron2": Layout(DETECTRON2, (C4, FPN, BARE), "detectron2 (C4)", leftovers=DETECTOR, varies=True),
    "detectron2-fpn": Layout(DETECTRON2, (FPN, C4, BARE), "detectron2 (FPN)", leftovers=DETECTOR, varies=True),
    "mmdet": Layout(TORCHVISION, (Prefix("backbone."), BARE), "mmdet", leftovers=OPENMMLAB, varies=True),
    "mmpretrain": Layout(
        TORCHVISION,
        (Prefix("backbone."), BARE),
        "mmpretrain",
        teacher=(Prefix("encoder_k.module.0."),),
        leftovers=OPENMMLAB,
    ),
    # Versions 1 and 2 say encoder_q and encoder_k, version 3 says base_encoder and momentum_encoder.
    "moco": Layout(
        TORCHVISION,
        (Prefix("encoder_q."), Prefix("base_encoder.")),
        "MoCo",
        teacher=(Prefix("encoder_k."), Prefix("momentum_encoder.")),
        leftovers={
            r"(encoder_[qk]|base_encoder|momentum_encoder)\.fc\..+": "projector (fc)",
            r"predictor\..+": "predictor",
            **QUEUE,
        },
    ),
    "soco": Layout(
        TORCHVISION,
        (Prefix("encoder."),),
        "SoCo",
        teacher=(Prefix("encoder_k."),),
        leftovers={
            r"projector(_k)?\..+": "projector",
            r"predictor\..+": "predictor",
            r"neck(_k)?\..+": "feature pyramid",
            r"head(_k)?\..+": "box head",
            **QUEUE,
        },
    ),
    # A training checkpoint has the student twice, the second time as `backbone`; released files are bare.
    "densecl": Layout(
        TORCHVISION,
        (Prefix("encoder_q.0."), Prefix("backbone."), BARE),
        "DenseCL",
        teacher=(Prefix("encoder_k.0."),),
        leftovers={r"encoder_[qk]\.1\..+": "projectors", r"(neck|head)\..+": "neck and heads", **QUEUE},
    ),
}
# What an export can be written as; the other layouts are those of finished training runs.
LIBRARIES = ("torchvision", "timm", "detectron2", "detectron2-fpn", "mmdet", "mmpretrain")
RELEASES = tuple(name for name in LAYOUTS if name != "detectron2-fpn")
