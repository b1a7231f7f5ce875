"""Any model as evaluation sees it: region features, a dense map, and the bare backbone to fine-tune.

Models are named as for the diagnosis: see `modeling_decodepos.diagnosis.models.networks`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin

from modeling_decodepos.diagnosis.models.cells import Cells, find_cells
from modeling_decodepos.diagnosis.models.load import FeatureModel, fitting_side
from modeling_decodepos.diagnosis.models.networks import (
    Network,
    Spec,
    every_stage,
    has_backbone_class,
    load_network,
    maps_of,
    vision_part,
)
from modeling_decodepos.feature_maps import last_map
from modeling_decodepos.imagenet import IMAGE_MEAN, IMAGE_STD
from modeling_decodepos.modeling_decodepos import DecodePosModel
from modeling_decodepos.region_pooling import Offset, pool_regions
from modeling_decodepos.regions import check_regions
from training.evaluation.frozen import each_on_a_core, fold_batch_norms
from training.evaluation.settings import STAGES

REGION_BINS = 14
"""Of models without bins of their own."""

_WHOLE = (0.0, 0.0, 1.0, 1.0)

CPU_PICTURES = 8
"""Through a network on a CPU at a time: their maps fit into a core's cache, those of 64 do not."""


@dataclass
class MapModel:
    """A network that regions are pooled from the last map of."""

    feature_map: Callable[[Tensor], Tensor]  # (B, C, h, w) from normalised pixels
    region_bins: int = REGION_BINS
    module: nn.Module | None = None  # that gives the map, where it is one
    # The map of `module`, or of a copy of it, from several threads at a time; None where nobody can know that it may.
    read: Callable[[Any, Tensor], Tensor] | None = None

    def embed_regions(self, feature_map: Tensor, boxes: list[Tensor], offset: Offset) -> Tensor:
        """(N, C) features of the boxes, image by image."""
        pooled = [
            pool_regions(own_map[None], own[None], self.region_bins, offset=offset)[0].mean((2, 3))
            for own_map, own in zip(feature_map, boxes, strict=True)
        ]
        return torch.cat(pooled)

    def folded(self, examples: list[Tensor]) -> MapModel:
        """The same with its batch norms folded, where the network is known to be a function of its pixels."""
        if self.module is None or self.read is None:
            return self
        module = fold_batch_norms(self.module, self.read, examples)
        return replace(self, module=module, feature_map=functools.partial(self.read, module))


@dataclass
class EvaluatedModel:
    """A model, how its pixels are normalised, how its maps are read, and what to call it."""

    name: str
    net: DecodePosModel | MapModel
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD
    device: torch.device | str = "cpu"
    reading: str = "aligned"
    _frozen: DecodePosModel | MapModel | None = field(default=None, init=False, repr=False)
    _cells: dict[tuple[str, int], Cells] = field(default_factory=dict, init=False, repr=False)  # by map, side

    def prepare(self, pixels: Tensor) -> Tensor:
        """Normalised float pixels on the model's device, from (B, 3, S, S) uint8."""
        pixels = pixels.to(self.device).float() / 255
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)

    def fitting_side(self, wanted_px: int) -> int:
        """The side of pictures nearest to `wanted_px` that this network can take."""
        net = self.net.backbone if isinstance(self.net, DecodePosModel) else self.net.module
        return fitting_side(net, wanted_px)

    def frozen(self, pixels: Tensor) -> DecodePosModel | MapModel:
        """The model that features are read from: `net`, on a CPU with batch norms folded where that changes nothing.

        What folds is seen on the first of the pictures that come first, and `backbone` stays as it is.
        """
        if self._frozen is None and len(pixels):
            one = self.prepare(pixels[:1])
            self._frozen = self._fold([one, one.flip(3)]) if self._on_cpu else self.net
        return self._frozen or self.net

    def _fold(self, examples: list[Tensor]) -> DecodePosModel | MapModel:
        if isinstance(self.net, MapModel):
            return self.net.folded(examples)
        whole = [torch.tensor([_WHOLE])]
        return fold_batch_norms(
            self.net, lambda net, example: region_rows(net, net.feature_map(example), whole), examples
        )

    @property
    def _on_cpu(self) -> bool:
        return torch.device(self.device).type == "cpu"

    @torch.no_grad()
    def embed(self, pixels: Tensor, boxes: list[Tensor]) -> Tensor:
        """(N, D) float32 features, on the CPU, of unit boxes on (B, 3, S, S) uint8 images, image by image."""
        net, side = self.frozen(pixels), pixels.shape[-1]
        self.find_reading("regions", net.feature_map, side)

        def embed(part: slice) -> Tensor:
            values, own = self.prepare(pixels[part]), [rows.to(self.device) for rows in boxes[part]]
            if isinstance(net, DecodePosModel):
                net.check_map_covers(values)
            feature_map = net.feature_map(values)
            # A region that is all of the picture is all of the map, wherever its cells lie.
            whole = all(bool((rows == rows.new_tensor(_WHOLE)).all()) for rows in own)
            offset = 0.0 if whole else self.offset("regions", side, feature_map)
            return region_rows(net, feature_map, own, offset).float().cpu()

        return self._checked(self.by_parts(embed, len(pixels)))

    @torch.no_grad()
    def dense(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) float32 map of (B, 3, S, S) uint8 images, on the model's device.

        The last map of the backbone. A ResNet's last stage runs on its stage 3 at twice the resolution, as it does on
        regions in this package: the map then has a cell per 16 pixels, like that of a ViT.
        """
        net = self.frozen(pixels)
        return self._checked(
            self.by_parts(lambda part: _dense_map(net, self.prepare(pixels[part])).float(), len(pixels))
        )

    def dense_offset(self, side: int, feature_map: Tensor) -> tuple[float, float]:
        """Cells further right and down that the map of `dense` is read for pictures of a side."""
        self.find_reading("dense", functools.partial(_dense_map, self.net), side)
        found = self.offset("dense", side, feature_map)
        return found if isinstance(found, tuple) else (found, found)

    def find_reading(self, what: str, read: Callable[[Tensor], Tensor], side: int) -> None:
        """Where the cells of a map of pictures of a side lie, if the reading needs it and nobody has found it yet."""
        if self.reading in ("known", "measured") and (what, side) not in self._cells:
            pixels = self.prepare(torch.zeros((1, 3, side, side), dtype=torch.uint8))
            (self._cells[what, side],) = find_cells(lambda x: [read(x)], self.reading, pixels, self.prepare)

    def offset(self, what: str, side: int, feature_map: Tensor) -> Offset:
        """Cells further right and down that a map of pictures of a side is read."""
        if (what, side) in self._cells:
            return self._cells[what, side].offset(side, feature_map)
        return 0.5 if self.reading == "legacy" else 0.0

    def by_parts(self, call: Callable[[slice], Tensor], count: int) -> Tensor:
        """What `call` gives for parts of `count` pictures: on a CPU few at a time, on all cores if the model can."""
        if not self._on_cpu or count < 2:
            return call(slice(0, count))
        can = isinstance(self.net, DecodePosModel) or self.net.read is not None
        size = min(CPU_PICTURES, math.ceil(count / torch.get_num_threads())) if can else CPU_PICTURES
        parts = [slice(start, start + size) for start in range(0, count, size)]
        call = torch.no_grad()(call)  # which a thread does not inherit
        return torch.cat(list(each_on_a_core(call, parts) if can else map(call, parts)))

    def backbone(self) -> Any:
        """The backbone, for fine-tuning inside another model."""
        if isinstance(self.net, MapModel):
            if isinstance(self.net.module, BackboneMixin):
                return self.net.module
            raise ValueError(
                f"{self.name} has no backbone class in transformers: it cannot be fine-tuned inside a segmenter or "
                "detector. object_knn, object_linear, linear_segmentation and patch_retrieval run on it."
            )
        return self.net.backbone

    def _checked(self, features: Tensor) -> Tensor:
        if not torch.isfinite(features).all():
            raise ValueError(
                f"model: {self.name} gives NaN or infinite features; there is nothing to measure. Its weights are "
                "damaged, or they were trained in another precision or with other pixel statistics."
            )
        return features


def load_model(
    spec: Spec | FeatureModel,
    seed: int,
    device: torch.device | str = "cpu",
    region_bins: int = 0,
    reading: str = "own",
    stage: str = STAGES[0],
) -> EvaluatedModel:
    """The model of a specification, in evaluation mode; `seed` is that of untrained weights.

    `region_bins` of 0 are the checkpoint's own, or the paper's 14. With the stage "map", a ResNet's regions are pooled
    from its last map, as all others' are, and not from the map before for its last stage to run on.
    """
    torch.manual_seed(seed)
    net: Any
    if isinstance(spec, FeatureModel):
        network = Network(spec.name, spec.module, spec.mean, spec.std)
        net = spec.region_net or MapModel(lambda pixels: spec.maps(pixels)[-1], module=spec.module)
        reading = spec.reading if reading == "own" else reading
    else:
        network = load_network(spec, seed=seed, name=spec if isinstance(spec, str) else None)
        net = _region_network(network)
    module: Any = network.call if isinstance(network.call, nn.Module) else None
    if module is not None:
        module.to(device=device, memory_format=torch.channels_last).eval()
    if not isinstance(net, MapModel):
        if reading == "own" and net.config.centre_cells:
            reading = "known"
        net = copy.copy(net)  # with settings of its own; the weights stay shared
        net.config = copy.deepcopy(net.config)
        net.config.region_bins = region_bins or net.config.region_bins
        net = net.to(device=device, memory_format=torch.channels_last).eval()
        if stage == "map" and net.config.splits_backbone:
            backbone = net.backbone
            net = MapModel(functools.partial(_last_stage, backbone), module=backbone, read=_last_stage)
    if isinstance(net, MapModel):
        net.region_bins = region_bins or REGION_BINS
    reading = "aligned" if reading == "own" else reading
    return EvaluatedModel(network.name, net, network.mean, network.std, device, reading)


def region_rows(
    net: DecodePosModel | MapModel, feature_map: Tensor, boxes: list[Tensor], offset: Offset = 0.0
) -> Tensor:
    """(N, D) features of the boxes, image by image."""
    if isinstance(net, MapModel):
        return net.embed_regions(feature_map, boxes, offset)
    regions = check_regions(boxes, len(feature_map), device=feature_map.device)
    return net.embed_regions(feature_map, regions, net.config.region_bins, offset)


def _dense_map(net: DecodePosModel | MapModel, values: Tensor) -> Tensor:
    """(B, C, h, w) of normalised pixels."""
    if isinstance(net, MapModel):
        return net.feature_map(values)
    net.check_map_covers(values)
    feature_map = net.feature_map(values)
    if not net.config.splits_backbone:
        return feature_map
    return net.apply_region_stage(F.interpolate(feature_map, scale_factor=2, mode="bilinear", align_corners=False))


def _last_stage(backbone: Any, pixels: Tensor) -> Tensor:
    feature_map: Tensor = backbone(pixels).feature_maps[-1]
    return feature_map


def _region_network(network: Network) -> DecodePosModel | MapModel:
    call = network.call
    if isinstance(call, DecodePosModel):
        return call
    if not isinstance(call, PreTrainedModel):
        own = call if isinstance(call, nn.Module) else None
        maps = maps_of(call, network.name)
        return MapModel(lambda pixels: maps(pixels)[-1], module=own)
    module: Any = vision_part(network)
    if has_backbone_class(module):
        backbone: Any = module if isinstance(module, BackboneMixin) else every_stage(module)
        return DecodePosModel.from_backbone(backbone, region_bins=REGION_BINS)
    return MapModel(lambda pixels: last_map(module, pixels), module=module, read=last_map)
