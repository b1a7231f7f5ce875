"""Objects of scenes that can be probed, places they can be moved to, and other objects that can stand in for them.

In exact pairs of pictures nothing is pasted: every picture is drawn, and the object's own pixels are the same in all
that show it, but for the rim, which blends in.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from ...data.scenes import FIRST_INDEX, SHAPES, TEXTURES, SceneObject, SceneSpec, sample_object, sample_scene

PAIRS_SPLIT = "exact_pairs"
"""The split of a data set of exact pairs: of each object a row per role, in order, whose id ends in the role."""

PAIR_ROLES = ("as_is", "other_surroundings", "other_content", "moved")

FIRST_GALLERY = FIRST_INDEX["probe"] + 500_000_000
"""Scenes of the probe split from here on are galleries; before, queries."""

# A stream of randomness beside the scenes' own [seed, index]. Above 1: that is the class stream of `scenes`.
_PAIR_STREAM = 2
_SCENES_PER_OBJECT = 32

OBJECT_SIZES = (0.22, 0.44)
"""Diameters of probed objects relative to the scene: large enough to be seen, small enough to have somewhere to go."""

OBJECT_SHAPES = ("disc", "square", "triangle", "cross", "heart")
"""Shapes that fill most of their box. The box of a crescent, ring or star shows as much background as object, so that
even features of nothing but the box would follow the surroundings."""


def find_fitting(spec: SceneSpec) -> list[int]:
    """Numbers of the objects of a scene that may be probed."""
    low, high = (share * spec.size_px for share in OBJECT_SIZES)
    return [
        number
        for number, item in enumerate(spec.objects)
        if low <= item.size_px <= high and item.shape in OBJECT_SHAPES
    ]


def move_inside(item: SceneObject, size_px: int) -> tuple[float, float]:
    """The object's centre, moved as little as needed for all of it to be in the scene."""
    low, high = _bounds(item, size_px)
    x, y = (min(max(value, low), high) for value in item.center)
    return x, y


def sample_elsewhere(rng: np.random.Generator, item: SceneObject, size_px: int) -> tuple[float, float]:
    """A centre whole pixels away, so that the object is drawn with the same bytes; from the farthest quarter."""
    low, high = _bounds(item, size_px)
    steps = [np.arange(math.ceil(low - c), math.floor(high - c) + 1) for c in item.center]
    dx, dy = (axis.ravel() for axis in np.meshgrid(*steps))
    far = np.argsort(dx**2 + dy**2, kind="stable")[len(dx) * 3 // 4 :]
    chosen = rng.choice(far)
    return item.center[0] + float(dx[chosen]), item.center[1] + float(dy[chosen])


def sample_other(rng: np.random.Generator, item: SceneObject) -> SceneObject:
    """An object of another shape, texture and colours, as large and in the same place."""
    shape = SHAPES.index(str(rng.choice([name for name in OBJECT_SHAPES if name != item.shape])))
    texture = (TEXTURES.index(item.texture) + rng.integers(1, len(TEXTURES))) % len(TEXTURES)
    return sample_object(rng, int(shape * len(TEXTURES) + texture), item.center, item.size_px, avoid=item.colors)


@dataclass(frozen=True)
class ProbedObject:
    """An object, what can stand in its place, and two scenes around it."""

    here: SceneSpec  # without the object
    there: SceneSpec  # another scene, with as many neighbours as one has around one of its own objects
    item: SceneObject
    other: SceneObject  # in its place
    moved: SceneObject  # the same object elsewhere

    def pictures(self) -> dict[str, SceneSpec]:
        """The scene of every role; the probed object is the last, and so the front-most."""
        shown = (self.here, self.item), (self.there, self.item), (self.here, self.other), (self.here, self.moved)
        return {role: show(*pair) for role, pair in zip(PAIR_ROLES, shown, strict=True)}


def show(scene: SceneSpec, item: SceneObject) -> SceneSpec:
    """The scene with one more object, in front of all others."""
    return dataclasses.replace(scene, objects=(*scene.objects, item))


def sample_probed(seed: int, index: int, size_px: int) -> ProbedObject:
    """Object number `index` of a seed, from scenes that no split for training or validation has."""
    rng = np.random.default_rng([seed, index, _PAIR_STREAM])
    first = FIRST_INDEX["probe"] + index * _SCENES_PER_OBJECT
    candidates = (sample_scene(seed, first + k, size_px) for k in range(1, _SCENES_PER_OBJECT))
    here, fitting = next((spec, found) for spec in candidates if (found := find_fitting(spec)))
    there = sample_scene(seed, first, size_px)
    number = int(rng.choice(fitting))
    item = dataclasses.replace(here.objects[number], center=move_inside(here.objects[number], size_px))
    other = sample_other(rng, item)
    moved = dataclasses.replace(item, center=sample_elsewhere(rng, item, size_px))
    return ProbedObject(
        dataclasses.replace(here, objects=here.objects[:number] + here.objects[number + 1 :]),
        dataclasses.replace(there, objects=there.objects[:-1]),
        item,
        other,
        moved,
    )


def _bounds(item: SceneObject, size_px: int) -> tuple[int, int]:
    """Where an object's centre may lie on either axis without the object leaving the scene."""
    return math.ceil(item.size_px / 2) + 1, size_px - math.ceil(item.size_px / 2) - 1
