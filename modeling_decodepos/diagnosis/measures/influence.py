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
        energies = gradient_energies(model, pixels[part], boxes[part])
        if energies is None:
            return [nothing("no gradient reaches the pixels")] * len(model.stages), torch.zeros(0)
        for number, energy in enumerate(energies):
            outside = (energy * ~inside[part]).sum((1, 2))
            rows[number].append(torch.stack([outside, energy.sum((1, 2))], 1))
        maps.append(energies[-1].float())
    reason = "the features do not answer to the pixels at all"
    shares = [estimate(torch.cat(part).numpy(), ratio, seed=seed, reason=reason) for part in rows]
    return shares, torch.cat(maps)


def gradient_energies(model: FeatureModel, pixels: Tensor, boxes: Tensor) -> list[Tensor] | None:
    """Of each stage (I, s, s) energy of the gradient of every pixel, as `measure_influence` takes it, of one batch.

    None where no gradient reaches the pixels.
    """
    images, energies = model.prepare(pixels).requires_grad_(True), []
    with torch.enable_grad():
        maps = [feature_map.float() for feature_map in model.maps(images)]
        for features in pool_stages(model, maps, list(boxes[:, None])):
            if not features.requires_grad:
                return None
            away = (features - features.mean(0)).detach()
            direction = F.normalize(away, dim=1, eps=torch.finfo(away.dtype).tiny)
            (gradient,) = torch.autograd.grad((features * direction).sum(), images, retain_graph=True)
            energies.append(gradient.square().sum(1).double().cpu())
    return energies


def _inside(boxes: Tensor, size_px: int) -> Tensor:
    """(I, s, s), true for pixels whose centre lies in the box."""
    centres = (torch.arange(size_px) + 0.5) / size_px
    x1, y1, x2, y2 = (side[:, None] for side in boxes.unbind(1))
    columns, rows = (centres >= x1) & (centres < x2), (centres >= y1) & (centres < y2)
    return rows[:, :, None] & columns[:, None, :]
