"""Which pixels a region's feature answers to: the share of the input gradient's energy that lies outside the box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.features import pool_stages
from ..models.load import FeatureModel
from ..statistics.estimates import Estimate, estimate, nothing, ratio

BATCH = 8


def measure_influence(
    model: FeatureModel, pixels: Tensor, boxes: Tensor, *, seed: int = 0
) -> tuple[list[Estimate], Tensor]:
    """Of each stage, the share outside the box; and (I, s, s) maps of the last stage's gradient energy.

    What is differentiated is how strongly the region's feature points in its own direction, seen from the mean of all
    regions: a number that one scale or rotation of all features does not change in kind.
    `pixels` are (I, 3, S, S) uint8, `boxes` (I, 4): one region per picture.
    """
    rows: list[list[Tensor]] = [[] for _ in model.stages]
    maps = []
    inside = _inside(boxes, model.size_px)
    for start in range(0, len(pixels), BATCH):
        part = slice(start, start + BATCH)
        images = model.prepare(pixels[part]).requires_grad_(True)
        with torch.enable_grad():
            found = model.maps(images)
            pooled = pool_stages(model, [feature_map.float() for feature_map in found], list(boxes[part, None]))
            for number, features in enumerate(pooled):
                away = (features - features.mean(0)).detach()
                direction = F.normalize(away, dim=1, eps=torch.finfo(away.dtype).tiny)
                if not features.requires_grad:
                    return [nothing("no gradient reaches the pixels")] * len(model.stages), torch.zeros(0)
                (gradient,) = torch.autograd.grad((features * direction).sum(), images, retain_graph=True)
                energy = gradient.square().sum(1).double().cpu()
                if number == len(found) - 1:
                    maps.append(energy.float())
                outside = (energy * ~inside[part]).sum((1, 2))
                rows[number].append(torch.stack([outside, energy.sum((1, 2))], 1))
    reason = "the features do not answer to the pixels at all"
    shares = [estimate(torch.cat(part).numpy(), ratio, seed=seed, reason=reason) for part in rows]
    return shares, torch.cat(maps)


def _inside(boxes: Tensor, size_px: int) -> Tensor:
    """(I, s, s), true for pixels whose centre lies in the box."""
    centres = (torch.arange(size_px) + 0.5) / size_px
    x1, y1, x2, y2 = (side[:, None] for side in boxes.unbind(1))
    columns, rows = (centres >= x1) & (centres < x2), (centres >= y1) & (centres < y2)
    return rows[:, :, None] & columns[:, None, :]
