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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from modeling_decodepos.data.scenes import CLASS_NAMES, Scene, SceneSpec, render_scene
from modeling_decodepos.diagnosis.data.scene_pairs import sample_probed, show
from modeling_decodepos.diagnosis.measures.context import exchange_cosines
from modeling_decodepos.diagnosis.statistics.estimates import bootstrap_interval
from modeling_decodepos.drawing.sheet import BOX, MUTED, SCALE, Sheet
from training.probes.during import embed

ROLES = ("anchor", "same", "other")
_INTERVAL_STREAM = 2


@dataclass(frozen=True)
class ProbeTriplet:
    """Three scenes; the probed object is the last, and so the front-most, of each."""

    anchor: SceneSpec
    same: SceneSpec
    other: SceneSpec


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured.

    `content_wins` is the share of triplets in which the anchor is closer to `same` than to `other`; a tie counts half.
    1: features are about the object; 0.5: a coin toss; 0: about place and surroundings.
    """

    content_wins: float
    interval: tuple[float, float]  # of it: 95 % bootstrap over triplets
    cosine_same: float  # mean centred cosine of anchor and `same`
    cosine_other: float
    cosines_same: tuple[float, ...]  # of each triplet
    cosines_other: tuple[float, ...]
    seed: int  # of the triplets
    size_px: int  # side of the scenes

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
        own: dict[str, Any] = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        own |= {name: tuple(value) for name, value in own.items() if isinstance(value, list)}
        return cls(**own)


# ---------------------------------------------------------------------------------------------------------- triplets


def sample_triplet(seed: int, index: int, size_px: int = 64) -> ProbeTriplet:
    """Triplet number `index` of the probe `seed`, from scenes that no split for training or validation has."""
    probed = sample_probed(seed, index, size_px)
    return ProbeTriplet(
        anchor=show(probed.here, probed.item),
        same=show(probed.there, probed.moved),
        other=show(probed.here, probed.other),
    )


# ------------------------------------------------------------------------------------------------------- measurement


def probe_model(
    model: nn.Module, *, seed: int = 0, count: int = 256, size_px: int = 64, batch_size: int = 128
) -> ProbeResult:
    """The result of the first `count` triplets of a seed, on scenes of the size that a model was trained on.

    The model is a `DecodePosModel`, or called as one: `embed` says how.
    """
    if count < 2 or batch_size < 1:
        raise ValueError(
            f"count is {count} and batch_size {batch_size}; a probe needs at least 2 triplets and 1 image."
        )
    triplets = [sample_triplet(seed, index, size_px) for index in range(count)]
    specs = [getattr(triplet, role) for triplet in triplets for role in ROLES]
    embeddings = []
    for start in range(0, len(specs), batch_size):
        scenes = [render_scene(spec) for spec in specs[start : start + batch_size]]
        boxes = [torch.from_numpy(scene.boxes[-1:]) for scene in scenes]
        embeddings.append(embed(model, as_pixels(scenes), boxes, batch_size).double())
    return compare_triplets(torch.cat(embeddings).view(count, len(ROLES), -1), seed, size_px)


def as_pixels(scenes: Sequence[Scene]) -> torch.Tensor:
    """(I, 3, S, S) uint8."""
    return torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2)


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
        interval=bootstrap_interval(wins, np.ones(len(wins)), seed=[seed, _INTERVAL_STREAM], rounds=2000),
        cosine_same=float(cosines[0].mean()),
        cosine_other=float(cosines[1].mean()),
        cosines_same=tuple(cosines[0].round(4).tolist()),
        cosines_other=tuple(cosines[1].round(4).tolist()),
        seed=seed,
        size_px=size_px,
    )


# ------------------------------------------------------------------------------------------------------- the picture

_TITLES = {"anchor": "anchor", "same": "same object elsewhere", "other": "other object in its place"}


def draw_probe(before: ProbeResult | None, after: ProbeResult | None, *, rows: int = 3) -> Image.Image:
    """The before/after picture: the first `rows` triplets, never chosen ones, with both cosines as numbers and bars.

    Both results are of the same triplets; one of them may be missing.
    """
    named = (("before", before, "#9aa4b5"), ("after", after, "#2563eb"))
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
    sheet = Sheet([_TITLES[role] for role in ROLES], rows, tile=256, gap=30, left=30, below=100)
    enlarged = sheet.tile * SCALE % size_px == 0  # by a whole number: every pixel can be seen
    for row in range(rows):
        triplet = sample_triplet(seed, row, size_px)
        for column, role in enumerate(ROLES):
            spec: SceneSpec = getattr(triplet, role)
            scene, name = render_scene(spec), CLASS_NAMES[spec.objects[-1].class_index]
            sheet.put(row, column, scene.pixels, name, [(scene.boxes[-1], BOX)], smooth=not enlarged)
        left, top = sheet.corner(row, 0)
        for line, (name, result, color) in enumerate(measured, start=1):
            y = top + sheet.tile + 10 + 22 * line
            cosines = result.cosines_same[row], result.cosines_other[row]
            verdict = "content wins" if cosines[0] > cosines[1] else "place and surroundings win"
            sheet.text(left, y, f"{name}: {'a tie' if cosines[0] == cosines[1] else verdict}")
            for column, cosine in enumerate(cosines, start=1):
                _draw_bar(sheet, sheet.corner(row, column)[0], y, name, cosine, color)
    return sheet.image


def _draw_bar(sheet: Sheet, left: int, top: int, name: str, cosine: float, color: str) -> None:
    """One line: a name, a bar from zero on the axis from -1 to 1, and the number."""
    start, end = left + 52, left + sheet.tile - 48
    zero, reach = (start + end) / 2, (end - start) / 2
    sheet.text(left, top, name, MUTED)
    sheet.bar(start, top + 4, end, top + 13, "#eef0f4")
    x = zero + max(-1.0, min(1.0, cosine)) * reach
    sheet.bar(min(zero, x), top + 4, max(zero, x), top + 13, color)
    sheet.bar(zero, top + 1, zero + 0.5, top + 16, MUTED)
    sheet.text(left + sheet.tile, top, f"{cosine:+.2f}", anchor="ra")


if __name__ == "__main__":
    sys.exit(
        "This module is no command: a run makes this probe where its recipe sets probe_count. To measure any model:\n"
        "  decodepos-diagnose MODEL --output DIR"
    )
