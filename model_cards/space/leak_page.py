"""What was found, as a piece of HTML: tiles, pictures and a table. Whatever is not made here is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from leak_views import CommonAnswers, Leaks
from markupsafe import Markup
from PIL import Image, ImageDraw
from torch import Tensor

from modeling_decodepos.diagnosis.report.figures import colorize
from modeling_decodepos.page import MINUS, NO_NUMBER, image_data_uri, message, stat_tile, table, tiles

SHOWN_PX = 480
_BOX, _RIM = "#ffd400", "#1c2330"
_FRAME = Markup('<div class="leaks">{}</div>')
_LEAST_DRIFT = 0.02  # of the feature's length; less is drawn dark


def draw_box(pixels: np.ndarray, box: Tensor, side: int = SHOWN_PX) -> Image.Image:
    """(S, S, 3) pixels, enlarged, with the box on them."""
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    corners = [round(float(value) * side) for value in box]
    unit = max(1, side // 160)
    draw.rectangle(corners, outline=_RIM, width=3 * unit)
    inner = [value + unit for value in corners[:2]] + [value - unit for value in corners[2:]]
    draw.rectangle(inner, outline=_BOX, width=unit)
    return image


def trouble(text: str) -> Markup:
    """A sentence in place of results."""
    return _FRAME.format(message(text, "bad"))


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
                stat_tile("Gradient outside the box", _percent(found.outside[-1]), "0 %: only the box is looked at"),
                stat_tile("Context leak", _number(found.leak[-1]), "0: content alone, 1: surroundings alone"),
                stat_tile("Place read from a blank page", _number(position), "R², 0: not at all, 1: exactly"),
            ]
        ),
        _section(
            "Which pixels the feature answers to",
            "Bright is where a change of pixels would change the box's feature most.",
            [
                _figure(draw_box(heat, box, 320), f"{stage}: {_percent(share)} outside the box")
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
            [_figure(colors, stage) for stage, colors in zip(stages, found.colors, strict=True)],
        ),
        _section("Every stage", "", []),
        table(
            ["stage", "gradient outside", "context leak", "place on a blank page"],
            [
                [stage, _percent(outside), _number(leak), _number(place.value)]
                for stage, outside, leak, place in zip(stages, found.outside, found.leak, common.position, strict=True)
            ],
        ),
        Markup(
            '<p class="note">One box of one picture shows what to look for and proves nothing: decodepos-diagnose '
            "measures the same over many pictures, with intervals, beside random weights and image statistics. {}</p>"
        ).format(f"About this model: {common.model.note}." if common.model.note else ""),
    ]
    return _FRAME.format(Markup("\n").join(parts))


def _warning(common: CommonAnswers) -> Markup:
    verdicts = zip(common.model.stages, common.verdicts, strict=True)
    wrong = "; ".join(f"{stage} is {verdict}" for stage, verdict in verdicts if verdict != "ok")
    said = f"{wrong}: its features hardly follow the picture, and the numbers say little."
    return message(said, "bad") if wrong else Markup("")


def _exchanges(pictures: Tensor, cosines: Tensor, box: Tensor) -> list[Markup]:
    return [
        _figure(draw_box(picture.permute(1, 2, 0).contiguous().numpy(), box, 320), f"{_number(float(cosine))} alike")
        for picture, cosine in zip(pictures, cosines, strict=True)
    ]


def _blank_page(common: CommonAnswers) -> list[Markup]:
    most = float(common.drift.max())
    drift = colorize(common.drift, 0.0, max(most, _LEAST_DRIFT))
    return [_figure(drift, f"distance from the page's mean feature, up to {_percent(most)} of its length")]


def _section(heading: str, text: str, figures: Sequence[Markup]) -> Markup:
    said = Markup("<p>{}</p>").format(text) if text else Markup("")
    return Markup('<h3>{}</h3>{}<div class="views">{}</div>').format(heading, said, Markup("\n").join(figures))


def _figure(picture: np.ndarray | Image.Image, caption: str) -> Markup:
    # Cells of maps stay cells, which the browser enlarges without smoothing; pictures may be compressed.
    pixels, quality = (picture, 88) if isinstance(picture, Image.Image) else (Image.fromarray(picture), None)
    address = image_data_uri(pixels, quality)
    template = Markup('<figure><img src="{}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return template.format(address, caption=caption)


def _percent(share: float | None) -> str:
    return NO_NUMBER if share is None or not math.isfinite(share) else f"{100 * share:.0f} %"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    return f"{value:.2f}".replace("-", MINUS)


STYLE = """
#picture img { width: 100%; height: auto; aspect-ratio: 1; cursor: crosshair; }
.leaks { font-size: 15px; line-height: 1.5; color: var(--body-text-color); }
.leaks p { margin: 0 0 10px; max-width: 72ch; overflow-wrap: anywhere; }
.leaks h3 { margin: 26px 0 4px; font-size: 17px; line-height: 1.3; }
.leaks .note, .leaks figcaption, .leaks .label { font-size: 13px; line-height: 1.4;
  color: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
.leaks .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.leaks .tile { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 10px 12px; }
.leaks .value { font-size: 24px; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.leaks .views { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
.leaks figure { margin: 0; }
.leaks img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 6px; display: block;
  margin: 0 0 4px; }
.leaks .scroll { overflow-x: auto; }
.leaks table, .leaks tr { border: 0 !important; }
.leaks table { border-collapse: collapse; width: 100%; font-size: 14px; }
.leaks th, .leaks td { text-align: left; padding: 5px 14px 5px 0; border: 0;
  border-bottom: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; }
.leaks .message { border: 1px solid var(--border-color-primary); border-left: 4px solid #c2410c; border-radius: 10px;
  padding: 10px 14px; }
.leaks .scroll + .note { margin-top: 14px; }
@media (max-width: 560px) { .leaks .views { grid-template-columns: 1fr 1fr; } }
"""
