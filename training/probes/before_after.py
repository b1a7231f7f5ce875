"""The exact before/after probe: is a region's feature about the object in it, or about its place and surroundings?

One triplet of scenes, drawn object by object, is one question:

    anchor   an object in a scene
    same     that very object in another place, before another background, among other neighbours
    other    another object in the anchor's place, in the anchor's surroundings

Content wins a triplet if the anchor's feature is closer to `same` than to `other`.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from modeling_decodepos.diagnosis.data.scene_pairs import find_fitting, move_inside, sample_elsewhere, sample_other
from modeling_decodepos.diagnosis.measures.context import exchange_cosines
from modeling_decodepos.diagnosis.statistics.estimates import bootstrap_interval
from modeling_decodepos.scenes import CLASS_NAMES, FIRST_INDEX, SceneSpec, render_scene, sample_scene
from training.probes.during import evaluating
from training.views.normalise import normalise

ROLES = ("anchor", "same", "other")
# A stream of randomness beside the scenes' own [seed, index]. Above 1: that is the class stream of `scenes`.
_PROBE_STREAM = 2
_SCENES_PER_TRIPLET = 32


@dataclass(frozen=True)
class ProbeTriplet:
    """Three scenes; the probed object is the last, and so the front-most, of each."""

    anchor: SceneSpec
    same: SceneSpec
    other: SceneSpec


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured.

    Attributes:
        content_wins: Share of triplets in which the anchor is closer to `same` than to `other`; a tie counts half. 1:
            features are about the object; 0.5: a coin toss; 0: about place and surroundings.
        interval: 95 % bootstrap interval of `content_wins` over triplets.
        cosine_same: Mean centred cosine of anchor and `same`.
        cosine_other: Mean centred cosine of anchor and `other`.
        cosines_same: That cosine of each triplet.
        cosines_other: That cosine of each triplet.
        seed: What the triplets were drawn from.
        size_px: Side of the scenes.
    """

    content_wins: float
    interval: tuple[float, float]
    cosine_same: float
    cosine_other: float
    cosines_same: tuple[float, ...]
    cosines_other: tuple[float, ...]
    seed: int
    size_px: int

    @property
    def count(self) -> int:
        """Number of triplets."""
        return len(self.cosines_same)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON takes them."""
        return {"count": self.count} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProbeResult:
        """The result that `to_dict` wrote."""
        fields: dict[str, Any] = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        for name in ("interval", "cosines_same", "cosines_other"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


# ---------------------------------------------------------------------------------------------------------- triplets


def sample_triplet(seed: int, index: int, size_px: int = 64) -> ProbeTriplet:
    """Triplet number `index` of the probe `seed`, from scenes that no split for training or validation has."""
    rng = np.random.default_rng([seed, index, _PROBE_STREAM])
    first = FIRST_INDEX["probe"] + index * _SCENES_PER_TRIPLET
    candidates = (sample_scene(seed, first + k, size_px) for k in range(1, _SCENES_PER_TRIPLET))
    here, fitting = next((spec, found) for spec in candidates if (found := find_fitting(spec)))
    there = sample_scene(seed, first, size_px)
    number = int(rng.choice(fitting))
    item = dataclasses.replace(here.objects[number], center=move_inside(here.objects[number], size_px))
    other = sample_other(rng, item)
    neighbours = here.objects[:number] + here.objects[number + 1 :]
    # As many neighbours there as a scene has around one of its own objects.
    others_there = there.objects[: len(there.objects) - 1]
    moved = dataclasses.replace(item, center=sample_elsewhere(rng, item, size_px))
    return ProbeTriplet(
        anchor=dataclasses.replace(here, objects=(*neighbours, item)),
        same=dataclasses.replace(there, objects=(*others_there, moved)),
        other=dataclasses.replace(here, objects=(*neighbours, other)),
    )


# ------------------------------------------------------------------------------------------------------- measurement


@torch.no_grad()
def probe_model(
    model: nn.Module, *, seed: int = 0, count: int = 256, size_px: int = 64, batch_size: int = 128
) -> ProbeResult:
    """The result of `count` triplets for a model that embeds regions.

    The model runs in evaluation mode and is left as it was found.

    Args:
        model: A `DecodePosModel`, or anything else that is called as `model(pixel_values, regions=boxes)` and returns
            `region_embeddings` (B, R, D).
        seed: The same seed gives the same triplets.
        count: Number of triplets.
        size_px: Side of the scenes; the size of the views the model was trained on.
        batch_size: Images per forward pass.
    """
    if count < 2 or batch_size < 1:
        raise ValueError(
            f"count is {count} and batch_size {batch_size}; a probe needs at least 2 triplets and 1 image."
        )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    specs = [getattr(triplet, role) for triplet in sample_triplets(seed, count, size_px) for role in ROLES]
    embeddings = []
    with evaluating(model):
        for start in range(0, len(specs), batch_size):
            scenes = [render_scene(spec) for spec in specs[start : start + batch_size]]
            pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).to(device).permute(0, 3, 1, 2)
            boxes = torch.from_numpy(np.stack([scene.boxes[-1:] for scene in scenes])).to(device)
            output = model(normalise(pixels), regions=boxes)
            embeddings.append(output.region_embeddings[:, 0].double().cpu())
    return compare_triplets(torch.cat(embeddings).view(count, len(ROLES), -1), seed, size_px)


def sample_triplets(seed: int, count: int, size_px: int) -> list[ProbeTriplet]:
    """The first `count` triplets of the probe `seed`."""
    return [sample_triplet(seed, index, size_px) for index in range(count)]


def compare_triplets(embeddings: torch.Tensor, seed: int, size_px: int) -> ProbeResult:
    """The result for embeddings (N, 3, D) of N triplets in the order of `ROLES`.

    Cosines are taken after subtracting the mean of all embeddings: what all regions share says nothing about any one.
    """
    if not torch.isfinite(embeddings).all():
        raise ValueError("the model's region embeddings hold NaN or infinite values: it cannot be probed.")
    cosines = [part.numpy() for part in exchange_cosines(*embeddings.unbind(1))]
    wins = np.where(cosines[0] == cosines[1], 0.5, cosines[0] > cosines[1])
    return ProbeResult(
        content_wins=float(wins.mean()),
        interval=bootstrap_interval(wins, np.ones(len(wins)), seed=[seed, _PROBE_STREAM], rounds=2000),
        cosine_same=float(cosines[0].mean()),
        cosine_other=float(cosines[1].mean()),
        cosines_same=tuple(cosines[0].round(4).tolist()),
        cosines_other=tuple(cosines[1].round(4).tolist()),
        seed=seed,
        size_px=size_px,
    )


# ------------------------------------------------------------------------------------------------------- the picture

_SCALE = 2  # drawn for screens with two pixels per CSS pixel; every length below is a CSS pixel
_WIDTH, _MARGIN, _PANEL = 900, 28, 256
_GAP = (_WIDTH - 2 * _MARGIN - 3 * _PANEL) // 2
_TOP, _ROW = 58, _PANEL + 92
_INK, _MUTED, _GROOVE = "#1c2330", "#667085", "#eef0f4"
_BEFORE, _AFTER, _BOX = "#9aa4b5", "#2563eb", "#ffd400"
_TITLES = {"anchor": "anchor", "same": "same object elsewhere", "other": "other object in its place"}


def draw_probe(before: ProbeResult | None, after: ProbeResult | None, *, rows: int = 3) -> Image.Image:
    """The before/after picture: the first `rows` triplets, never chosen ones, with both cosines as numbers and bars.

    Args:
        before: Result of the untrained network; None if it was not measured.
        after: Result of the trained network on the same triplets; None if there is none yet.
        rows: Number of triplets to draw.
    """
    named = (("before", before, _BEFORE), ("after", after, _AFTER))
    measured = [(name, result, color) for name, result, color in named if result is not None]
    if not measured:
        raise ValueError("there is neither a result from before nor one from after: nothing to draw.")
    kinds = {(result.seed, result.size_px, result.count) for _, result, _ in measured}
    if len(kinds) > 1:
        raise ValueError(
            f"the results are of different probes (seed, size_px, count): {sorted(kinds)}. Measure both with the same."
        )
    seed, size_px, count = kinds.pop()
    rows = min(rows, count)
    canvas = _Canvas(_WIDTH, _TOP + rows * _ROW)
    for column, role in enumerate(ROLES):
        canvas.text(_column_left(column), 24, _TITLES[role], _INK, 16)
    for row, triplet in enumerate(sample_triplets(seed, rows, size_px)):
        top = _TOP + row * _ROW
        for column, role in enumerate(ROLES):
            _draw_panel(canvas, _column_left(column), top, getattr(triplet, role))
        below = top + _PANEL + 10
        for column, role in enumerate(ROLES):
            name = CLASS_NAMES[getattr(triplet, role).objects[-1].class_index]
            canvas.text(_column_left(column), below, name, _MUTED, 13)
        for line, (name, result, color) in enumerate(measured):
            y = below + 22 * (line + 1)
            same, other = result.cosines_same[row], result.cosines_other[row]
            verdict = "content wins" if same > other else "a tie" if same == other else "place and surroundings win"
            canvas.text(_column_left(0), y, f"{name}: {verdict}", _INK, 13)
            for column, cosine in ((1, same), (2, other)):
                _draw_bar(canvas, _column_left(column), y, name, cosine, color)
    return canvas.image


class _Canvas:
    """A white picture that is drawn on in CSS pixels."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, color: str, size: int, anchor: str = "la") -> None:
        font = ImageFont.load_default(size=size * _SCALE)
        self.draw.text((x * _SCALE, y * _SCALE), text, fill=color, font=font, anchor=anchor)

    def rectangle(self, box: tuple[float, float, float, float], **style: Any) -> None:
        self.draw.rectangle([round(value * _SCALE) for value in box], **style)


def _column_left(column: int) -> int:
    return _MARGIN + column * (_PANEL + _GAP)


def _draw_panel(canvas: _Canvas, left: int, top: int, spec: SceneSpec) -> None:
    """A scene as the network sees it, enlarged, with the box of its last object."""
    scene = render_scene(spec)
    side = _PANEL * _SCALE
    smooth = Image.Resampling.NEAREST if side % spec.size_px == 0 else Image.Resampling.LANCZOS
    canvas.image.paste(Image.fromarray(scene.pixels).resize((side, side), smooth), (left * _SCALE, top * _SCALE))
    x1, y1, x2, y2 = (float(value) * _PANEL for value in scene.boxes[-1])
    x1, y1, x2, y2 = left + x1 - 3, top + y1 - 3, left + x2 + 2, top + y2 + 2
    canvas.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_INK, width=4 * _SCALE)
    canvas.rectangle((x1, y1, x2, y2), outline=_BOX, width=2 * _SCALE)


def _draw_bar(canvas: _Canvas, left: int, top: int, name: str, cosine: float, color: str) -> None:
    """One line: a name, a bar from zero on the axis from -1 to 1, and the number."""
    start, end = left + 52, left + _PANEL - 48
    zero, reach = (start + end) / 2, (end - start) / 2
    canvas.text(left, top, name, _MUTED, 13)
    canvas.rectangle((start, top + 4, end, top + 13), fill=_GROOVE)
    x = zero + max(-1.0, min(1.0, cosine)) * reach
    canvas.rectangle((min(zero, x), top + 4, max(zero, x), top + 13), fill=color)
    canvas.rectangle((zero, top + 1, zero + 0.5, top + 16), fill=_MUTED)
    canvas.text(left + _PANEL, top, f"{cosine:+.2f}", _INK, 13, anchor="ra")


if __name__ == "__main__":
    sys.exit(
        "This module is no command: a run makes this probe where its recipe sets probe_count. To measure any model:\n"
        "  decodepos-diagnose MODEL --output DIR"
    )
