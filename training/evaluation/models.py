"""Any backbone as evaluation sees it: region features, a dense map, and the bare backbone to fine-tune.

PATH_OR_ID          a folder or Hub id: our exports, any AutoBackbone, and other vision models that AutoModel reads
random:NAME         an untrained network by name (random:resnet18, random:vit_small …)
random:PATH_OR_ID   an untrained network of the same architecture as a checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING
from transformers.utils import cached_file

from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.configuration_decodepos import DecodePosConfig
from modeling_decodepos.modeling_decodepos import DecodePosModel
from modeling_decodepos.region_pooling import pool_regions
from training.views.normalise import IMAGE_MEAN, IMAGE_STD

RANDOM = "random:"


class MapModel(nn.Module):
    """A vision model without a backbone class in transformers, read through its `last_hidden_state`.

    Tokens become a map: the last h * w of them, in rows. Regions are pooled from it.
    """

    def __init__(self, net: nn.Module, region_bins: int):
        super().__init__()
        if (reads := getattr(net, "main_input_name", "pixel_values")) != "pixel_values":
            kind = net.config.model_type  # type: ignore[union-attr]
            raise ValueError(f"model: this is a {kind!r} model, which reads {reads}, not pictures.")
        self.net, self.region_bins = net, region_bins

    def feature_map(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W)."""
        last = self.net(pixel_values).last_hidden_state
        if last.ndim == 4:
            return last
        config: Any = self.net.config
        patch = getattr(config, "patch_size", None)
        if last.ndim != 3 or not isinstance(patch, int):
            raise ValueError(
                f"a {config.model_type!r} model gives {tuple(last.shape)} for {tuple(pixel_values.shape)} and no "
                "patch size: it has no feature map to evaluate. Use one such as resnet, convnext, swin, dinov2, vit."
            )
        height, width = (side // patch for side in pixel_values.shape[2:])
        return last[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))

    def embed(self, pixel_values: Tensor, boxes: list[Tensor]) -> Tensor:
        """(N, C) features of the boxes, image by image."""
        rows = []
        for feature_map, own in zip(self.feature_map(pixel_values), boxes, strict=True):
            rows.append(pool_regions(feature_map[None], own[None], self.region_bins)[0].mean((2, 3)))
        return torch.cat(rows)


@dataclass
class EvaluatedModel:
    """A model, how its pixels are normalised, and what to call it.

    Attributes:
        name: As it was asked for.
        net: `DecodePosModel` around a backbone, or a `MapModel`.
        mean, std: Of the pixels it expects, in [0, 1].
    """

    name: str
    net: DecodePosModel | MapModel
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.net.parameters()).device

    def prepare(self, pixels: Tensor) -> Tensor:
        """Normalised float pixels on the model's device, from (B, 3, S, S) uint8."""
        pixels = pixels.to(self.device).float() / 255
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def embed(self, pixels: Tensor, boxes: list[Tensor]) -> Tensor:
        """(N, D) float32 features, on the CPU, of unit boxes on (B, 3, S, S) uint8 images, image by image."""
        values, own = self.prepare(pixels), [rows.to(self.device) for rows in boxes]
        if isinstance(self.net, MapModel):
            rows = self.net.embed(values, own)
        else:
            output = self.net(values, regions=own)
            rows = output.region_embeddings[output.valid_regions]
        return _checked(rows.float().cpu(), self.name)

    @torch.no_grad()
    def dense(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) float32 map of (B, 3, S, S) uint8 images, on the model's device.

        The last map of the backbone. A ResNet's last stage runs on its stage 3 at twice the resolution, as it does on
        regions in this package: the map then has a cell per 16 pixels, like that of a ViT.
        """
        values = self.prepare(pixels)
        if isinstance(self.net, DecodePosModel):
            self.net.check_map_covers(values)
        feature_map = self.net.feature_map(values)
        if isinstance(self.net, DecodePosModel) and self.net.config.splits_backbone:
            finer = F.interpolate(feature_map, scale_factor=2, mode="bilinear", align_corners=False)
            feature_map = self.net.apply_region_stage(finer)
        return _checked(feature_map.float(), self.name)

    def backbone(self) -> Any:
        """The backbone, for fine-tuning inside another model."""
        if isinstance(self.net, MapModel):
            kind = self.net.net.config.model_type  # type: ignore[union-attr]
            raise ValueError(
                f"{self.name} is a {kind!r} model, for which transformers has no backbone class: it cannot be "
                "fine-tuned inside a segmenter or detector. object_knn, object_linear, linear_segmentation and "
                "patch_retrieval run on it."
            )
        return self.net.backbone


def load_model(
    name: str, seed: int, device: torch.device | str = "cpu", region_bins: int = 0, centre_cells: bool = False
) -> EvaluatedModel:
    """The model of a name, in evaluation mode.

    Args:
        name: See the top of this file.
        seed: Of untrained weights.
        device: Where to put it.
        region_bins: Bins per side that regions are pooled to; 0 takes the checkpoint's, or the paper's 14.
        centre_cells: Read regions where a ResNet's cells have their centres, whatever the checkpoint says.
    """
    torch.manual_seed(seed)
    changes: dict[str, Any] = {"region_bins": region_bins} if region_bins else {}
    if centre_cells:
        changes["centre_cells"] = True
    if name.removeprefix(RANDOM) in BACKBONES and not name.startswith(RANDOM):
        raise ValueError(
            f"model: {name!r} names an architecture, not weights; say {RANDOM}{name} for an untrained one."
        )
    try:
        if name.startswith(RANDOM):
            loaded = EvaluatedModel(name, _untrained(name.removeprefix(RANDOM), changes))
        else:
            loaded = EvaluatedModel(name, _trained(name, changes), *_statistics(name))
    except OSError as error:
        raise ValueError(
            f"model: no folder and no reachable Hub id {name.removeprefix(RANDOM)!r} with a config.json "
            f"({str(error).splitlines()[0]}) Give a folder, a Hub id that is in the cache or online, or one of "
            f"{', '.join(RANDOM + known for known in BACKBONES)}."
        ) from error
    net: Any = loaded.net
    loaded.net = net.to(device=device, memory_format=torch.channels_last).eval()
    return loaded


def _trained(name: str, changes: dict[str, Any]) -> DecodePosModel | MapModel:
    config = AutoConfig.from_pretrained(name)
    if isinstance(config, DecodePosConfig):
        return DecodePosModel.from_pretrained(name, **changes)
    if type(config) in MODEL_FOR_BACKBONE_MAPPING:
        return DecodePosModel.from_backbone(name, **changes)
    return MapModel(AutoModel.from_pretrained(name), changes.get("region_bins", 14))


def _untrained(name: str, changes: dict[str, Any]) -> DecodePosModel | MapModel:
    config: Any = BACKBONES[name]() if name in BACKBONES else AutoConfig.from_pretrained(name)
    if isinstance(config, DecodePosConfig):
        config = DecodePosConfig(**(config.to_dict() | changes | {"zero_init_residual": False}))
    elif type(config) in MODEL_FOR_BACKBONE_MAPPING:
        # Residual branches that start at zero would leave a network of a few layers: no control for a deep one.
        config = DecodePosConfig(backbone_config=config, zero_init_residual=False, **changes)
    else:
        return MapModel(AutoModel.from_config(config), changes.get("region_bins", 14))
    return DecodePosModel(config)


def _statistics(name: str) -> Iterator[tuple[float, ...]]:
    """Mean and standard deviation from the checkpoint's preprocessor file; ImageNet's where it has none."""
    found = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    values = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
    yield tuple(values.get("image_mean") or IMAGE_MEAN)
    yield tuple(values.get("image_std") or IMAGE_STD)


def _checked(features: Tensor, name: str) -> Tensor:
    if not torch.isfinite(features).all():
        raise ValueError(
            f"model: {name} gives NaN or infinite features; there is nothing to measure. Its weights are damaged, or "
            "they were trained in another precision or with other pixel statistics."
        )
    return features
