"""Any vision network as a function from pictures to one feature map per stage.

    load_model("facebook/dinov2-small")        or whatever else `networks.load_network` takes, instances among them

Shapes: B pictures, C channels, h w cells, N tokens.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...batch_norms import fit_batch_norms
from ...commands.memory import is_shortage
from ...configuration_decodepos import DecodePosConfig
from ...feature_maps import as_map, describe, patch_size, resizing
from ...imagenet import IMAGE_MEAN, IMAGE_STD
from ...modeling_decodepos import DecodePosModel
from ...region_pooling import Offset
from .cells import Cells, find_cells
from .networks import (
    Network,
    Spec,
    every_stage,
    has_backbone_class,
    keep_signal,
    load_network,
    maps_of,
    padded_convolutions,
    vision_part,
)
from .readings import choose_reading

Maps = Callable[[Tensor], Sequence[Tensor]]

_FITTED_AT_ONCE = 16  # pictures
_CELL = 32  # pixels on a side of a cell of the last map of most CNNs


@dataclass
class FeatureModel:
    """A network as a function from pictures to its feature maps."""

    name: str
    stages: tuple[str, ...]
    maps: Maps  # normalised float pixels in, one (B, C, h, w) map per stage out
    size_px: int  # side that pictures are resized to
    module: nn.Module | None = None
    fresh: Callable[[int], FeatureModel] | None = None  # random weights of a seed; None where nobody can know how
    mean: tuple[float, ...] = IMAGE_MEAN  # of the pixels it was trained on, in [0, 1]
    std: tuple[float, ...] = IMAGE_STD
    note: str = ""  # what a reader should know
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    reading: str = "aligned"  # one of `readings.READINGS`
    cells: tuple[Cells, ...] = ()  # of each map, where the reading needs them
    region_net: Any = None  # a `DecodePosModel` whose region embeddings are the last stage, from the map two before it
    architecture: str = ""  # all that `fresh` depends on but the fields here; empty where nobody can say

    def offset(self, stage: int, feature_map: Tensor) -> Offset:
        """Cells that regions are read further right and down on the map of a stage."""
        if self.cells:
            return self.cells[stage].offset(self.size_px, feature_map)
        return 0.5 if self.reading == "legacy" else 0.0

    def at(self, wanted_px: int) -> FeatureModel:
        """The same network for pictures of another side: the nearest to `wanted_px` that it can take."""
        return dataclasses.replace(self, size_px=fitting_side(self.module, wanted_px))

    def fit_norms(self, pictures: Tensor) -> FeatureModel:
        """The same network, its batch norms as (B, 3, S, S) uint8 pictures want them; no weight changes."""
        if self.module is not None:
            fit_batch_norms(self.module, self, pictures.chunk(-(-len(pictures) // _FITTED_AT_ONCE)))
        return self

    @property
    def is_cnn(self) -> bool:
        """Whether it has convolutions that pad."""
        return bool(padded_convolutions(self.module))

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
            # One sum takes a twentieth of the time of a look at every value, which is left for where it is not finite.
            if not torch.isfinite(part.sum()) and not torch.isfinite(part).all():
                raise ValueError(
                    f"{self.name}: stage {stage} gives NaN or infinite features. Load the model in float32, and check "
                    "that its weights are finite."
                )
        return found


def load_model(
    spec: Spec | FeatureModel,
    *,
    size_px: int = 160,
    layers: int = 4,
    device: str | torch.device = "cpu",
    name: str | None = None,
    reading: str = "own",
    centre_cells: bool = False,
) -> FeatureModel:
    """The model that a specification (or a `FeatureModel`) names, ready to give its maps.

    Pictures get sides of `size_px`, or the nearest that the model can take. Of many equal layers (a ViT's), `layers`
    are read, evenly spaced, with the last. `reading` is one of `readings.READINGS`; `centre_cells` is the former name
    of the reading `known`.
    """
    if layers < 1 or size_px < 8:
        raise ValueError(f"layers is {layers} and size_px {size_px}; expected at least 1 and at least 8.")
    reading = choose_reading(reading, centre_cells)
    if isinstance(spec, FeatureModel):
        model, config = spec, None
    else:
        network = load_network(spec, name=name)
        config = network.call.config if isinstance(network.call, DecodePosModel) else None
        if config is not None:
            network = dataclasses.replace(network, call=every_stage(network.call.backbone))
        wrap = _wrap_transformers if isinstance(network.call, PreTrainedModel) else _wrap_callable
        model = wrap(network, size_px, layers, torch.device(device))
    if config is not None:
        model = _with_region_stage(model, config)
        reading = "known" if reading == "own" and config.centre_cells else reading
    return model if reading == "own" else with_reading(model, reading)


def with_reading(model: FeatureModel, reading: str) -> FeatureModel:
    """The same model, and its random weights, with the cells of maps where a reading has them."""
    cells: tuple[Cells, ...] = ()
    if reading in ("known", "measured"):
        pixels = model.prepare(torch.zeros(1, 3, model.size_px, model.size_px, dtype=torch.uint8))
        try:
            cells = tuple(find_cells(model.maps, reading, pixels, model.prepare))
        except ValueError as error:
            raise ValueError(f"{model.name}: {error}") from error
    fresh = model.fresh
    return dataclasses.replace(
        model, reading=reading, cells=cells, fresh=fresh and (lambda seed: with_reading(fresh(seed), reading))
    )


def _wrap_transformers(network: Network, size_px: int, layers: int, device: torch.device) -> FeatureModel:
    name, model = network.name, network.call
    module = vision_part(network).eval().to(device)
    config = module.config
    read = _read_backbone if has_backbone_class(module) and hasattr(module, "out_features") else _read
    sizes = _sizes(config, size_px)
    problems = []
    for size in sizes:
        try:
            with torch.no_grad():
                found = read(module, torch.zeros(1, 3, size, size, device=device))
        except (ValueError, RuntimeError) as error:
            if is_shortage(error):
                raise
            problems.append(f"{size} px: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        break
    else:
        raise ValueError(
            f"{name}: no feature maps at {' or '.join(map(str, sizes))} pixels. Give a --size that is a multiple of "
            f"the patch size {patch_size(config)}, or the model's own image size. {'; '.join(problems)}"
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
            other = keep_signal(builder(copy.deepcopy(model.config)).eval())
        return _wrap_transformers(_renewed(network, other), size_px, layers, device)

    read_as = FeatureModel(name, tuple(kept), maps, size, module, fresh, network.mean, network.std, note, device)
    return dataclasses.replace(read_as, architecture=f"{type(model).__name__} {describe(model.config)}")


def _renewed(network: Network, call: Any) -> Network:
    return dataclasses.replace(network, name=f"{network.name}, random weights", call=call)


def _with_region_stage(model: FeatureModel, config: DecodePosConfig) -> FeatureModel:
    """A checkpoint of ours with one more stage: the region embeddings of a `DecodePosModel`, which it is loaded for.

    A ResNet's last stage then runs on regions of the map before. The stage's own map is the last stage on that map at
    twice its size: a cell per cell of it, made as regions are.
    """
    if not config.splits_backbone:
        return model
    net: Any = DecodePosModel(copy.deepcopy(config)).eval()
    net.backbone = model.module  # not a second one: what is done to the model's layers is done to this stage as well
    own_maps, own_fresh = model.maps, model.fresh

    def maps(pixels: Tensor) -> list[Tensor]:
        found = own_maps(pixels)
        finer = F.interpolate(found[-2], scale_factor=2, mode="bilinear", align_corners=False)
        return [*found, net.apply_region_stage(finer)]

    return dataclasses.replace(
        model,
        stages=(*model.stages, "regions"),
        maps=maps,
        region_net=net,
        fresh=own_fresh and (lambda seed: _with_region_stage(own_fresh(seed), config)),
        architecture=f"{model.architecture} {describe(config)}",
    )


def _read_backbone(module: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Maps of a backbone class by stage; the stem is no stage."""
    output = module(pixels)
    names = list(module.out_features)
    kept = {k: v for k, v in zip(names, output.feature_maps, strict=True) if k != "stem" or len(names) == 1}
    return {name: as_map(part, pixels, module.config) for name, part in kept.items()}


def _read(module: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Maps of any vision model from its hidden states, the last one normalised as the model gives it out."""
    output = module(pixels, output_hidden_states=True, **resizing(module))
    states = getattr(output, "reshaped_hidden_states", None) or getattr(output, "hidden_states", None)
    if not states:
        raise ValueError(
            f"a {type(module).__name__} gives no feature maps: it returns neither feature_maps nor hidden_states."
        )
    maps = {f"layer{n}": as_map(state, pixels, module.config) for n, state in enumerate(states[1:], start=1)}
    last = getattr(output, "last_hidden_state", None)
    if last is not None and last.shape == states[-1].shape:
        maps[list(maps)[-1]] = as_map(last, pixels, module.config)
    elif last is not None and last.ndim == 4:  # of a MobileNetV2, one more layer than its hidden states
        maps["last"] = last
    return maps


def _spaced(names: list[str], layers: int) -> list[str]:
    """All of a few stages; of many equal layers, `layers` evenly spaced ones with the last."""
    if len(names) <= max(layers, 4):
        return names
    return [names[(k + 1) * len(names) // layers - 1] for k in range(layers)]


def _sizes(config: Any, wanted: int) -> list[int]:
    """Sides to try: the wanted one rounded to whole patches, then the one the model was built for."""
    patch = patch_size(config)
    own = getattr(config, "image_size", None)
    own = max(own) if isinstance(own, list | tuple) else own
    rounded = max(patch, round(wanted / patch) * patch)
    if getattr(config, "window_size", None) and hasattr(config, "depths"):
        # A Swin whose last map is smaller than its window resizes the window, and its weights no longer fit.
        unit = patch * 2 ** (len(config.depths) - 1)
        rounded = max(rounded, unit * config.window_size)
    return list(dict.fromkeys(size for size in (rounded, own) if size))


def fitting_side(module: nn.Module | None, wanted: int) -> int:
    """The side of pictures nearest to `wanted` that gives a network whole cells."""
    config = getattr(module, "config", None)
    if patch_size(config) > 1:
        return _sizes(config, wanted)[0]
    return max(_CELL, round(wanted / _CELL) * _CELL)


def _wrap_callable(network: Network, size_px: int, layers: int, device: torch.device) -> FeatureModel:
    name, call = network.name, network.call
    module = call if isinstance(call, nn.Module) else None
    if module is not None:
        module.eval().to(device)

    maps = maps_of(call, name)
    with torch.no_grad():
        found = maps(torch.zeros(1, 3, size_px, size_px, device=device))
    stages = tuple(f"map{k + 1}" for k in range(len(found))) if len(found) > 1 else ("map",)

    def fresh(seed: int) -> FeatureModel:
        return _wrap_callable(_renewed(network, _reset(module, seed)), size_px, layers, device)

    known = fresh if _can_reset(module) else None
    return FeatureModel(name, stages, maps, size_px, module, known, network.mean, network.std, device=device)


def _can_reset(module: nn.Module | None) -> bool:
    """Whether every layer with weights of its own knows how to draw them."""
    layers = [] if module is None else list(module.modules())
    own = [layer for layer in layers if any(True for _ in layer.parameters(recurse=False))]
    return bool(own) and all(hasattr(layer, "reset_parameters") for layer in own)


def _reset(module: Any, seed: int) -> nn.Module:
    """A copy with fresh weights."""
    other: nn.Module = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        resets: list[Any] = [layer for layer in other.modules() if hasattr(layer, "reset_parameters")]
        for layer in resets:
            layer.reset_parameters()
    return other
