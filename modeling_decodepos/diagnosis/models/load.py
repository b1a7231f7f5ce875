"""Any vision network as a function from pictures to one feature map per stage.

    load_model("facebook/dinov2-small")        a Hub id, or a folder, of any backbone or vision model in transformers
    load_model("random:FOLDER_OR_ID")          the same architecture with fresh weights
    load_model("random:resnet")                fresh weights of what transformers builds for a model type; no download
    load_model("timm:resnet50")                where timm can be imported
    load_model("package.module:function")      anything callable: (B, 3, H, W) to (B, C, h, w), or a list of such maps

Shapes: B pictures, C channels, h w cells, N tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING
from transformers.utils import cached_file

from ...configuration_decodepos import DecodePosConfig
from ...imagenet import IMAGE_MEAN, IMAGE_STD
from ...modeling_decodepos import DecodePosModel, is_map_norm
from ...region_pooling import cell_offset
from ...regions import check_regions

Maps = Callable[[Tensor], Sequence[Tensor]]


@dataclass
class FeatureModel:
    """A network whose feature maps can be asked for.

    Attributes:
        name: For people.
        stages: Name of each map.
        maps: Normalised float pixels in, one (B, C, h, w) map per stage out.
        size_px: Side that pictures are resized to.
        module: The network, if it is one.
        fresh: Gives the same architecture with random weights of a seed; None where nobody can know how.
        mean: Of the pixels the network was trained on, in [0, 1].
        std: Their deviation.
        note: What a reader should know.
        centre_cells: Whether regions are read where the cells of padded, strided convolutions have their centres.
        embed: Region features of the last stage from all maps and ragged boxes, where they are not the mean of a box.
    """

    name: str
    stages: tuple[str, ...]
    maps: Maps
    size_px: int
    module: nn.Module | None = None
    fresh: Callable[[int], FeatureModel] | None = None
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD
    note: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    centre_cells: bool = False
    embed: Callable[[Sequence[Tensor], list[Tensor]], Tensor] | None = None

    def offset(self, feature_map: Tensor) -> float:
        """Cells that regions are read further down and right on this map."""
        return cell_offset(self.size_px / feature_map.shape[-1]) if self.centre_cells else 0.0

    @property
    def is_cnn(self) -> bool:
        """Whether it has convolutions that pad."""
        return any(True for _ in padded_convolutions(self.module))

    def prepare(self, pixels: Tensor) -> Tensor:
        """Normalised float pixels (B, 3, s, s), on the model's device, from (B, 3, S, S) uint8."""
        images = pixels.to(self.device).float() / 255
        if images.shape[-1] != self.size_px:
            size = (self.size_px, self.size_px)
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """One float (B, C, h, w) map per stage, from uint8 pictures."""
        found = [part.float() for part in self.maps(self.prepare(pixels))]
        for stage, part in zip(self.stages, found, strict=True):
            if not torch.isfinite(part).all():
                raise ValueError(
                    f"{self.name}: stage {stage} gives NaN or infinite features. Load the model in float32, and check "
                    "that its weights are finite."
                )
        return found


def padded_convolutions(module: nn.Module | None) -> list[nn.Conv2d]:
    """The convolutions that pad their input by themselves."""
    if module is None:
        return []
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    return [layer for layer in layers if not isinstance(layer.padding, str) and max(layer.padding) > 0]


def load_model(
    spec: str | nn.Module | Callable[[Tensor], Tensor] | FeatureModel,
    *,
    size_px: int = 160,
    layers: int = 4,
    device: str | torch.device = "cpu",
    name: str | None = None,
    centre_cells: bool = False,
) -> FeatureModel:
    """The model that a specification names, ready to be asked.

    Args:
        spec: See the head of this module; or a transformers model, any other module or callable, or a `FeatureModel`.
        size_px: Side that pictures should have; rounded to what the model can take.
        layers: How many layers of a network with many equal ones (a ViT) are read, evenly spaced, with the last.
        device: Where the model runs.
        name: What to call it.
        centre_cells: Read regions where the cells of padded, strided convolutions have their centres, as a checkpoint
            of ours that was trained so is read in any case.
    """
    model = _load(spec, size_px=size_px, layers=layers, device=device, name=name, centre_cells=centre_cells)
    if centre_cells and not any(max(layer.stride) > 1 for layer in padded_convolutions(model.module)):
        raise ValueError(
            f"{model.name}: centre_cells is for networks whose strided convolutions pad, such as a ResNet; the cells "
            "of this one are patches, or nobody can know. Leave it out."
        )
    model.centre_cells |= centre_cells
    return model


def _load(
    spec: str | nn.Module | Callable[[Tensor], Tensor] | FeatureModel,
    *,
    size_px: int,
    layers: int,
    device: str | torch.device,
    name: str | None,
    centre_cells: bool,
) -> FeatureModel:
    if layers < 1 or size_px < 8:
        raise ValueError(f"layers is {layers} and size_px {size_px}; expected at least 1 and at least 8.")
    if isinstance(spec, FeatureModel):
        return spec
    if isinstance(spec, PreTrainedModel):
        return _wrap_transformers(spec, name or type(spec).__name__, None, size_px, layers, torch.device(device))
    if not isinstance(spec, str):
        return _wrap_callable(spec, name or _callable_name(spec), size_px, torch.device(device))
    name = name or _short_name(spec)
    if spec.startswith("timm:"):
        return _wrap_callable(_load_timm(spec.removeprefix("timm:")), name, size_px, torch.device(device))
    if spec.startswith("random:"):
        config = _random_config(spec.removeprefix("random:"))
        wrapped = _wrap_transformers(_build_random(config, 0), name, None, size_px, layers, torch.device(device))
        return _with_region_stage(wrapped, config, centre_cells)
    if ":" in spec and not Path(spec).exists():
        return _wrap_callable(_import(spec), name, size_px, torch.device(device))
    wrapped = _wrap_transformers(_load_weights(spec), name, spec, size_px, layers, torch.device(device))
    return _with_region_stage(wrapped, _load_config(spec), centre_cells)


# ------------------------------------------------------------------------------------------------------- transformers


def _random_config(name: str) -> Any:
    """The config of a folder, a Hub id, or a model type with transformers' own defaults (resnet is a ResNet-50)."""
    if name in CONFIG_MAPPING and not Path(name).exists():
        return CONFIG_MAPPING[name]()
    return _load_config(name)


def _load_config(name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        where = "has no readable config.json" if Path(name).is_dir() else "is neither a folder nor a model on the Hub"
        raise FileNotFoundError(
            f"model {name!r} {where}, as far as can be seen from here (offline, only models already downloaded can be "
            f"had by id). Give a folder with config.json and weights, a Hub id, or module:function. First line of the "
            f"cause: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def _load_weights(name: str) -> PreTrainedModel:
    config = _load_config(name)
    if isinstance(config, DecodePosConfig):
        trained = DecodePosModel.from_pretrained(name).backbone
        whole = _build_random(config.backbone_config, 0)  # with every stage among its maps
        lacking, unknown = whole.load_state_dict(trained.state_dict(), strict=False)
        _refuse_missing(name, whole, [*lacking, *unknown])
        return whole
    classes: Any = _backbone_class(config)
    try:
        model, report = classes.from_pretrained(name, config=config, output_loading_info=True)
    except OSError as error:
        raise FileNotFoundError(
            f"model {name!r} has a config.json but no weights that can be read ({str(error).splitlines()[0]}). For "
            f"the architecture with random weights, ask for random:{name}."
        ) from error
    _refuse_missing(name, model, report["missing_keys"])
    return model


def _refuse_missing(name: str, model: PreTrainedModel, keys: Iterable[str]) -> None:
    # Norms of maps exist in backbone classes only, and poolers are not asked.
    missing = sorted(key for key in keys if not is_map_norm(key) and "pooler" not in key)
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} weights of its {type(model).__name__}, first {missing[0]}.")


def _backbone_class(config: Any) -> Any:
    """The concrete backbone class, told to return every stage; `AutoBackbone` cannot read a local folder."""
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        return AutoModel
    config.out_features = list(config.stage_names)  # with the norms of every map
    return MODEL_FOR_BACKBONE_MAPPING[type(config)]


def _build_random(config: Any, seed: int) -> PreTrainedModel:
    config = copy.deepcopy(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, DecodePosConfig):
            config = copy.deepcopy(config.backbone_config)
        builder: Any = _backbone_class(config)
        return builder.from_config(config) if builder is AutoModel else builder(config)


def _wrap_transformers(
    model: PreTrainedModel, name: str, source: str | None, size_px: int, layers: int, device: torch.device
) -> FeatureModel:
    module: Any = getattr(model, "vision_model", model)  # of a model of pictures and text, the eye
    module = module.eval().to(device)
    config = module.config
    if getattr(module, "main_input_name", "pixel_values") != "pixel_values":
        raise ValueError(
            f"{name} gives no feature maps: a {type(module).__name__} takes {module.main_input_name}, not "
            "pixel_values. Expected a vision backbone."
        )
    read = _read_backbone if type(config) in MODEL_FOR_BACKBONE_MAPPING and hasattr(module, "out_features") else _read
    mean, std = _pixel_statistics(source)
    sizes = _sizes(config, size_px)
    problems = []
    for size in sizes:
        try:
            with torch.no_grad():
                found = read(module, torch.zeros(1, 3, size, size, device=device))
        except (ValueError, RuntimeError) as error:
            problems.append(f"{size} px: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        break
    else:
        raise ValueError(
            f"{name}: no feature maps at {' or '.join(map(str, sizes))} pixels. Give a --size that is a multiple of "
            f"the patch size {_patch(config)}, or the model's own image size. {'; '.join(problems)}"
        )
    kept = _spaced(list(found), layers)
    note = "" if size == size_px else f"pictures are resized from {size_px} to {size} pixels, which this model takes"

    def maps(pixels: Tensor) -> list[Tensor]:
        every = read(module, pixels)
        return [every[key] for key in kept]

    def fresh(seed: int) -> FeatureModel:
        # The same class with the same output stages, so that stages can be compared one by one.
        builder: Any = type(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            other = builder(copy.deepcopy(model.config))
        return _wrap_transformers(other, f"{name}, random weights", None, size_px, layers, device)

    return FeatureModel(name, tuple(kept), maps, size, module, fresh, mean, std, note, device)


def _with_region_stage(model: FeatureModel, config: Any, centre_cells: bool) -> FeatureModel:
    """A checkpoint of ours with one more stage: the region embeddings of a `DecodePosModel`, which it is loaded for.

    A ResNet's last stage then runs on regions of the map before. The stage's own map is the last stage on that map at
    twice its size: a cell per cell of it, made as regions are.
    """
    if not (isinstance(config, DecodePosConfig) and config.splits_backbone):
        return model
    config = copy.deepcopy(config)
    config.centre_cells |= centre_cells
    backbone: Any = model.module
    net = DecodePosModel(config).eval().to(model.device)
    net.backbone.load_state_dict(backbone.state_dict(), strict=False)
    own_maps, own_fresh = model.maps, model.fresh

    def maps(pixels: Tensor) -> list[Tensor]:
        found = own_maps(pixels)
        finer = F.interpolate(found[-2], scale_factor=2, mode="bilinear", align_corners=False)
        return [*found, net.apply_region_stage(finer)]

    def embed(maps: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        regions = check_regions(boxes, len(maps[0]), device=maps[0].device)
        return net.embed_regions(maps[-3], regions, config.region_bins)

    return dataclasses.replace(
        model,
        stages=(*model.stages, "regions"),
        maps=maps,
        embed=embed,
        centre_cells=config.centre_cells,
        fresh=own_fresh and (lambda seed: _with_region_stage(own_fresh(seed), config, centre_cells)),
    )


def _read_backbone(module: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Maps of a backbone class by stage; the stem is no stage."""
    output = module(pixels)
    names = list(module.out_features)
    kept = {k: v for k, v in zip(names, output.feature_maps, strict=True) if k != "stem" or len(names) == 1}
    return {name: _as_map(part, pixels, module.config) for name, part in kept.items()}


def _read(module: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Maps of any vision model from its hidden states, the last one normalised as the model gives it out."""
    parameters = inspect.signature(module.forward).parameters
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
    output = module(pixels, output_hidden_states=True, **options)
    states = getattr(output, "reshaped_hidden_states", None) or getattr(output, "hidden_states", None)
    if not states:
        raise ValueError(
            f"a {type(module).__name__} gives no feature maps: it returns neither feature_maps nor hidden_states."
        )
    states = list(states)
    last = getattr(output, "last_hidden_state", None)
    if last is not None and last.shape == states[-1].shape:
        states[-1] = last
    found = {}
    for number, state in enumerate(states[1:], start=1):
        found[f"layer{number}"] = _as_map(state, pixels, module.config)
    return found


def _as_map(state: Tensor, pixels: Tensor, config: Any) -> Tensor:
    """(B, C, h, w) from such a map, or from tokens (B, N, C) of which the last h * w are the patches'."""
    if state.ndim == 4:
        return state
    if state.ndim == 3:
        patch = _patch(config)
        height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        if 0 <= state.shape[1] - height * width <= 16:
            return state[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(
        f"a hidden state of shape {tuple(state.shape)} is no feature map: expected (B, C, h, w), or (B, N, C) tokens "
        f"with one per patch of {_patch(config)} pixels. Of a masked auto-encoder, which hides patches, load the "
        "encoder as the plain ViT that it is."
    )


def _spaced(names: list[str], layers: int) -> list[str]:
    """All of a few stages; of many equal layers, `layers` evenly spaced ones with the last."""
    if len(names) <= max(layers, 4):
        return names
    return [names[(k + 1) * len(names) // layers - 1] for k in range(layers)]


def _patch(config: Any) -> int:
    patch = getattr(config, "patch_size", 1) or 1
    return patch if isinstance(patch, int) else int(max(patch))


def _sizes(config: Any, wanted: int) -> list[int]:
    """Sides to try: the wanted one rounded to whole patches, then the one the model was built for."""
    patch = _patch(config)
    own = getattr(config, "image_size", None)
    own = own if isinstance(own, int) or own is None else int(max(own))
    rounded = max(patch, round(wanted / patch) * patch)
    if getattr(config, "window_size", None) and hasattr(config, "depths"):
        # A Swin whose last map is smaller than its window resizes the window, and its weights no longer fit.
        unit = patch * 2 ** (len(config.depths) - 1)
        rounded = max(rounded, unit * config.window_size)
    return list(dict.fromkeys(size for size in (rounded, own) if size))


def _pixel_statistics(source: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the model's preprocessor file names, else ImageNet's."""
    if source is None:
        return IMAGE_MEAN, IMAGE_STD
    path = cached_file(
        source,
        "preprocessor_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    settings = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    mean, std = settings.get("image_mean"), settings.get("image_std")
    return (tuple(mean), tuple(std)) if mean and std else (IMAGE_MEAN, IMAGE_STD)


# ------------------------------------------------------------------------------------------------------------- others


def _load_timm(name: str) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"timm:{name} needs timm and a torchvision that fits torch: pip install timm") from error
    module: nn.Module = timm.create_model(name, pretrained=True, features_only=True)
    return module


def _import(spec: str) -> Callable[[Tensor], Tensor]:
    module_name, _, attribute = spec.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{spec}: cannot import {attribute!r} from {module_name!r} ({error}).") from error
    if not callable(found):
        raise ValueError(f"{spec} is a {type(found).__name__}; expected something callable.")
    return found


def _wrap_callable(call: Any, name: str, size_px: int, device: torch.device) -> FeatureModel:
    module = call if isinstance(call, nn.Module) else None
    if module is not None:
        module.eval().to(device)

    def maps(pixels: Tensor) -> list[Tensor]:
        output = call(pixels)
        return [output] if isinstance(output, Tensor) else list(output)

    try:
        with torch.no_grad():
            found = maps(torch.zeros(1, 3, size_px, size_px, device=device))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{name} cannot take pictures of {size_px} x {size_px} pixels: {error}") from error
    for part in found:
        if not isinstance(part, Tensor) or part.ndim != 4 or len(part) != 1:
            shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"{name} gives no feature maps: it returned {shape}, expected (B, C, h, w) or a list.")
    stages = tuple(f"map{k + 1}" for k in range(len(found))) if len(found) > 1 else ("map",)
    fresh = None if module is None else _reset_copy(module, name, size_px, device)
    return FeatureModel(name, stages, maps, size_px, module, fresh, device=device)


def _reset_copy(
    module: nn.Module, name: str, size_px: int, device: torch.device
) -> Callable[[int], FeatureModel] | None:
    """Copies with fresh weights, where every layer with weights of its own knows how to draw them."""
    own = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    if not own or not all(hasattr(layer, "reset_parameters") for layer in own):
        return None

    def fresh(seed: int) -> FeatureModel:
        other = copy.deepcopy(module)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            resets: list[Any] = [layer for layer in other.modules() if hasattr(layer, "reset_parameters")]
            for layer in resets:
                layer.reset_parameters()
        return _wrap_callable(other, f"{name}, random weights", size_px, device)

    return fresh


def _callable_name(call: Any) -> str:
    return getattr(call, "__name__", type(call).__name__)


def _short_name(spec: str) -> str:
    """The last parts of a path that still say what it is."""
    prefix, _, rest = spec.rpartition("random:")
    rest = spec if not prefix and not spec.startswith("random:") else rest
    path = Path(rest)
    if not path.is_dir():
        return spec
    parts = [part for part in path.resolve().parts if part not in ("export", "backbone", "pretraining", "/")]
    return ("random " if spec.startswith("random:") else "") + (parts[-1] if parts else rest)
