"""What there is to export: a model of ours, a backbone of transformers, or a checkpoint of another library."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from dataset_scripts.files import file_sha256
from modeling_decodepos.configuration_decodepos import DecodePosConfig
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining, DecodePosModel
from training.export.checkpoint_files import Network, check_finite, find_weights, read_checkpoint, unpack
from training.export.layouts import STEM, from_layout, suggest_layout
from training.export.pixel_forms import PIXEL_FORMS, adapt_stem
from training.export.resnets import NAMED, build_resnet, infer_config
from training.views.normalise import IMAGE_MEAN, IMAGE_STD

StridePlace = Literal["1x1", "3x3"]


@dataclass
class LoadedNetwork:
    """A feature extractor, where its weights come from, and what a reader should know about how they got here."""

    extractor: DecodePosModel
    origin: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def load_network(name: str, network: Network) -> LoadedNetwork:
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
    # The name alone: paths of this machine are not published.
    origin = {"model": path.resolve().name if path.exists() else name, "network": network}
    return LoadedNetwork(extractor.eval(), origin)


def load_foreign(
    path: Path, layout: str, network: Network, stride_in: StridePlace | None, pixels: str | None
) -> LoadedNetwork:
    """The network of a checkpoint in another layout.

    Args:
        path: The file, or a folder with one file of weights.
        layout: One of `READABLE`.
        network: The network itself, or the average of it over training ("teacher"), if the file holds one.
        stride_in: In which convolution of a bottleneck the stride is. Most layouts know; detectron2's files come in
            both kinds, and one that is read wrong still loads, with worse features.
        pixels: The form of pixels it was trained on, a name of `PIXEL_FORMS`; likewise.
    """
    file = find_weights(path)
    if layout == "timm" and (file.parent / "config.json").is_file():
        _check_timm(file.parent / "config.json")
    stored, beside = unpack(read_checkpoint(file), network, file)
    weights, left_out = from_layout(stored, layout)
    check_finite(weights, str(file))
    is_bottleneck = infer_config(weights, stride_in_1x1=False).layer_type == "bottleneck"
    stride_in, pixels = _check_conventions(layout, is_bottleneck, stride_in, pixels)
    weights[STEM] = adapt_stem(weights[STEM], PIXEL_FORMS[pixels])
    model = build_resnet(weights, stride_in_1x1=stride_in == "1x1")
    notes = [f"left out: {count} tensors of {name}" for name, count in sorted(left_out.items())]
    if beside:
        notes.append(f"left out beside the weights: {', '.join(beside)}")
    if counters := len(model.state_dict()) - len(weights):
        notes.append(f"{counters} num_batches_tracked were missing and are 0; with momentum 0.1 nothing reads them")
    if pixels != "imagenet":
        notes.append(f"the stem was adapted from {pixels} pixels to RGB with the statistics of ImageNet")
    dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
    if dtypes != {model.dtype}:
        notes.append(f"stored as {', '.join(sorted(map(str, dtypes)))}; converted to {model.dtype}")
    origin = {"file": file.name, "sha256": file_sha256(file), "layout": layout, "network": network}
    origin |= {"stride_in": stride_in, "pixels": pixels}
    return LoadedNetwork(DecodePosModel.from_backbone(model).eval(), origin, notes)


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
    if layout != "detectron2":
        if stride_in == "1x1" or pixels not in (None, "imagenet"):
            raise ValueError(
                f"files of the layout {layout!r} have the stride in the 3x3 convolution and take RGB pixels with the "
                "statistics of ImageNet. Leave out --stride_in and --pixels."
            )
        return "3x3", "imagenet"
    if not is_bottleneck and stride_in == "1x1":
        raise ValueError("basic blocks have no 1x1 convolution to put the stride in. Leave out --stride_in.")
    if pixels is None or (is_bottleneck and stride_in is None):
        forms = [
            f"--pixels {name} ({form.channels}, mean {list(form.mean)}, std {list(form.std)})"
            for name, form in PIXEL_FORMS.items()
        ]
        raise ValueError(
            f"weights of the layout {layout!r} come in several kinds, and no tensor tells which. Say it as its config "
            "does: --stride_in 3x3 (STRIDE_IN_1X1: False) or 1x1 (STRIDE_IN_1X1: True, detectron2's default), and\n  "
            + "\n  ".join(forms)
        )
    return stride_in or "3x3", pixels


def _check_timm(config_file: Path) -> None:
    """What timm's own description says of the network must be what transformers can build."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("architecture") not in NAMED:
        raise ValueError(
            f"{config_file}: architecture {config.get('architecture')!r} is not one of {', '.join(NAMED)}; variants "
            "such as blurred or wide ones may have the same keys and compute something else."
        )
    for key, ours in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)):
        theirs = config.get("pretrained_cfg", {}).get(key, ours)
        if tuple(theirs) != ours:
            raise ValueError(f"{config_file}: this network takes pixels with {key} {theirs}, ours have {list(ours)}.")


def _guess_layout(file: Path) -> str:
    return suggest_layout(unpack(read_checkpoint(file), "student", file)[0])
