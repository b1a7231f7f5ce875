"""Any vision network by its name: the one way in, for the diagnosis and for evaluation.

    facebook/dinov2-small      a Hub id, or a folder, of any backbone or vision model in transformers; ours among them
    random:FOLDER_OR_ID        the same architecture with fresh weights
    random:resnet18            fresh weights of an architecture of `backbones.BACKBONES`; no download
    random:resnet              fresh weights of what transformers builds for a model type; no download
    timm:resnet50              where timm can be imported
    package.module:function    anything callable: (B, 3, H, W) to (B, C, h, w), or a list of such maps

An instance (a model, any other module, any callable) is taken as it is.

Shapes: B pictures, C channels, h w cells, N tokens.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from ...backbones import BACKBONES
from ...batch_norms import fit_batch_norms
from ...commands.memory import is_shortage
from ...configuration_decodepos import DecodePosConfig
from ...data.scenes import render_scene, sample_scene
from ...feature_maps import patch_size
from ...imagenet import IMAGE_MEAN, IMAGE_STD, pixel_statistics
from ...modeling_decodepos import DecodePosModel
from ...stored_models import load_whole, read_config, refuse_incomplete

RANDOM = "random:"

_FADED = 1e-6  # deviation of a last map below which nothing but rounding is left of pictures

Spec = str | nn.Module | Callable[[Tensor], Any]


@dataclass
class Network:
    """What a specification names, and the mean and deviation of the pixels it was trained on."""

    name: str
    call: Any  # a `DecodePosModel`, another transformers model, any other module, or any other callable
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD


def is_trained(spec: Any) -> bool:
    """Whether weights may know something: those of `random:` have seen no picture."""
    return not (isinstance(spec, str) and spec.startswith(RANDOM))


def load_network(spec: Spec, *, seed: int = 0, name: str | None = None) -> Network:
    """The network of a specification (see the head of this module); `seed` is that of fresh weights."""
    if not isinstance(spec, str):
        call = _own_class(spec)
        return Network(name or str(getattr(spec, "__name__", type(spec).__name__)), call, *_instance_statistics(spec))
    name = name or short_name(spec)
    prefix, _, rest = spec.partition(":")
    if not is_trained(spec):
        known = _known_config(rest)
        return Network(name, build_random(known or load_config(rest), seed), *pixel_statistics("" if known else rest))
    if Path(spec).exists():
        return Network(name, _load_weights(spec), *pixel_statistics(spec))
    if spec in BACKBONES:
        raise ValueError(f"model {spec!r} names an architecture, not weights; say {RANDOM}{spec} for fresh ones.")
    if prefix == "timm":
        call = _load_timm(rest)
        return Network(name, call, *_instance_statistics(call))
    if rest:
        return Network(name, _import(prefix, rest))
    return Network(name, _load_weights(spec), *pixel_statistics(spec))


def _own_class(instance: Any) -> Any:
    """An instance; of a pre-training model of ours, the student; of remote code's copy of our classes, one of ours."""
    if getattr(getattr(instance, "config", None), "model_type", None) != DecodePosConfig.model_type:
        return instance
    student = getattr(instance, "decodepos", instance)
    if isinstance(student, DecodePosModel):
        return student
    ours = DecodePosModel(DecodePosConfig.from_dict(student.config.to_dict()))
    ours.load_state_dict(student.state_dict())
    return ours.eval()


def vision_part(network: Network) -> Any:
    """The transformers model that takes pictures: of a model of pictures and text, a part."""
    module: Any = getattr(network.call, "vision_model", network.call)
    if getattr(module, "main_input_name", "pixel_values") != "pixel_values":
        raise ValueError(
            f"{network.name} gives no feature maps: a {type(module).__name__} takes {module.main_input_name}, not "
            "pixel_values. Expected a vision backbone."
        )
    return module


def has_backbone_class(model: Any) -> bool:
    """Whether transformers has a class that gives the feature maps of such a model."""
    return type(getattr(model, "config", None)) in MODEL_FOR_BACKBONE_MAPPING


def every_stage(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model as its backbone class, which gives the map of every stage; in evaluation mode.

    Where transformers has no such class, the model itself.
    """
    if not has_backbone_class(model):
        return model.eval()
    config = copy.deepcopy(model.config)
    builder = _backbone_class(config)
    # transformers' own reading, which knows how the keys of a model differ from those of its backbone class.
    found, report = builder.from_pretrained(
        None, config=config, state_dict=model.state_dict(), output_loading_info=True, dtype=model.dtype
    )
    refuse_incomplete(type(model).__name__, found, report)
    return found


def build_random(config: Any, seed: int) -> PreTrainedModel:
    """A network with fresh weights; a backbone with every stage among its maps, where there is a backbone class."""
    config = copy.deepcopy(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, DecodePosConfig):
            # Residual branches that start at zero would leave a network of a few layers: no control for a deep one.
            config.zero_init_residual = False
            return DecodePosModel(config).eval()
        builder = _backbone_class(config)
        return keep_signal((builder.from_config(config) if builder is AutoModel else builder(config)).eval())


@torch.no_grad()
def keep_signal(model: PreTrainedModel) -> PreTrainedModel:
    """A network with fresh weights; where nothing would be left of a picture, its layers are drawn anew.

    transformers draws all of a MobileNetV2's weights with a deviation of 0.02, and an EfficientNet's norms as well:
    1e-21 of a picture is left. By He's rule (arXiv 1502.01852) what passes keeps its size; the norms see some scenes.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not norms or patch_size(model.config) > 1:
        return model
    scenes = np.stack([render_scene(sample_scene(0, index, 64)).pixels for index in range(8)])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    pixels = (torch.from_numpy(scenes).permute(0, 3, 1, 2).float() / 255 - mean) / std
    output = model(pixels)
    last = getattr(output, "last_hidden_state", None)
    if float((output.feature_maps[-1] if last is None else last).std()) < _FADED:
        for layer in (layer for layer in model.modules() if isinstance(layer, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for norm in norms:
            norm.reset_parameters()
        fit_batch_norms(model, model, [pixels])
    return model


def load_config(name: str) -> Any:
    """The config of a folder or a Hub id."""
    try:
        return read_config(name)
    except (OSError, ValueError) as error:
        where = "has no readable config.json" if Path(name).is_dir() else "is neither a folder nor a model on the Hub"
        raise FileNotFoundError(
            f"model {name!r} {where}, as far as can be seen from here (offline, only models already downloaded can be "
            "had by id). Give a folder with config.json and weights, a Hub id, module:function, or one of "
            f"{', '.join(RANDOM + known for known in BACKBONES)}. First line of the cause: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def padded_convolutions(module: nn.Module | None) -> list[nn.Conv2d]:
    """The convolutions that pad their input by themselves."""
    if module is None:
        return []
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    return [layer for layer in layers if not isinstance(layer.padding, str) and max(layer.padding) > 0]


# --------------------------------------------------------------------------------------------------------------- maps


def maps_of(call: Any, name: str) -> Callable[[Tensor], list[Tensor]]:
    """Anything callable as a function to maps (B, C, h, w), as many and as wide each time; ValueError otherwise."""
    widths: list[int] = []

    def maps(pixels: Tensor) -> list[Tensor]:
        try:
            output = call(pixels)
        except Exception as error:
            if is_shortage(error):
                raise
            size = f"{pixels.shape[-1]} x {pixels.shape[-2]}"
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name} cannot take pictures of {size} pixels: {reason}") from error
        found = [output] if isinstance(output, Tensor) or not isinstance(output, list | tuple) else list(output)
        for part in found or [None]:
            if not isinstance(part, Tensor) or part.ndim != 4 or len(part) != len(pixels):
                shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                shape = shape if found else "an empty list"
                raise ValueError(
                    f"{name} gives no feature maps: it returned {shape} for {len(pixels)} pictures, expected "
                    "(B, C, h, w) or a list."
                )
        now = [part.shape[1] for part in found]
        widths[:] = widths or now
        if now != widths:
            raise ValueError(f"{name} gives maps of {now} channels, and before of {widths}; expected the same always.")
        return found

    return maps


def usable_device(name: str) -> torch.device:
    """A device by name, once it has given back a number; ValueError where it cannot."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = "cpu or cuda" if torch.cuda.is_available() else "cpu: PyTorch sees no GPU"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}). Expected {known}.") from error
    return device


# ------------------------------------------------------------------------------------------------------------- inside


def _known_config(name: str) -> Any:
    """The config of a short name or a model type (resnet is a ResNet-50); None for other names."""
    if Path(name).exists():
        return None
    if name in BACKBONES:
        return BACKBONES[name]()
    if name not in CONFIG_MAPPING:
        return None
    # As from a file: some defaults are tuples, which their own networks cannot take.
    return CONFIG_MAPPING[name].from_dict(json.loads(json.dumps(CONFIG_MAPPING[name]().to_dict())))


def _load_weights(name: str) -> PreTrainedModel:
    config = load_config(name)
    kind: Any = DecodePosModel if isinstance(config, DecodePosConfig) else _backbone_class(config)
    try:
        return load_whole(kind, name, config=config).eval()
    except OSError as error:
        raise FileNotFoundError(
            f"model {name!r} has a config.json but no weights that can be read ({str(error).splitlines()[0]}). For "
            f"the architecture with random weights, say {RANDOM}{name}."
        ) from error


def _backbone_class(config: Any) -> Any:
    """The concrete backbone class, told to return every stage; `AutoBackbone` cannot read a local folder."""
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        return AutoModel
    config.out_features = list(config.stage_names)  # with the norms of every map
    return MODEL_FOR_BACKBONE_MAPPING[type(config)]


def _load_timm(name: str) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"timm:{name} needs timm and a torchvision that fits torch: pip install timm") from error
    module: nn.Module = timm.create_model(name, pretrained=True, features_only=True)
    return module


def _import(module: str, attribute: str) -> Any:
    if str(Path.cwd()) not in sys.path:  # an installed script has its own folder there, not the caller's
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{module}:{attribute}: cannot import {attribute!r} from {module!r} ({error}).") from error
    if not callable(found):
        raise ValueError(f"{module}:{attribute} is a {type(found).__name__}; expected something callable.")
    return found


def _instance_statistics(instance: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of a model of ours, of where a transformers model was loaded from, or of what timm says of its weights."""
    config = getattr(instance, "config", None)
    if isinstance(config, DecodePosConfig):
        return tuple(config.image_mean), tuple(config.image_std)
    known = getattr(instance, "pretrained_cfg", None)
    if isinstance(known, dict) and known.get("mean") and known.get("std"):
        return tuple(known["mean"]), tuple(known["std"])
    source = instance.name_or_path if isinstance(instance, PreTrainedModel) else ""
    try:
        return pixel_statistics(source or "")
    except OSError:  # the folder is there no longer
        return IMAGE_MEAN, IMAGE_STD


def short_name(spec: str) -> str:
    """The last parts of a path that still say what it is."""
    path = Path(spec.removeprefix(RANDOM))
    if not path.is_dir():
        return spec
    parts = [part for part in path.resolve().parts if part not in ("export", "backbone", "pretraining", "/")]
    return ("random " if spec.startswith(RANDOM) else "") + (parts[-1] if parts else str(path))
