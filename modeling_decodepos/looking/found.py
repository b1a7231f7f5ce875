"""What leaks into the feature of a box, as a piece of HTML: tiles, pictures and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw
from torch import Tensor

from ..diagnosis.report.figures import as_pixels, colorize
from ..drawing.page import MINUS, NO_NUMBER, PERCENT, image_data_uri, message, stat_tile, table, tiles
from .leaks import CommonAnswers, Leaks

_BOX, _RIM = "#ffd400", "#1c2330"
FRAME = Markup('<div class="leaks">{}</div>')
_LEAST_DRIFT = 0.02  # of the feature's length; less is drawn dark


def draw_box(pixels: np.ndarray, box: Tensor, side: int) -> Image.Image:
    """(S, S, 3) pixels, enlarged, with the box on them."""
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    corners = [round(float(value) * side) for value in box]
    unit = max(1, side // 160)
    draw.rectangle(corners, outline=_RIM, width=3 * unit)
    inner = [value + unit for value in corners[:2]] + [value - unit for value in corners[2:]]
    draw.rectangle(inner, outline=_BOX, width=unit)
    return image


def results(common: CommonAnswers, found: Leaks, view: Tensor, box: Tensor) -> Markup:
    """Everything that was found about one box."""
    stages = common.model.stages
    position = common.position[-1].value
    parts = [
        Markup("<p>Model: <b>{}</b>. The numbers are of its last stage, {}.</p>").format(
            common.model.name, stages[-1]
        ),
        _warning(common),
        tiles(
            [
                stat_tile("Gradient outside the box", format_share(found.outside[-1]), "0 %: the box alone counts"),
                stat_tile("Context leak", format_value(found.leak[-1]), "0: content alone, 1: surroundings alone"),
                stat_tile("Place read from a blank page", format_value(position), "R², 0: not at all, 1: exactly"),
            ]
        ),
        _section(
            "Which pixels the feature answers to",
            "Bright is where a change of pixels would change the box's feature most.",
            [
                show_figure(draw_box(heat, box, 320), f"{stage}: {format_share(share)} outside the box")
                for stage, heat, share in zip(stages, found.heat, found.outside, strict=True)
            ],
        ),
        _section(
            "Other surroundings, same content",
            "How alike the box's feature stays before drawn scenes: 1 is the same, 0 no more alike than chance. High "
            "is good.",
            _exchanges(found.recontextualised, found.same_content[-1], box),
        ),
        _section(
            "Same surroundings, other content",
            "How alike it stays when something else is in the box. High means that the surroundings speak.",
            _exchanges(found.refilled, found.same_surroundings[-1], box),
        ),
        _section(
            "A blank page",
            "There is nothing to see on it, so whatever tells its places apart is the network's own doing. The table "
            "below says how well the place can be read from features, linearly.",
            _blank_page(common),
        ),
        _section(
            "Features as colours",
            "The three strongest directions of the picture's features. Borders that stand out, or a slow change from "
            "side to side, are place and not content.",
            [show_figure(colors, stage) for stage, colors in zip(stages, found.colors, strict=True)],
        ),
        _section("Every stage", "", []),
        table(
            ["stage", "gradient outside", "context leak", "place on a blank page"],
            [
                [stage, format_share(outside), format_value(leak), format_value(place.value)]
                for stage, outside, leak, place in zip(stages, found.outside, found.leak, common.position, strict=True)
            ],
        ),
        Markup(
            '<p class="note">One box of one picture shows what to look for and proves nothing: decodepos-diagnose '
            "measures the same over many pictures, with intervals, beside random weights and image statistics. {}</p>"
        ).format(f"About this model: {common.model.note}." if common.model.note else ""),
    ]
    return FRAME.format(Markup("\n").join(parts))


def _warning(common: CommonAnswers) -> Markup:
    verdicts = zip(common.model.stages, common.verdicts, strict=True)
    wrong = "; ".join(f"{stage} is {verdict}" for stage, verdict in verdicts if verdict != "ok")
    said = f"{wrong}: its features hardly follow the picture, and the numbers say little."
    return message(said, "bad") if wrong else Markup("")


def _exchanges(pictures: Tensor, cosines: Tensor, box: Tensor) -> list[Markup]:
    drawn = [draw_box(as_pixels(picture), box, 320) for picture in pictures]
    alike = [f"{format_value(cosine)} alike" for cosine in cosines.tolist()]
    return [show_figure(picture, caption) for picture, caption in zip(drawn, alike, strict=True)]


def _blank_page(common: CommonAnswers) -> list[Markup]:
    most = float(common.drift.max())
    drift = colorize(common.drift, 0.0, max(most, _LEAST_DRIFT))
    return [show_figure(drift, f"distance from the page's mean feature, up to {format_share(most)} of its length")]


def _section(heading: str, text: str, shown: Sequence[Markup]) -> Markup:
    said = Markup("<p>{}</p>").format(text) if text else Markup("")
    return Markup("<h3>{}</h3>{}{}").format(heading, said, figures(shown))


def figures(shown: Sequence[Markup]) -> Markup:
    """Figures side by side, as many as fit."""
    return Markup('<div class="views">{}</div>').format(Markup("\n").join(shown))


def show_figure(picture: np.ndarray | Image.Image, caption: str) -> Markup:
    """A picture with what it shows below."""
    # Cells of maps stay cells, which the browser enlarges without smoothing; pictures may be compressed.
    pixels, quality = (picture, 88) if isinstance(picture, Image.Image) else (Image.fromarray(picture), None)
    address = image_data_uri(pixels, quality)
    template = Markup('<figure><img src="{}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return template.format(address, caption=caption)


def format_share(share: float | None) -> str:
    """In per cent, for people."""
    return NO_NUMBER if share is None or not math.isfinite(share) else f"{100 * share:.0f}{PERCENT}"


def format_value(value: float | None) -> str:
    """With two decimals, for people."""
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    return f"{value:.2f}".replace("-", MINUS)
