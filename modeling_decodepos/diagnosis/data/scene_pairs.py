"""Objects of scenes that can be probed, places they can be moved to, and other objects that can stand in for them."""

from __future__ import annotations

import math

import numpy as np

from ...scenes import SHAPES, TEXTURES, SceneObject, SceneSpec, sample_object

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


def _bounds(item: SceneObject, size_px: int) -> tuple[int, int]:
    """Where an object's centre may lie on either axis without the object leaving the scene."""
    return math.ceil(item.size_px / 2) + 1, size_px - math.ceil(item.size_px / 2) - 1
