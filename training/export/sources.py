"""What there is to export: a model of ours, a backbone of transformers, or a checkpoint in another layout."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from modeling_decodepos.configuration_decodepos import DecodePosConfig
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining, DecodePosModel
from training.export.checkpoint_files import check_finite, find_weights, read_checkpoint, sha256, unpack
from training.export.key_layouts import LAYOUTS, TRANSFORMERS
from training.export.pixel_forms import PIXEL_FORMS, adapt_stem
from training.export.renaming import Network, Place, from_layout, looks_like, name_place
from training.export.resnets import NAMED, build_resnet, infer_config
from training.views.normalise import IMAGE_MEAN, IMAGE_STD

StridePlace = Literal["1x1", "3x3"]


@dataclass
class Source:
    """A feature extractor, where its weights come from, and what a reader should know about how they got here."""

    extractor: DecodePosModel
    origin: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def load_source(name: str, network: Network) -> Source:
    """The student or the teacher of a model of ours, or any backbone of transformers, by folder or Hub id."""
    path = Path(name)
    if path.is_file():
        raise ValueError(f"{name} is a file. {_guess_layout(path)}")
    try:
        config: Any = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        hint = _guess_layout(find_weights(path)) if path.is_dir() else "Expected a folder or a reachable Hub id."
        raise ValueError(f"{name} has no configuration ({str(error).splitlines()[0]}). {hint}") from error
    if isinstance(config, DecodePosConfig):
        extractor = _load_ours(name, network)
    elif network == "teacher":
        raise ValueError(f"{name} is a {config.model_type} model, which has no teacher. Leave out --network teacher.")
    else:
        extractor = DecodePosModel.from_backbone(name)
    check_finite(extractor.state_dict(), name)
    # Where a folder lay on this machine is nobody's business.
    origin = {"model": path.resolve().name if path.exists() else name, "network": network}
    return Source(extractor.eval(), origin)


def load_foreign(
    path: Path, layout: str, network: Network, stride_in: StridePlace | None, pixels: str | None
) -> Source:
    """The network of a checkpoint in another layout.

    Args:
        path: The file, or a folder with one file of weights.
        layout: A name of `LAYOUTS`.
        network: Which network, where the file holds two.
        stride_in: In which convolution of a bottleneck the stride is. Most layouts know; detectron2's and mmdet's
            files come in both kinds, and one that is read wrong still loads, with worse features.
        pixels: The form of pixels it was trained on, a name of `PIXEL_FORMS`; likewise.
    """
    file = find_weights(path)
    if layout == "timm" and (file.parent / "config.json").is_file():
        _check_timm(file.parent / "config.json")
    unpacked = unpack(read_checkpoint(file), network, file)
    renamed = from_layout(unpacked.weights, layout, "student" if unpacked.is_average else network)
    check_finite(renamed.weights, str(file))
    is_bottleneck = infer_config(renamed.weights, stride_in_1x1=False).layer_type == "bottleneck"
    stride_in, pixels = _check_conventions(layout, is_bottleneck, stride_in, pixels)
    stem = name_place(Place("stem", "weight"), TRANSFORMERS)
    renamed.weights[stem] = adapt_stem(renamed.weights[stem], PIXEL_FORMS[pixels])
    model, counters = build_resnet(renamed.weights, stride_in_1x1=stride_in == "1x1")
    notes = [f"left out: {what}, {count} tensors" for what, count in sorted(renamed.left_out.items())]
    if unpacked.beside:
        notes.append(f"left out beside the weights: {', '.join(unpacked.beside)}")
    if counters:
        notes.append(f"{counters} num_batches_tracked were missing and are 0; with momentum 0.1 nothing reads them")
    if pixels != "imagenet":
        notes.append(f"the stem was adapted from {pixels} pixels to RGB with the statistics of ImageNet")
    dtypes = {value.dtype for value in renamed.weights.values() if value.is_floating_point()}
    if dtypes != {model.dtype}:
        notes.append(f"stored as {', '.join(sorted(map(str, dtypes)))}; converted to {model.dtype}")
    origin = {"file": file.name, "sha256": sha256(file), "layout": layout, "network": network}
    return Source(
        DecodePosModel.from_backbone(model).eval(), origin | {"stride_in": stride_in, "pixels": pixels}, notes
    )


def _load_ours(name: str, network: Network) -> DecodePosModel:
    """The student or the teacher of a pre-training checkpoint, or the one network of a feature extractor's."""
    prefix = {"student": "decodepos.", "teacher": "teacher.decodepos."}[network]
    loaded: Any = DecodePosForPreTraining.from_pretrained(name, output_loading_info=True)
    model, report = loaded
    missing = sorted(key for key in report["missing_keys"] if key.startswith(prefix))
    if missing and network == "teacher":
        raise ValueError(f"{name} holds no whole teacher: it lacks {missing[0]}. Leave out --network teacher.")
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} weights of its backbone, first {missing[0]}.")
    extractor: DecodePosModel = model.decodepos if network == "student" else model.teacher["decodepos"]
    return extractor


def _check_conventions(
    layout: str, is_bottleneck: bool, stride_in: StridePlace | None, pixels: str | None
) -> tuple[StridePlace, str]:
    """Place of the stride and form of the pixels: as said, or as the layout always has them."""
    if not LAYOUTS[layout].varies:
        if stride_in == "1x1" or pixels not in (None, "imagenet"):
            raise ValueError(
                f"files of the layout {layout!r} have the stride in the 3x3 convolution and take RGB pixels with the "
                "statistics of ImageNet. Leave out --stride_in and --pixels."
            )
        return "3x3", "imagenet"
    if not is_bottleneck and stride_in == "1x1":
        raise ValueError("basic blocks have no 1x1 convolution to put the stride in. Leave out --stride_in.")
    if pixels is None or (is_bottleneck and stride_in is None):
        raise ValueError(
            f"weights of the layout {layout!r} come in several kinds, and no tensor tells which. Say it as its config "
            "does:\n"
            "  --stride_in 3x3 (STRIDE_IN_1X1: False; style='pytorch') or 1x1 (STRIDE_IN_1X1: True, detectron2's "
            "default; style='caffe')\n"
            + "\n".join(
                f"  --pixels {name} ({form.channels}, mean {list(form.mean)}, std {list(form.std)})"
                for name, form in PIXEL_FORMS.items()
            )
        )
    return stride_in or "3x3", pixels


def _check_timm(config_file: Path) -> None:
    """What timm's own description says of the network must be what transformers can build."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    architecture, pretrained = config.get("architecture"), config.get("pretrained_cfg", {})
    if architecture not in NAMED:
        raise ValueError(
            f"{config_file}: architecture {architecture!r} is not one of {', '.join(NAMED)}; variants such as blurred "
            "or wide ones may have the same keys and compute something else."
        )
    for key, ours in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)):
        theirs = tuple(pretrained.get(key, ours))
        if theirs != ours:
            raise ValueError(
                f"{config_file}: this network takes pixels with {key} {list(theirs)}, ours have {list(ours)}."
            )


def _guess_layout(file: Path) -> str:
    """Which --from a file of weights asks for."""
    names = looks_like(unpack(read_checkpoint(file), "student", file).weights)
    if not names:
        return "Its keys are of no layout known here (see docs/export.md)."
    return f"Its keys look like {' or '.join(names)}: add --from {names[0]}."
