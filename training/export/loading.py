"""What there is to export: a model of ours, a backbone of transformers, or a checkpoint of another library.

Other people's checkpoints are opened without running what is in them, and unpacked to one network's tensors.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dataset_scripts.files import file_sha256
from modeling_decodepos.configuration_decodepos import DecodePosConfig
from modeling_decodepos.imagenet import IMAGE_MEAN, IMAGE_STD
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining, DecodePosModel
from modeling_decodepos.stored_models import load_whole, read_config, unusable_if_it_fails
from training.export.layouts import PIXEL_FORMS, STEM, from_layout, suggest_layout
from training.export.resnets import NAMED, adapt_stem, build_resnet, infer_config

Network = Literal["student", "teacher"]
StridePlace = Literal["1x1", "3x3"]

WEIGHT_FILES = ("*.safetensors", "*.pth", "*.pt", "*.pth.tar", "*.bin")
# Under which key a training script puts its network, and under which an average of it.
WRAPPERS = ("state_dict", "model", "student")
AVERAGES = ("model_ema", "state_dict_ema", "ema", "teacher")
# What data-parallel training and compilation put before every key.
OUTER_PREFIXES = ("module.", "_orig_mod.")


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
        config = read_config(name)
    except (OSError, ValueError) as error:
        hint = _hint_of(path) if path.is_dir() else "Expected a folder or a reachable Hub id."
        raise ValueError(f"{name} has no configuration ({_first_line(error)}). {hint}") from error
    if isinstance(config, DecodePosConfig):
        extractor = _load_ours(name, network)
    elif network == "teacher":
        raise ValueError(f"{name} is a {config.model_type} model, which has no teacher. Leave out --network teacher.")
    else:
        extractor = DecodePosModel.from_backbone(name)
    check_finite(extractor.state_dict(), name)
    # The name alone: paths of this machine are not published.
    origin = {"model": path.resolve().name if path.exists() else name, "network": network}
    return LoadedNetwork(extractor.eval(), origin, untrained_note(extractor))


def load_pretraining(name: str) -> DecodePosForPreTraining:
    """Student, teacher and heads of a folder or Hub id that holds every weight of them."""
    try:
        config = read_config(name)
        if not isinstance(config, DecodePosConfig):
            raise ValueError(f"its config.json is of a {config.model_type} model")
        model: DecodePosForPreTraining = load_whole(DecodePosForPreTraining, name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} holds no whole pre-training model ({_first_line(error)}). --format pretraining takes what a run "
            "wrote to export/pretraining, or one of its checkpoints; a backbone alone: --format backbone."
        ) from error
    check_finite(model.state_dict(), name)
    return model


def untrained_note(model: nn.Module) -> list[str]:
    """A note where every batch norm of a model has the values that it begins with."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms or not all(_is_initial(norm) for norm in norms):
        return []
    return [
        "all batch norms have the values they begin with (mean 0, variance 1, no scale or shift of their own): this "
        "network was never trained, or the file has lost them"
    ]


def _is_initial(norm: nn.BatchNorm2d) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    begun: list[bool] = [bool((norm.bias == 0).all()), len(norm.weight.unique()) == 1]
    return all(begun) and mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_foreign(
    path: Path, layout: str, network: Network, stride_in: StridePlace | None, pixels: str | None
) -> LoadedNetwork:
    """The network of a checkpoint in a layout of `READABLE`, or the average of it over training (the "teacher").

    The convolution of a bottleneck with the stride, and the form of the pixels, most layouts know; detectron2's files
    come in several kinds, and one that is read wrong still loads, with worse features.
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
    notes = untrained_note(model)
    notes += [f"left out: {count} tensors of {name}" for name, count in sorted(left_out.items())]
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


def find_weights(path: Path) -> Path:
    """The file itself, or the one file of weights in a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} is no file and no folder.")
    found = sorted({file for pattern in WEIGHT_FILES for file in path.glob(pattern)})
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"expected one file of weights in {path}, found {names}. Give the file itself.")
    return found[0]


def read_checkpoint(path: Path) -> Any:
    """What a file holds, read without executing any of it; refused if that is not enough."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # timm and others keep their command line beside the weights; as a holder of plain values it does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write; what they hold is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the parsers make of bytes that are no checkpoint
        lines = str(error).splitlines() or [repr(error)]
        reason = next((line for line in lines if "GLOBAL" in line), lines[0]).strip()
        raise ValueError(
            f"{path} is not a checkpoint, an incomplete download of one, or one that only running code in it could "
            f"open, which is not done here ({reason}). If you trust it, save its tensors alone where it was made: "
            "torch.save({'state_dict': model.state_dict()}, 'model.pth'), or of a plain pickle of arrays\n"
            "  data = pickle.load(open('model.pkl', 'rb'))\n"
            "  torch.save({'model': {k: torch.as_tensor(v) for k, v in data['model'].items()}}, 'model.pth')"
        ) from error


def unpack(loaded: Any, network: Network, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one network from whatever a training script saved, and the names of what lay beside them."""
    names = (*AVERAGES, *WRAPPERS) if network == "teacher" else WRAPPERS
    beside: list[str] = []
    is_average = False
    while isinstance(loaded, Mapping) and not _is_weights(loaded):
        inner = next((name for name in names if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        is_average |= inner in AVERAGES
        beside += [str(key) for key in loaded if key != inner]
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not _is_weights(loaded):
        raise ValueError(
            f"{path} holds no tensors by name: found {_describe(loaded)}; expected them at the top or under "
            f"{', '.join(WRAPPERS)}."
        )
    if network == "teacher" and not is_average:
        raise ValueError(
            f"{path} holds one network and no teacher, which would be under {', '.join(AVERAGES)}. Leave out "
            "--network teacher."
        )
    weights = {str(key): value for key, value in loaded.items()}
    for prefix in OUTER_PREFIXES * 2:  # either may be the outer one
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights, beside


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with NaN or infinity in them."""
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{where} has NaN or infinite values in {len(broken)} tensors, first {broken[0]}. Such weights are not "
            "converted; take an earlier checkpoint."
        )


def _is_weights(loaded: Mapping[Any, Any]) -> bool:
    return bool(loaded) and all(isinstance(value, Tensor) for value in loaded.values())


def _describe(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    return f"{'tensors and ' if len(others) < len(loaded) else ''}the keys {', '.join(others[:6]) or '(none)'}"


def _load_ours(name: str, network: Network) -> DecodePosModel:
    """The student or the teacher of a pre-training checkpoint, or the one network of a feature extractor's."""
    if network == "student":
        student: DecodePosModel = load_whole(DecodePosModel, name)
        return student
    with unusable_if_it_fails(f"the weights of {name}"):
        loaded: Any = DecodePosForPreTraining.from_pretrained(name, output_loading_info=True)
    model, report = loaded
    missing = sorted(key for key in report["missing_keys"] if key.startswith("teacher.decodepos."))
    if missing:
        raise ValueError(f"{name} holds no whole teacher: it lacks {missing[0]}. Leave out --network teacher.")
    teacher: DecodePosModel = model.teacher["decodepos"]
    return teacher


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


def _hint_of(folder: Path) -> str:
    """What a folder without a config is, or why nobody can tell."""
    try:
        return _guess_layout(find_weights(folder))
    except ValueError as error:
        return str(error)


def _guess_layout(file: Path) -> str:
    return suggest_layout(unpack(read_checkpoint(file), "student", file)[0])
