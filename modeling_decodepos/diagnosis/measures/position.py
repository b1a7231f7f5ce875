"""How much of a feature is where its cell or region is: what can be read out, what the border does, which directions.

Cells are (I, L, C): I pictures, L cells, C channels. Regions are (N, C). One scale or one rotation for all features
changes nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.features import border_distances, cell_centres
from ..statistics.estimates import Array, Estimate, estimate, nothing, ratio
from ..statistics.ridge import ridge_predict

ROWS = 600
"""About so many cells are learned from, and as many predicted."""

FOLDS = 8
"""Parts that regions are divided into; each part's places are read by what the others teach."""

COLLAPSED = 1e-4
"""Deviation of all features from their mean, relative to their size, below which nothing but rounding is left."""

WIDEST_LINE = 1.05
"""Effective rank of all features around their mean up to which they lie on one line."""

CONTENT_BLIND = 1e-4
"""Share of the variance that pictures must explain for the features to be about pictures at all."""

FADED = 1e-8
"""Deviation of all features below which a float32 network has lost the picture: trained ones give 1e-3 and more."""

ROUNDING = 1e-6
"""A feature that varies by less than this share of its size holds the rounding of 32-bit numbers and nothing else."""


@torch.no_grad()
def position_r2(features: Tensor, centres: Tensor, held_out_features: Tensor, held_out_centres: Tensor) -> float:
    """R² of the held-out centres predicted by ridge regression, mean over x and y, without an interval.

    1: the feature tells the place exactly; 0 or below: it tells nothing (a constant feature always ends there). Other
    than the numbers of the diagnosis, `probe_position` and `probe_regions`, it is not cut off at 0.
    Shifting or scaling a feature changes nothing: features are standardised by the training rows, which also choose
    the strength of the penalty by leave-one-out error. NaN with fewer than two rows on either side, or where a
    held-out axis has a single value. Features are (N, D), centres (N, 2): x and y in units of the view. Keep regions
    of one image on one side.
    """
    for name, rows, places in (
        ("features", features, centres),
        ("held_out_features", held_out_features, held_out_centres),
    ):
        if rows.ndim != 2 or places.shape != (len(rows), 2) or rows.shape[1] != features.shape[1]:
            raise ValueError(
                f"{name} is {tuple(rows.shape)} with centres {tuple(places.shape)}; expected (N, D) and (N, 2)."
            )
        if not torch.isfinite(rows).all():
            raise ValueError(f"{name} hold NaN or infinite values: there is nothing to regress on.")
    if len(features) < 2 or len(held_out_features) < 2:
        return float("nan")
    x, y, x_test, y_test = (part.cpu().double() for part in (features, centres, held_out_features, held_out_centres))
    x, x_test = _standardise(x, x_test)
    residual = (y_test - ridge_predict(x, y, x_test)).square().sum(0)
    total = (y_test - y_test.mean(0)).square().sum(0)
    return float((1 - residual / total).mean()) if (total > 0).all() else float("nan")


def _standardise(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets with the mean and deviation of the first; features that only differ by rounding become zero."""
    mean, std = rows.mean(0), rows.std(0, correction=0)
    scale = torch.where(std > ROUNDING * mean.abs(), 1 / std, 0.0)
    return (rows - mean) * scale, (others - mean) * scale


@torch.no_grad()
def probe_position(
    cells: Tensor, held_out: Tensor, grid: tuple[int, int], *, seed: int = 0, rows: int = ROWS
) -> Estimate:
    """R² of the x and y of held-out cells, predicted by ridge regression from their features; the mean of both axes.

    1: the place can be read exactly; 0 or below: not at all. Features without variance give 0. `cells` (I, L, C) are
    learned from, `held_out` (J, L, C) are of other pictures; about `rows` cells on either side are used.
    """
    if len(cells) < 2 or len(held_out) < 2:
        return nothing("fewer than two pictures on one side")
    if grid == (1, 1):
        return nothing("the map has one cell: there is one place only")
    places = cell_centres(grid)
    x, y, per_picture = _sample(cells, places, rows, [seed, 21])
    x_test, y_test, per_test = _sample(held_out, places, rows, [seed, 22])
    predicted = _read_out(x, y, x_test, per_picture)
    residual = (y_test - predicted).square().view(-1, per_test, 2).sum(1)
    total = (y_test - y_test.mean(0)).square().view(-1, per_test, 2).sum(1)
    sums = torch.cat([residual, total], 1).numpy()
    return estimate(sums, _r2, seed=seed)


@torch.no_grad()
def probe_regions(regions: Tensor, centres: Tensor, *, seed: int = 0) -> Estimate:
    """R² of the centres of regions, each predicted by ridge regression from its feature; the mean of both axes.

    Read as `probe_position`. `regions` are (N, C), one of each picture; what is in them must have nothing to do with
    where they are.
    """
    if len(regions) < 2 * FOLDS:
        return nothing(f"{len(regions)} regions; {2 * FOLDS} needed")
    y = centres.double()
    predicted = torch.zeros_like(y)
    parts = torch.arange(len(y)) % FOLDS
    for part in range(FOLDS):
        held_out = parts == part
        x, x_test = regions[~held_out].double(), regions[held_out].double()
        predicted[held_out] = _read_out(x, y[~held_out], x_test, 1)
    sums = torch.cat([(y - predicted).square(), (y - y.mean(0)).square()], 1).numpy()
    return estimate(sums, _r2, seed=seed)


def _read_out(x: Tensor, y: Tensor, x_test: Tensor, group_size: int) -> Tensor:
    return y.mean(0).expand(len(x_test), -1) if is_constant(x) else ridge_predict(x, y, x_test, group_size=group_size)


def _r2(sums: Array) -> Array:
    axes: Array = 1 - sums[..., :2] / sums[..., 2:]
    # A read-out that is worse than the mean reads nothing; how much worse is its own noise.
    return np.maximum(axes.mean(-1).round(9), 0.0)


def _sample(cells: Tensor, places: Tensor, rows: int, seed: list[int]) -> tuple[Tensor, Tensor, int]:
    """Features and places of as many cells of each picture as make `rows`, spread at random."""
    count = min(cells.shape[1], max(2, rows // len(cells)))
    rng = np.random.default_rng(seed)
    chosen = torch.from_numpy(np.stack([rng.permutation(cells.shape[1])[:count] for _ in range(len(cells))]))
    x = cells.gather(1, chosen[:, :, None].expand(-1, -1, cells.shape[2]))
    return x.flatten(0, 1).double(), places[chosen].flatten(0, 1).double(), count


def is_constant(features: Tensor) -> bool:
    """Whether features (…, C) differ by no more than rounding."""
    rows = features.flatten(0, -2).double()
    size = float(rows.square().sum(1).mean().sqrt())
    return size == 0 or float((rows - rows.mean(0)).square().sum(1).mean().sqrt()) < COLLAPSED * size


@dataclass(frozen=True)
class Variance:
    """How the variance of cells divides, and what follows."""

    place: Estimate  # share of the variance that the place alone explains, whatever the picture
    # ok, collapsed (all features alike, or on one line), content-blind (pictures change nothing), or faded (all tiny)
    verdict: str


@torch.no_grad()
def divide_variance(cells: Tensor, *, seed: int = 0) -> Variance:
    """The share of place in the variance of features (I, L, C), without bias from the number of pictures."""
    if is_constant(cells):
        return Variance(nothing("collapsed: all features are alike"), "collapsed")
    flat = cells.flatten(0, 1)
    centred = (flat - flat.mean(0)).double()
    if _line_rank(centred) < WIDEST_LINE and cells.shape[2] > 1:
        return Variance(nothing("collapsed: all features lie on one line"), "collapsed")
    if float(centred.square().sum(1).mean().sqrt()) < FADED:
        return Variance(nothing("faded: features of next to nothing"), "faded")
    if len(cells) < 2:
        return Variance(nothing("fewer than two pictures"), "ok")
    total = centred.square().sum(1).view(len(cells), -1).mean(1)
    own = (cells - cells.mean(1, keepdim=True)).double()
    shared = _agreement(own).mean(1)
    between = (cells - cells.mean(0)).square().sum(2).double().mean()
    blind = float(between) < CONTENT_BLIND * float(total.mean())
    share = estimate(torch.stack([shared, total], 1).numpy(), ratio, seed=seed, widen=2.0)
    return Variance(_clip(share), "content-blind" if blind else "ok")


def _line_rank(centred: Tensor) -> float:
    """Participation ratio of the directions that rows fill: 1 if they lie on one line."""
    rows = centred[:: max(1, len(centred) // 512)]
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return float(gram.trace().square() / gram.square().sum())


def _agreement(deviations: Tensor) -> Tensor:
    """(I, L) inner product of each picture's deviation with the mean of the others'; its mean estimates the squared
    length of the expected deviation without bias."""
    count = len(deviations)
    total = deviations.sum(0)
    return (deviations * (total - deviations)).sum(2) / (count - 1)


@torch.no_grad()
def border_profile(cells: Tensor, grid: tuple[int, int], *, seed: int = 0) -> list[Estimate]:
    """How far the mean feature drifts from the centre's, by distance to the border in cells: 0 first, centre left out.

    In units of the features' variance over pictures at one place: 1 says that the border shifts features by as much
    as one picture differs from the next.
    """
    rings = border_distances(grid)
    centre = cells[:, rings == rings.max()].mean(1, keepdim=True)
    deviations = (cells - centre).double()
    if len(cells) < 2 or int(rings.max()) < 1:
        return []
    spread = (cells - cells.mean(0)).square().sum(2).mean(1).double()
    if float(spread.mean()) <= COLLAPSED**2 * float(cells.square().sum(2).mean()):
        return [nothing("pictures change nothing at one place: no unit to measure the border in")] * int(rings.max())
    drift = _agreement(deviations)
    return [
        _clip(estimate(torch.stack([drift[:, rings == ring].mean(1), spread], 1).numpy(), ratio, seed=seed, widen=2.0))
        for ring in range(int(rings.max()))
    ]


def _clip(found: Estimate) -> Estimate:
    """Shares and squared lengths are not negative; estimates without bias may be, by chance."""
    if found.value is None:
        return found
    low, high = (None if end is None else max(end, 0.0) for end in (found.low, found.high))
    return Estimate(max(found.value, 0.0), low, high, found.count, draws=np.maximum(found.draws, 0.0))


@dataclass(frozen=True)
class Subspace:
    """Directions in which features follow the place."""

    directions: Tensor  # (K, C) orthonormal, the strongest first
    energy: Tensor  # (K,) share of the place's variance along each
    mean: Tensor  # (C,) of all features

    def remove(self, features: Tensor, count: int) -> Tensor:
        """Features (…, C) without their first `count` directions; their mean stays."""
        kept = self.directions[:count].to(features.dtype)
        return features - (features - self.mean.to(features.dtype)) @ kept.T @ kept

    @property
    def size(self) -> int:
        """Directions that hold 95 % of the place's variance."""
        return int((self.energy.cumsum(0) < 0.95).sum()) + 1 if len(self.energy) else 0


@torch.no_grad()
def positional_subspace(cells: Tensor, most: int = 64) -> Subspace:
    """Singular directions of the mean feature at each place, over pictures (I, L, C)."""
    mean_map = cells.double().mean(0)
    mean = mean_map.mean(0)
    size = float(mean_map.square().sum(1).mean().sqrt())
    centred = mean_map - mean
    if float(centred.square().sum(1).mean().sqrt()) <= ROUNDING * size:
        return Subspace(torch.zeros(0, cells.shape[2]), torch.zeros(0), mean.float())
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    energy = singular.square() / singular.square().sum()
    kept = min(most, int((singular > 1e-6 * singular[0]).sum()))
    return Subspace(directions[:kept].float(), energy[:kept].float(), mean.float())
