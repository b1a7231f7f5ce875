"""Pictures of a diagnosis: heat maps on the pictures themselves, drawn with Pillow.

Cells of maps are drawn where the reading of the network has them: by default in their share of the picture, by `known`
those of padded convolutions further up and left. Colours run from dark blue (least) to pale yellow (most), legible
without colour vision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...drawing.sheet import BOX, Pixels, Sheet
from ..data.probe import ProbeData
from ..models.features import StageFeatures
from ..models.load import FeatureModel
from ..results import ModelResult

SIDE = 168  # pixels of a map laid over a picture
RAMP = ((0.0, "0d0f2b"), (0.25, "3b1f6b"), (0.5, "9b2f6f"), (0.75, "ee6a4c"), (1.0, "fdf5b2"))


def colorize(values: Tensor, low: float | None = None, high: float | None = None) -> Pixels:
    """(h, w, 3) colours of (h, w) numbers, from their least (or `low`) to their greatest (or `high`)."""
    numbers = values.double().numpy()
    low = float(numbers.min()) if low is None else low
    high = float(numbers.max()) if high is None else high
    share = np.clip((numbers - low) / (high - low), 0, 1) if high > low else np.zeros_like(numbers)
    stops = [stop for stop, _ in RAMP]
    colors = np.array([[int(text[k : k + 2], 16) for k in (0, 2, 4)] for _, text in RAMP], float)
    parts = [np.interp(share, stops, colors[:, channel]) for channel in range(3)]
    return np.stack(parts, -1).round().astype(np.uint8)


def nearest_cells(places: NDArray[np.float64], count: int, shift: float) -> NDArray[np.int64]:
    """Of places in [0, 1], the nearest of `count` cells; `shift` is that of `cell_shift`."""
    return np.clip(np.floor(places * count + shift), 0, count - 1).astype(np.int64)


def lay_cells(colors: Pixels, shift: tuple[float, float], side: int = SIDE) -> Pixels:
    """(side, side, 3) over a whole picture, each pixel in the colour (h, w, 3) of the cell that lies nearest to it."""
    places = (np.arange(side) + 0.5) / side
    columns, rows = (
        nearest_cells(places, count, cells) for count, cells in zip(colors.shape[1::-1], shift, strict=True)
    )
    return colors[rows[:, None], columns[None]]


def cell_shift(model: FeatureModel, stage: int, features: StageFeatures) -> tuple[float, float]:
    """Cells further right and down that a stage is read, in cells of the grid that was kept of its map."""
    offset = model.offset(stage, features.norms)
    right, down = offset if isinstance(offset, tuple) else (offset, offset)
    height, width = features.norms.shape[1:]
    return right * features.grid[1] / width, down * features.grid[0] / height


def similarities(cells: Tensor, mean: Tensor) -> Tensor:
    """(L, L) cosines of the cells (L, C) of a picture with one another, seen from the mean of all pictures' cells."""
    unit = F.normalize(cells.double() - mean.double(), dim=1, eps=torch.finfo(torch.float64).tiny)
    return unit @ unit.T


def draw_blank_pages(models: Sequence[ModelResult]) -> Image.Image | None:
    """What each stage says about a blank page: how far each cell's feature is from the page's own mean."""
    shown = [model for model in models if model.features.blank]
    if not shown:
        return None
    most = max(len(model.stages) for model in shown)
    sheet = Sheet([f"stage {k + 1} of {most}" for k in range(most)], len(shown))
    for row, model in enumerate(shown):
        sheet.label(row, model.name, "deviation from the page's mean, as a share of the feature's length")
        for column, (stage, features) in enumerate(zip(model.stages, model.features.blank, strict=True)):
            drift, size = page_drift(features)
            colors = colorize(drift, 0.0, max(float(drift.max()), 0.02))
            tile = lay_cells(colors, cell_shift(model.model, column, features))
            sheet.put(row, column, tile, f"{stage.name}: {size:.0%}")
    return sheet.image


def page_drift(features: StageFeatures) -> tuple[Tensor, float]:
    """(h, w) root mean square deviation of blank pages' cells from their page's mean, over the features' length;
    and its mean."""
    deviation = (features.cells - features.cells.mean(1, keepdim=True)).square().sum(2).mean(0).sqrt()
    length = features.cells.square().sum(2).mean().sqrt().clamp(min=1e-12)
    relative = (deviation / length).view(features.grid)
    return relative, float(relative.mean())


def draw_influence(models: Sequence[ModelResult], data: ProbeData, columns: int = 5) -> Image.Image | None:
    """The probed regions, and below them, per model, where the last stage's gradient falls."""
    shown = [model for model in models if model.features.gradients.numel()]
    if not shown or data.swaps is None:
        return None
    columns = min(columns, len(shown[0].features.gradients))
    sheet = Sheet([f"picture {k + 1}" for k in range(columns)], len(shown) + 1)
    sheet.label(0, "query region")
    pictures = [as_pixels(data.queries.pixels[data.swaps.images[k]]) for k in range(columns)]
    for column, picture in enumerate(pictures):
        sheet.put(0, column, picture, boxes=[(data.swaps.boxes[column], BOX)])
    for row, model in enumerate(shown, start=1):
        sheet.label(row, model.name, f"{model.last.name}: gradient energy")
        for column in range(columns):
            energy = model.features.gradients[column]
            box = data.swaps.boxes[column]
            share = share_outside(energy, box)
            blend = heat_over(pictures[column], energy)
            sheet.put(row, column, blend, f"{share:.0%} outside the box", [(box, BOX)], smooth=True)
    return sheet.image


def heat_over(picture: Pixels, energy: Tensor) -> Pixels:
    """(s, s, 3) picture in grey under the heat of its gradient energy (s, s), softened over neighbouring pixels."""
    soft = F.avg_pool2d(energy[None, None], 5, stride=1, padding=2)[0, 0].sqrt()
    return over_grey(picture, colorize(soft, 0.0, float(soft.quantile(0.995))), 0.72)


def over_grey(picture: Pixels, colors: Pixels, share: float = 0.65) -> Pixels:
    """(s, s, 3) picture in grey under colours (s, s, 3), of which a share is seen."""
    grey = np.asarray(Image.fromarray(picture).convert("L").resize(colors.shape[1::-1]))[:, :, None]
    return ((1 - share) * grey + share * colors).astype(np.uint8)


def share_outside(energy: Tensor, box: Tensor) -> float:
    """Share of the energy (s, s) that lies outside a box (4,)."""
    side = energy.shape[0]
    centres = (torch.arange(side) + 0.5) / side
    inside = ((centres >= box[1]) & (centres < box[3]))[:, None] & ((centres >= box[0]) & (centres < box[2]))[None]
    return float((energy * ~inside).sum() / energy.sum().clamp(min=1e-30))


def draw_swaps(models: Sequence[ModelResult], data: ProbeData, rows: int = 3) -> Image.Image | None:
    """A region as it is, before other surroundings, with other content, and somewhere else."""
    shown = [model for model in models if model.features.surroundings]
    if not shown or data.swaps is None:
        return None
    swaps, rows = data.swaps, min(rows, len(data.swaps.regions))
    sheet = Sheet(["region", "other surroundings", "other content", "moved"], rows)
    for row in range(rows):
        sheet.label(row, f"picture {row + 1}")
        tiles = (
            (data.queries.pixels[swaps.images[row]], swaps.boxes[row]),
            (swaps.other_surroundings[row], swaps.boxes[row]),
            (swaps.other_content[row], swaps.boxes[row]),
            (swaps.moved[row], swaps.moved_boxes[row]),
        )
        for column, (pixels, box) in enumerate(tiles):
            sheet.put(row, column, as_pixels(pixels), boxes=[(box, BOX)])
    return sheet.image


def draw_directions(models: Sequence[ModelResult], data: ProbeData, columns: int = 4) -> Image.Image | None:
    """Features of the last stage as false colours, as they are and behind the model's debias layer."""
    shown = [model for model in models if model.debias is not None and model.debias.count + model.debias.strength > 0]
    if not shown:
        return None
    columns = min(columns, len(data.queries))
    sheet = Sheet(["mean of all pictures", *(f"picture {k + 1}" for k in range(columns))], 1 + 2 * len(shown))
    sheet.label(0, "picture")
    for column in range(columns):
        sheet.put(0, column + 1, as_pixels(data.queries.pixels[column]))
    for number, model in enumerate(shown):
        assert model.debias is not None
        features = model.features.queries[model.debias.stage]
        weight, bias = model.debias.layer.weight[:, :, 0, 0], model.debias.layer.bias
        behind = F.linear(features.cells, weight, bias)
        sides = (("as it is", features.cells), ("behind the layer", behind))
        for step, (note, cells) in enumerate(sides):
            row = 1 + 2 * number + step
            sheet.label(row, model.name, note)
            # The mean map and single pictures, on one scale.
            every = false_colors(torch.cat([cells, cells.mean(0, keepdim=True)]), features.grid, fitted=len(cells))
            shift = cell_shift(model.model, model.debias.stage, features)
            for column, tile in enumerate([every[-1], *every[:columns]]):
                sheet.put(row, column, lay_cells(tile, shift))
    return sheet.image


def false_colors(cells: Tensor, grid: tuple[int, int], fitted: int | None = None) -> list[Pixels]:
    """Maps (I, L, C) as colours: the three strongest directions of the first `fitted` maps (all by default)."""
    flat = cells[:fitted].flatten(0, 1)
    mean = flat.mean(0)
    axes = torch.linalg.svd((flat - mean)[:: max(1, len(flat) // 500)], full_matrices=False)[2][:3].T
    along = (cells - mean) @ axes
    if along.shape[2] < 3:
        along = F.pad(along, (0, 3 - along.shape[2]))
    spread = along[:fitted].flatten(0, 1).std(0).clamp(min=1e-12)
    scaled = ((along / spread / 4 + 0.5).clamp(0, 1) * 255).round().byte()
    return [part.view(*grid, 3).numpy() for part in scaled]


def as_pixels(pixels: Tensor) -> Pixels:
    """(S, S, 3) of (3, S, S) pixels."""
    return pixels.permute(1, 2, 0).contiguous().numpy()
