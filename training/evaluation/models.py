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

from modeling_decodepos.diagnosis.models.load import FeatureModel, fitting_side
from modeling_decodepos.diagnosis.models.networks import (
    Network,
    Spec,
    call_maps,
    every_stage,
    has_backbone_class,
    last_map,
    load_network,
    refuse_centre_cells,
    vision_part,
)
from modeling_decodepos.imagenet import IMAGE_MEAN, IMAGE_STD
from modeling_decodepos.modeling_decodepos import DecodePosModel
from modeling_decodepos.region_pooling import cell_offset, pool_regions
from training.evaluation.frozen import each_on_a_core, fold_batch_norms

REGION_BINS = 14
"""Of models without bins of their own."""

CPU_PICTURES = 8
"""Through a network on a CPU at a time: their maps fit into a core's cache, those of 64 do not."""


@dataclass
class MapModel:
    """A model without a backbone class in transformers, read through its last map, which regions are pooled from."""

    feature_map: Callable[[Tensor], Tensor]  # (B, C, h, w) from normalised pixels
    region_bins: int = REGION_BINS
    centre_cells: bool = False
    module: nn.Module | None = None  # that gives the map, where it is one
    # The map of `module`, or of a copy of it, from several threads at a time; None where nobody can know that it may.
    read: Callable[[Any, Tensor], Tensor] | None = None

    def embed(self, pixel_values: Tensor, boxes: list[Tensor]) -> Tensor:
        """(N, C) features of the boxes, image by image."""
        rows = []
        for feature_map, own in zip(self.feature_map(pixel_values), boxes, strict=True):
            offset = cell_offset(pixel_values.shape[-1] / feature_map.shape[-1]) if self.centre_cells else 0.0
            pooled = pool_regions(feature_map[None], own[None], self.region_bins, offset=offset)
            rows.append(pooled[0].mean((2, 3)))
        return torch.cat(rows)

    def folded(self, examples: list[Tensor]) -> MapModel:
        """The same with its batch norms folded, where the network is known to be a function of its pixels."""
        if self.module is None or self.read is None:
            return self
        module = fold_batch_norms(self.module, self.read, examples)
        return replace(self, module=module, feature_map=functools.partial(self.read, module))


@dataclass
class EvaluatedModel:
    """A model, how its pixels are normalised, and what to call it."""

    name: str
    net: DecodePosModel | MapModel
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD
    device: torch.device | str = "cpu"
    _frozen: DecodePosModel | MapModel | None = field(default=None, init=False, repr=False)

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
        whole = [torch.tensor([[0.0, 0.0, 1.0, 1.0]])]
        return fold_batch_norms(self.net, lambda net, example: _region_rows(net, example, whole), examples)

    @property
    def _on_cpu(self) -> bool:
        return torch.device(self.device).type == "cpu"

    @torch.no_grad()
    def embed(self, pixels: Tensor, boxes: list[Tensor]) -> Tensor:
        """(N, D) float32 features, on the CPU, of unit boxes on (B, 3, S, S) uint8 images, image by image."""
        net = self.frozen(pixels)

        def embed(part: slice) -> Tensor:
            values, own = self.prepare(pixels[part]), [rows.to(self.device) for rows in boxes[part]]
            rows = net.embed(values, own) if isinstance(net, MapModel) else _region_rows(net, values, own)
            return rows.float().cpu()

        return self._checked(self._by_parts(embed, len(pixels)))

    @torch.no_grad()
    def dense(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) float32 map of (B, 3, S, S) uint8 images, on the model's device.

        The last map of the backbone. A ResNet's last stage runs on its stage 3 at twice the resolution, as it does on
        regions in this package: the map then has a cell per 16 pixels, like that of a ViT.
        """
        net = self.frozen(pixels)

        def dense(part: slice) -> Tensor:
            values = self.prepare(pixels[part])
            if isinstance(net, DecodePosModel):
                net.check_map_covers(values)
            feature_map = net.feature_map(values)
            if isinstance(net, DecodePosModel) and net.config.splits_backbone:
                finer = F.interpolate(feature_map, scale_factor=2, mode="bilinear", align_corners=False)
                feature_map = net.apply_region_stage(finer)
            return feature_map.float()

        return self._checked(self._by_parts(dense, len(pixels)))

    def _by_parts(self, call: Callable[[slice], Tensor], count: int) -> Tensor:
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
    centre_cells: bool = False,
) -> EvaluatedModel:
    """The model of a specification, in evaluation mode; `seed` is that of untrained weights.

    `region_bins` of 0 are the checkpoint's own, or the paper's 14; `centre_cells` counts whatever the checkpoint says.
    """
    torch.manual_seed(seed)
    net: Any
    if isinstance(spec, FeatureModel):
        network = Network(spec.name, spec.module, spec.mean, spec.std)
        net = MapModel(lambda pixels: spec.maps(pixels)[-1], module=spec.module)
        if spec.embed is not None:  # its last map is not what its regions are made from
            net.embed = lambda pixels, boxes: spec.embed(spec.maps(pixels), boxes)
    else:
        network = load_network(spec, seed=seed, name=spec if isinstance(spec, str) else None)
        net = _region_network(network)
    module: Any = network.call if isinstance(network.call, nn.Module) else None
    if centre_cells:
        refuse_centre_cells(network.name, module)
    if module is not None:
        module.to(device=device, memory_format=torch.channels_last).eval()
    if isinstance(net, MapModel):
        net.region_bins, net.centre_cells = region_bins or REGION_BINS, centre_cells
    else:
        net = copy.copy(net)  # with settings of its own; the weights stay shared
        net.config = copy.deepcopy(net.config)
        net.config.region_bins = region_bins or net.config.region_bins
        net.config.centre_cells |= centre_cells
        net = net.to(device=device, memory_format=torch.channels_last).eval()
    return EvaluatedModel(network.name, net, network.mean, network.std, device)


def _region_rows(net: DecodePosModel, pixel_values: Tensor, boxes: list[Tensor]) -> Tensor:
    """(N, D) features of the boxes, image by image."""
    output = net(pixel_values, regions=boxes)
    rows: Tensor = output.region_embeddings[output.valid_regions]
    return rows


def _region_network(network: Network) -> DecodePosModel | MapModel:
    call = network.call
    if isinstance(call, DecodePosModel):
        return call
    if not isinstance(call, PreTrainedModel):
        own = call if isinstance(call, nn.Module) else None
        return MapModel(lambda pixels: call_maps(call, pixels, network.name)[-1], module=own)
    module: Any = vision_part(network)
    if has_backbone_class(module):
        backbone: Any = module if isinstance(module, BackboneMixin) else every_stage(module)
        return DecodePosModel.from_backbone(backbone, region_bins=REGION_BINS)
    return MapModel(lambda pixels: last_map(module, pixels), module=module, read=last_map)
