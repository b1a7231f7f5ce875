"""Pictures that answer to a click: what is like one patch to the last stage, and its map in false colours."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ...drawing.page import image_data_uri
from ..models.features import StageFeatures
from ..models.load import FeatureModel
from ..results import Diagnosis
from .figures import RAMP, as_pixels, cell_shift, colorize, false_colors, lay_cells, nearest_cells, similarities

SCRIPT = Markup(Path(__file__).with_name("patches.js").read_text(encoding="utf-8"))  # our own: nothing to escape
PICTURES = 2

_ROW = Markup('<div class="patches scroll" data-ramp="{}">{}</div>')
_FIGURE = Markup(
    '<figure><div class="stack">{}<i class="dot" style="left:{:.1f}%;top:{:.1f}%"></i></div>'
    "<figcaption><strong>{}</strong>{}</figcaption></figure>"
)
_HEAT = Markup(
    '<img src="{}" alt="picture {}"><img class="heat" src="{}" alt="" data-grid="{} {} {} {}" data-cosines="{}">'
)


def show_patches(diagnosis: Diagnosis, pictures: int = PICTURES) -> Markup:
    """A row for each of the first pictures, with two figures of each model; the script answers to clicks."""
    data = diagnosis.data
    chosen = [(k, (0.5, 0.5)) for k in range(min(pictures, len(data.queries)))]
    if data.swaps is not None:
        boxes = data.swaps.boxes[:pictures].double()
        middles = ((boxes[:, :2] + boxes[:, 2:]) / 2).tolist()
        chosen = [(image, (x, y)) for image, (x, y) in zip(data.swaps.images.tolist(), middles, strict=False)]
    rows = []
    for number, place in chosen:
        below = Image.fromarray(as_pixels(data.queries.pixels[number]))
        maps = [(model.model, model.features.queries[-1]) for model in diagnosis.models]
        rows.append(patch_row(maps, number, place, below))
    return Markup("\n").join(rows)


def patch_row(
    maps: Sequence[tuple[FeatureModel, StageFeatures]], number: int, place: tuple[float, float], below: Image.Image
) -> Markup:
    """Two figures of each network's last stage for one of the pictures that its features are of."""
    ramp = "".join(color for _, color in RAMP)
    figures = [_figures(model, features, number, place, below) for model, features in maps]
    return _ROW.format(ramp, Markup("").join(figures))


def _figures(
    model: FeatureModel, features: StageFeatures, number: int, place: tuple[float, float], below: Image.Image
) -> Markup:
    """The picture under the similarity to one place, and its map in false colours."""
    stage = len(model.stages) - 1
    shift, (height, width) = cell_shift(model, stage, features), features.grid
    column, row = (
        int(nearest_cells(np.array(part), count, cells))
        for part, count, cells in zip(place, (width, height), shift, strict=True)
    )
    cosines = similarities(features.cells[number], features.cells.flatten(0, 1).mean(0)).clamp(0, 1)
    heat = colorize(cosines[row * width + column].view(height, width), 0.0, 1.0)
    colors = false_colors(features.cells, features.grid)[number]
    like, directions = (image_data_uri(Image.fromarray(lay_cells(part, shift))) for part in (heat, colors))
    at = [100 * part for part in place]
    similar = _HEAT.format(image_data_uri(below, 86), number + 1, like, height, width, *shift, _pack(cosines))
    captions = (f", {model.stages[stage]}: {text}" for text in ("like the dot", "main directions"))
    layers = similar, Markup('<img src="{}" alt="false colours">').format(directions)
    return Markup("").join(
        _FIGURE.format(layer, *at, model.name, caption) for layer, caption in zip(layers, captions, strict=True)
    )


def _pack(shares: Tensor) -> str:
    """Numbers in [0, 1] as bytes in base64, row by row."""
    return base64.b64encode((shares * 255).round().byte().numpy().tobytes()).decode("ascii")
