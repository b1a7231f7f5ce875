"""A network as a function from pictures to features of the picture, of its regions and of its patches.

Shapes: B pictures, C channels, h w cells, L = h * w, R regions of a picture, S side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..diagnosis.models.features import cell_boxes, pool_stage, pool_whole
from ..diagnosis.models.load import FeatureModel, load_model
from ..diagnosis.models.networks import Spec
from ..region_pooling import average_in_bins
from .choices import check_kinds, check_regions
from .pictures import Shown, Source, show

_WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
_EVERY = 10_000  # layers: all of them


@dataclass(frozen=True)
class Rows:
    """Features of one kind, of one picture."""

    boxes: Tensor  # (N, 4)
    labels: tuple[str | None, ...]
    features: Tensor  # (N, C)


class Embedder:
    """Features of one stage of a network; works as a function for `datasets.map(…, batched=True)`.

    Args:
        model: Whatever the diagnosis takes: a Hub id, a folder, random:NAME, timm:NAME, module:function, an instance.
        features: Some of `choices.KINDS`, as a list or a comma-separated line.
        regions: One of `choices.REGIONS`.
        grid: Boxes per side, where the regions are a grid.
        stage: The name of a stage; the last one by default.
        size_px: Side of the square that pictures are resized to.
        reading: Where the cells of the map lie, one of `READINGS` of the diagnosis.
        device: Where the network runs.
        fp16: Give features in half precision, and on a GPU compute in it.
    """

    def __init__(
        self,
        model: Spec | FeatureModel,
        *,
        features: str | Sequence[str] = ("image", "regions"),
        regions: str = "auto",
        grid: int = 3,
        stage: str = "",
        size_px: int = 224,
        reading: str = "own",
        device: str = "cpu",
        fp16: bool = False,
    ):
        self.spec, self.kinds, self.regions, self.grid = model, check_kinds(features), regions, grid
        self.stage, self.reading, self.device, self.fp16 = stage, reading, device, fp16
        check_regions(regions, grid)
        self._size_px = size_px
        self._model: FeatureModel | None = None
        self._stage_number = self._find_stage()
        self.weights = _digest_weights(self.model)

    @property
    def model(self) -> FeatureModel:
        """The network; loaded anew where this was sent to another process."""
        if self._model is None:
            layers = _EVERY if self.stage else 1  # only what is read
            how: dict[str, Any] = {"size_px": self._size_px, "layers": layers, "reading": self.reading}
            self._model = load_model(self.spec, device=self.device, **how)
        return self._model

    @property
    def stage_name(self) -> str:
        """The stage that is read."""
        return self.model.stages[self._stage_number]

    def __getstate__(self) -> dict[str, Any]:
        """Without the network where its name says all: workers load it, and `datasets` hashes a name and a digest."""
        return self.__dict__ | ({"_model": None} if isinstance(self.spec, str) else {})

    def _find_stage(self) -> int:
        names = self.model.stages
        if self.stage and self.stage not in names:
            raise ValueError(f"{self.model.name} has no stage {self.stage!r}; it has {', '.join(names)}.")
        return names.index(self.stage) if self.stage else len(names) - 1

    def wanted_regions(self, columns: Sequence[str] | frozenset[str]) -> str:
        """The kind of regions that is read of data with these columns; "" where none are asked for."""
        if "regions" not in self.kinds:
            return ""
        has_boxes = "objects" in columns or "regions" in columns
        if self.regions == "auto":
            return "boxes" if has_boxes else "grid"
        needed = {"boxes": has_boxes, "proposals": "regions" in columns, "masks": "segmentation" in columns}
        if not needed.get(self.regions, True):
            raise ValueError(
                f"regions is {self.regions!r}, but the data has only the columns {', '.join(sorted(columns))}. Take "
                "the regions auto or grid."
            )
        return self.regions

    @torch.no_grad()
    def read(self, pictures: Sequence[Shown]) -> tuple[list[dict[str, Rows]], Tensor | None]:
        """Of each picture its rows by kind; and (B, C, h, w) maps, if they are wanted. All on the CPU."""
        model, stage = self.model, self._stage_number
        half = self.fp16 and model.device.type == "cuda"
        with torch.autocast(model.device.type, torch.float16, enabled=half):
            maps = model(torch.stack([picture.pixels for picture in pictures]))
        grid = (maps[stage].shape[2], maps[stage].shape[3])
        rows: list[dict[str, Rows]] = [{} for _ in pictures]
        if "image" in self.kinds:
            for own, picture, feature in zip(rows, pictures, self._out(pool_whole(model, maps, stage)), strict=True):
                own["image"] = Rows(_WHOLE, (picture.label,), feature[None])
        if "regions" in self.kinds:
            counts = [len(picture.boxes) for picture in pictures]
            features = self._out(self._pool(maps, pictures)).split(counts)
            for own, picture, part in zip(rows, pictures, features, strict=True):
                own["regions"] = Rows(picture.boxes, picture.labels, part)
        if "patches" in self.kinds:
            places = cell_boxes(grid, model.offset(stage, maps[stage]))
            for own, cells in zip(rows, self._out(maps[stage].flatten(2).transpose(1, 2)), strict=True):
                own["patches"] = Rows(places, (None,) * len(places), cells)
        return rows, self._out(maps[stage]) if "maps" in self.kinds else None

    def _pool(self, maps: Sequence[Tensor], pictures: Sequence[Shown]) -> Tensor:
        """(N, C) of all regions, picture by picture."""
        stage = self._stage_number
        if all(picture.masks is None for picture in pictures):
            return pool_stage(self.model, maps, stage, [picture.boxes for picture in pictures])
        offset = self.model.offset(stage, maps[stage])
        parts = [pool_masks(own, picture.masks, offset) for own, picture in zip(maps[stage], pictures, strict=True)]
        return torch.cat(parts)

    def _out(self, features: Tensor) -> Tensor:
        return features.to(torch.float16 if self.fp16 else torch.float32).cpu()

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """New columns for a batch of rows with an `image` and, for regions of the data, its `objects` or `regions`."""
        regions = self.wanted_regions(frozenset(batch))
        source = Source("", None, frozenset(batch), (), (), lambda start: iter(()))
        names = [name for name in batch if name not in _OWN_COLUMNS]
        pictures = [
            show("the batch", {name: batch[name][k] for name in names}, self.model.size_px, regions, self.grid, source)
            for k in range(len(batch["image"]))
        ]
        rows, maps = self.read(pictures)
        columns: dict[str, list[Any]] = {}
        if "image" in self.kinds:
            columns["image_feature"] = [own["image"].features[0].numpy() for own in rows]
        for kind, name in (("regions", "region"), ("patches", "patch")):
            if kind in self.kinds:
                columns[f"{name}_boxes"] = [own[kind].boxes.numpy() for own in rows]
                columns[f"{name}_features"] = [own[kind].features.numpy() for own in rows]
        if maps is not None:
            columns["feature_map"] = list(maps.numpy())
        return columns


_OWN_COLUMNS = ("image_feature", "region_boxes", "region_features", "patch_boxes", "patch_features", "feature_map")


def pool_masks(feature_map: Tensor, masks: Tensor | None, offset: float | tuple[float, float]) -> Tensor:
    """(R, C) means of a map (C, h, w) over masks (R, S, S), each cell counted as far as a mask covers it."""
    channels, height, width = feature_map.shape
    if masks is None or not len(masks):
        return feature_map.new_zeros((0, channels))
    if height != width:
        raise ValueError(f"the map has {height} x {width} cells; features of masks need as many down as across.")
    corners = cell_boxes((height, width), offset)
    whole = torch.cat([corners[0, :2], corners[-1, 2:]]).to(feature_map.device)
    shown = masks.to(feature_map)[None]
    covered = average_in_bins(shown, whole.expand(1, len(masks), 4), height)[0].flatten(1)
    shares = covered / covered.sum(1, keepdim=True).clamp(min=torch.finfo(covered.dtype).tiny)
    return shares @ feature_map.flatten(1).T


def _digest_weights(model: FeatureModel) -> str:
    """What tells weights from others; "" for what is no module."""
    found = hashlib.sha256()
    for module in (model.module, model.region_net):
        for name, value in module.state_dict().items() if module is not None else ():
            found.update(name.encode())
            found.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).data)
    return found.hexdigest()[:16] if model.module is not None else ""
