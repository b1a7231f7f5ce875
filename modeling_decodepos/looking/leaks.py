"""What leaks into the feature of one box of one picture, stage by stage: the measures of the diagnosis for one region.

A single region has no mean to be seen from, so regions of a few drawn scenes stand beside it, as the other pictures
of a diagnosis do. Whatever does not depend on the visitor's picture is computed once per model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..diagnosis.data.exchange import exchange_content, exchange_surroundings
from ..diagnosis.data.probe import ProbeData, Swaps, blank_pictures
from ..diagnosis.data.scenes import build_scene_data
from ..diagnosis.measures.context import exchange_cosines, leak_ratio
from ..diagnosis.measures.evaluate import BLANKS, probe_halves
from ..diagnosis.measures.influence import gradient_energies
from ..diagnosis.measures.position import divide_variance
from ..diagnosis.models.features import read_features
from ..diagnosis.models.load import FeatureModel
from ..diagnosis.report.figures import false_colors, heat_over, page_drift, share_outside
from ..diagnosis.statistics.estimates import Estimate

SEED = 0
REFERENCES = 8  # scenes that stand beside the visitor's picture
DONORS = 4  # of them, those that lend surroundings and content
BESIDE = 3  # of them, those in a batch whose gradient is taken


@dataclass(frozen=True)
class CommonAnswers:
    """What a model says about pictures that are the same for everybody; lists are by stage."""

    model: FeatureModel
    regions: list[Tensor]  # features of the references' regions,
    surroundings: list[Tensor]  # of the same in other surroundings,
    content: list[Tensor]  # and of other content in the same surroundings
    verdicts: list[str]  # as in the diagnosis: ok, collapsed or content-blind
    position: list[Estimate]  # R² of the place read from blank pages
    drift: Tensor  # (h, w) of the last stage: how far each cell of a blank page is from the page's mean feature


@dataclass(frozen=True)
class Leaks:
    """What was found about one box; lists are by stage."""

    outside: list[float | None]  # share of gradient energy outside the box; None where no gradient arrives
    heat: list[np.ndarray]  # (S, S, 3) the picture under its gradient energy
    same_content: Tensor  # (stages, DONORS) centred cosine of the region with itself in other surroundings
    same_surroundings: Tensor  # (stages, DONORS) and with other content in its surroundings
    leak: list[float]  # the context leak: 0 content alone, 1 surroundings alone; NaN if neither
    recontextualised: Tensor  # (DONORS, 3, S, S) the region in other surroundings
    refilled: Tensor  # (DONORS, 3, S, S) other content in the region's surroundings
    colors: list[np.ndarray]  # the picture's features in false colours


@lru_cache(maxsize=1)
def _references(size_px: int) -> tuple[ProbeData, Swaps]:
    data = build_scene_data(REFERENCES, size_px, SEED, objects=1)
    assert data.swaps is not None  # every query scene has a region to probe
    return data, data.swaps


def ask_common(model: FeatureModel, size_px: int) -> CommonAnswers:
    """What does not depend on the picture; `size_px` is the side of the pictures to come."""
    data, swaps = _references(size_px)
    boxes = list(swaps.boxes[:, None])
    here = read_features(model, data.queries.pixels[swaps.images], boxes, cells=True)
    blank = read_features(model, blank_pictures(BLANKS, size_px, SEED), cells=True)
    return CommonAnswers(
        model,
        [stage.regions for stage in here],
        [stage.regions for stage in read_features(model, swaps.other_surroundings, boxes)],
        [stage.regions for stage in read_features(model, swaps.other_content, boxes)],
        [divide_variance(stage.cells, seed=SEED).verdict for stage in here],
        [probe_halves(stage, SEED) for stage in blank],
        page_drift(blank[-1])[0],
    )


def ask(common: CommonAnswers, view: Tensor, box: Tensor) -> Leaks:
    """What leaks into the feature of a box (4,) of a view (3, S, S) uint8."""
    data, swaps = _references(view.shape[1])
    donors = [data.queries.pixels[image] for image in swaps.images[:DONORS]]
    corners = box.numpy()
    lent = zip(donors, swaps.boxes[:DONORS].numpy(), strict=True)
    recontextualised = torch.stack([exchange_surroundings(view, corners, donor) for donor in donors])
    refilled = torch.stack([exchange_content(view, corners, donor, there) for donor, there in lent])
    pixels = torch.cat([view[None], recontextualised, refilled])
    stages = read_features(common.model, pixels, [box[None]] * len(pixels))
    same_content, same_surroundings = _cosines(common, [stage.regions for stage in stages])
    leak = leak_ratio(same_content.mean(1), same_surroundings.mean(1))
    outside, heat = _influence(common.model, view, box)
    whole = read_features(common.model, view[None], cells=True)
    colors = [false_colors(stage.cells, stage.grid)[0] for stage in whole]
    return Leaks(outside, heat, same_content, same_surroundings, leak.tolist(), recontextualised, refilled, colors)


def _cosines(common: CommonAnswers, stages: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Two (stages, DONORS): each donor's exchange is compared among the references, as one more region of theirs."""
    found = []
    for features, *others in zip(stages, common.regions, common.surroundings, common.content, strict=True):
        here, elsewhere, refilled = features[:1], features[1 : 1 + DONORS], features[1 + DONORS :]
        for donor in range(DONORS):
            own = (here, elsewhere[donor, None], refilled[donor, None])
            rows = [torch.cat([mine, theirs]) for mine, theirs in zip(own, others, strict=True)]
            found.append(torch.stack([cosines[0] for cosines in exchange_cosines(*rows)]))
    content, surroundings = torch.stack(found).view(len(stages), DONORS, 2).unbind(2)
    return content, surroundings


def _influence(model: FeatureModel, view: Tensor, box: Tensor) -> tuple[list[float | None], list[np.ndarray]]:
    """Of each stage, the share of gradient energy outside the box, and the picture under that energy."""
    data, swaps = _references(view.shape[1])
    pixels = torch.cat([view[None], data.queries.pixels[swaps.images[:BESIDE]]])
    boxes = torch.cat([box[None], swaps.boxes[:BESIDE]])
    picture = view.permute(1, 2, 0).contiguous().numpy()
    energies = gradient_energies(model, pixels, boxes)
    shares: list[float | None] = [None] * len(model.stages)
    heat = [picture] * len(model.stages)
    for number, energy in enumerate(energies or []):
        if float(energy[0].sum()) > 0:
            own = energy[0].float()
            shares[number], heat[number] = share_outside(own, box), heat_over(picture, own)
    return shares, heat
