"""Procedural multi-object scenes: what the embedded data set and the exact probes of the diagnosis are drawn with.

A scene is a `SceneSpec`: a background and a list of objects, back to front. The class of an object is its shape and
its texture ("striped heart"); colour, size, rotation and place are nuisance. `sample_scene` draws a spec from
(seed, index) and nothing else; `render_scene` turns a spec into pixels, boxes, classes and maps.

Exact probes: `dataclasses.replace` gives a changed spec. What an object looks like is a function of the object alone:
it casts its shadow on the background and never on another object, and its light goes by its own centre. So after a
move by whole pixels, or before another background, every pixel that an object fills alone is the same byte as before
(`Scene.interior` marks these pixels). Only antialiased rims, about one pixel wide, mix two things.

Reproducible bytes: drawing uses only `+ - * / sqrt floor abs min max` on float32 arrays, which IEEE 754 defines to the
last bit, so two machines with different vector units draw the same pixels. Literals beside an array are float32.

Pixels are (H, W, 3) uint8 with H = W = `size_px`. Boxes are xyxy in [0, 1] of the scene. N counts objects.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
FloatArray = NDArray[np.float32]

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
TEXTURES = ("plain", "striped", "dotted", "checked", "marbled")
CLASS_NAMES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
"""Class k of a scene is `CLASS_NAMES[k]`; its value in a segmentation map is k + 1."""

BACKGROUNDS = ("gradient", "clouds", "stripes", "mosaic", "contours", "weave")
"""Kinds that `sample_background` draws. A `Background` may also be "uniform": one colour, for probes only."""

SCENES_VERSION = 1
"""Goes up with any change of the pixels that (seed, index) stands for; data sets carry it in their recipe."""

FIRST_INDEX = {"train": 0, "validation": 1_000_000_000, "probe": 2_000_000_000}
"""Scene indices of the splits start here, so that no scene is in two of them for any seed."""

MIN_OBJECTS, MAX_OBJECTS = 2, 7
MIN_VISIBLE = 0.35
"""Every sampled object shows at least this share of its pixels."""

# (main colour, second colour) of an object; the second differs enough in lightness for a texture to be read.
_OBJECT_COLORS = (
    ("e4572e", "ffe8c9"), ("f3a712", "7a3b00"), ("2a6f97", "cfe9f7"), ("1b998b", "e3f7d4"), ("d81e5b", "ffd9e4"),
    ("6a4c93", "e9ddfb"), ("fcca46", "3d5a80"), ("e76f51", "264653"), ("2b9348", "eef7a8"), ("ff8fab", "6d1a45"),
    ("00b4d8", "03325c"), ("f4f1de", "b5442c"), ("9bc53d", "2d4a12"), ("c1121f", "fdf0d5"), ("3a0ca3", "9fd8ff"),
    ("ffb4a2", "7d3c59"), ("40916c", "f7e8a4"), ("f77f00", "fff1d0"), ("8ecae6", "1d3557"), ("b5179e", "ffd6f5"),
    ("f6e27a", "8c4a1f"), ("e5e5f0", "3b3f8f"), ("a44a3f", "f6d8b8"), ("06d6a0", "0b4f52"),
)  # fmt: skip

# Three muted colours of a background: two ends and an accent.
_BACKGROUND_COLORS = (
    ("d9cbb2", "b8a58a", "ece2d0"), ("a9b8a2", "7d937f", "cbd5c0"), ("93a8b8", "64798f", "bccbd4"),
    ("55616e", "363f4b", "74808c"), ("bdb2cc", "9186a8", "d9d0e3"), ("c79d86", "a1745f", "dfc0ad"),
    ("5f7a6c", "3c5349", "86a091"), ("37405e", "222943", "545f84"), ("e3dccf", "c8c3ba", "f3efe6"),
    ("a38f8f", "786567", "c4b4b2"), ("7fa3a1", "537a7b", "a9c4c0"), ("8c8a6a", "65643f", "b1af8c"),
    ("6d5a70", "4a3b50", "93809a"), ("c9bd93", "a1935f", "e2d9b8"), ("9fb3c9", "cbb9b7", "e3dcd6"),
    ("7d6a58", "55463a", "a3907c"),
)  # fmt: skip

# A stream of randomness beside the scene's own [seed, index]. Never 0: numpy seeds [s, i, 0] like [s, i].
_CLASS_STREAM = 1

_CENTER_STEPS = 64  # centres lie on this fraction of a pixel, so that adding whole pixels to one loses no bit
_SHADOW_STRENGTH = 0.38


def _check_kind(name: str, value: str, kinds: Sequence[str]) -> None:
    if value not in kinds:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(kinds)}.")


def _check_colors(colors: Sequence[Color], count: int) -> None:
    parts = [part for color in colors if isinstance(color, tuple) and len(color) == 3 for part in color]
    if len(colors) != count or len(parts) != 3 * count or not all(isinstance(c, int) and 0 <= c <= 255 for c in parts):
        raise ValueError(f"colors is {colors!r}, expected {count} (r, g, b) tuples of integers from 0 to 255.")


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene."""

    shape: str
    texture: str
    colors: tuple[Color, Color]  # a plain object shows only the first
    center: tuple[float, float]  # (x, y) in pixels from the top left corner; rounded to 1/64 px when drawn
    size_px: float  # diameter of the circle that the shape fits into
    angle: float = 0.0  # radians, clockwise on the screen; the texture turns with the shape
    seed: int = 0  # fixes the fine details of the texture (phase, spacing, veins)

    def __post_init__(self) -> None:
        _check_kind("shape", self.shape, SHAPES)
        _check_kind("texture", self.texture, TEXTURES)
        _check_colors(self.colors, 2)
        if len(self.center) != 2 or not all(map(math.isfinite, self.center)):
            raise ValueError(f"center is {self.center!r}, expected two finite numbers (x, y) in pixels.")
        if not (math.isfinite(self.size_px) and self.size_px >= 4):
            raise ValueError(f"size_px of an object is {self.size_px!r}, expected at least 4 pixels.")
        if not math.isfinite(self.angle):
            raise ValueError(f"angle is {self.angle!r}, expected a finite number of radians.")

    @property
    def class_index(self) -> int:
        """Position of this object's class in `CLASS_NAMES`."""
        return SHAPES.index(self.shape) * len(TEXTURES) + TEXTURES.index(self.texture)


@dataclass(frozen=True)
class Background:
    """What lies behind the objects."""

    kind: str  # one of `BACKGROUNDS`, or "uniform" for one colour without texture, grain or shadows
    colors: tuple[Color, Color, Color]  # two ends and an accent; "uniform" shows only the first
    seed: int = 0  # fixes everything else: directions, scales, places

    def __post_init__(self) -> None:
        _check_kind("kind of a background", self.kind, (*BACKGROUNDS, "uniform"))
        _check_colors(self.colors, 3)


@dataclass(frozen=True)
class SceneSpec:
    """All that `render_scene` needs: image side in pixels, background, objects in painter's order (last in front)."""

    size_px: int
    background: Background
    objects: tuple[SceneObject, ...]

    def __post_init__(self) -> None:
        if self.size_px < 16:
            raise ValueError(f"size_px of a scene is {self.size_px}, expected at least 16 pixels.")
        if len(self.objects) > 254:  # their numbers are stored in a uint8 map
            raise ValueError(f"The scene has {len(self.objects)} objects, expected at most 254.")


@dataclass(frozen=True)
class Scene:
    """A drawn scene."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    # (N, 4) xyxy in [0, 1]. Amodal: the tight extent of each object's whole shape inside the image, hidden parts
    # included; what lies beyond the image border does not count.
    boxes: FloatArray
    classes: NDArray[np.int64]  # (N,) positions in `CLASS_NAMES`
    segmentation: NDArray[np.uint8]  # (H, W) 0 = background, else the class + 1 of the front-most object
    instances: NDArray[np.uint8]  # (H, W) 0 = background, else the number + 1 of the front-most object in the spec
    # (H, W) true where one object fills the whole pixel and nothing in front of it touches it: the bytes there depend
    # on that object (`instances`) alone.
    interior: NDArray[np.bool_]
    visible: FloatArray  # (N,) share of each object's pixels that is seen: neither hidden nor beyond the border


# ----------------------------------------------------------------------------------------------------------- drawing


def render_scene(spec: SceneSpec) -> Scene:
    """Pixels, amodal boxes, classes and maps of a spec; the same spec always gives the same bytes.

    Example:
        >>> scene = render_scene(sample_scene(seed=0, index=0))
        >>> scene.pixels.shape, CLASS_NAMES[scene.classes[0]]
    """
    size = spec.size_px
    outlines = [_outline(item) for item in spec.objects]
    canvas = _draw_background(spec.background, size)
    if spec.background.kind != "uniform":
        for item, outline in zip(spec.objects, outlines, strict=True):
            _cast_shadow(canvas, item, outline)

    layout = _Layout(np.zeros((size, size), np.uint8))
    interior = np.zeros((size, size), np.bool_)
    for number, (item, outline) in enumerate(zip(spec.objects, outlines, strict=True)):
        rows, columns, window_rows, window_columns = outline.placed_in(size)
        coverage = np.clip(0.5 - outline.distance_px, 0.0, 1.0)
        # Two products: where coverage is exactly 1 nothing of the canvas is left, not even a rounding error.
        part = coverage[window_rows, window_columns]
        colors = _draw_surface(item, outline)[:, window_rows, window_columns]
        canvas[:, rows, columns] = canvas[:, rows, columns] * (1.0 - part) + colors * part
        interior[rows, columns] = (part == 1.0) | (interior[rows, columns] & (part == 0.0))
        if (covered := layout.with_in_front(outline)) is None:
            raise ValueError(
                f"Object {number} ({CLASS_NAMES[item.class_index]}, {item.size_px:g} px) at center {item.center} "
                f"draws no pixel inside the {size} px image. Give it a center inside the image."
            )
        layout = covered

    classes = np.array([item.class_index for item in spec.objects], np.int64)
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Scene(
        pixels=np.ascontiguousarray(pixels),
        boxes=np.array(layout.boxes, np.float32).reshape(-1, 4) / np.float32(size),
        classes=classes,
        segmentation=np.concatenate([[0], classes + 1]).astype(np.uint8)[layout.front],
        instances=layout.front,
        interior=interior,
        visible=np.divide(layout.seen, layout.areas, dtype=np.float32),
    )


@dataclass(frozen=True)
class _Outline:
    """Signed distance to an object's edge on a window around it, and the frames the object is drawn in.

    `left`, `top`: pixel of the image under the window's first one. `dx`, `dy`: pixels from the object's centre,
    upright. `u`, `v`: the same turned with the object, in radii. `distance_px` is negative inside. All float32.
    """

    left: int
    top: int
    dx: FloatArray
    dy: FloatArray
    u: FloatArray
    v: FloatArray
    distance_px: FloatArray

    def placed_in(self, size: int, shift: int = 0) -> tuple[slice, slice, slice, slice]:
        """Rows and columns of the image, then of the window, that meet when the window moves by `shift` both ways."""
        spans = []
        for start, length in ((self.top + shift, len(self.distance_px)), (self.left + shift, len(self.distance_px))):
            low = min(max(start, 0), size)
            high = max(min(start + length, size), low)
            spans.append((slice(low, high), slice(low - start, high - start)))
        (rows, window_rows), (columns, window_columns) = spans
        return rows, columns, window_rows, window_columns


def _shadow_px(item: SceneObject) -> tuple[int, float]:
    """Offset and softness of an object's shadow in pixels; the offset is whole, so that a moved shadow is the same."""
    return max(1, round(0.06 * item.size_px)), max(2.0, 0.16 * item.size_px)


def _outline(item: SceneObject) -> _Outline:
    radius = np.float32(item.size_px / 2)
    snapped = [round(c * _CENTER_STEPS) / _CENTER_STEPS for c in item.center]
    whole = [math.floor(c) for c in snapped]
    offset, softness = _shadow_px(item)
    half = math.ceil(item.size_px / 2 + max(softness, offset)) + 2
    steps = np.arange(-half, half + 1, dtype=np.float32) + 0.5
    dx = (steps - np.float32(snapped[0] - whole[0]))[None, :]
    dy = (steps - np.float32(snapped[1] - whole[1]))[:, None]
    cosine, sine = np.float32(math.cos(item.angle)) / radius, np.float32(math.sin(item.angle)) / radius
    u, v = dx * cosine + dy * sine, dy * cosine - dx * sine
    distance = _DISTANCES[item.shape](u, v) * radius
    return _Outline(whole[0] - half, whole[1] - half, dx, dy, u, v, distance)


@dataclass(frozen=True)
class _Layout:
    """Which of some objects is in front at each pixel, and of each whole object its box and number of pixels."""

    front: NDArray[np.uint8]
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    areas: tuple[int, ...] = ()

    def with_in_front(self, outline: _Outline) -> "_Layout | None":
        """The layout with one more object; None where no pixel of the image is its own."""
        rows, columns, window_rows, window_columns = outline.placed_in(len(self.front))
        solid = outline.distance_px <= 0.0  # pixels whose centre it covers
        inside = solid[window_rows, window_columns]
        if not inside.any():
            return None
        front = self.front.copy()
        front[rows, columns][inside] = len(self.areas) + 1
        x, y = np.flatnonzero(inside.any(axis=0)) + columns.start, np.flatnonzero(inside.any(axis=1)) + rows.start
        box = (int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1)
        return _Layout(front, (*self.boxes, box), (*self.areas, int(solid.sum())))

    @property
    def seen(self) -> NDArray[np.int64]:
        """How many pixels of each object nothing hides."""
        return np.bincount(self.front.ravel(), minlength=len(self.areas) + 1)[1:]


def _cast_shadow(canvas: FloatArray, item: SceneObject, outline: _Outline) -> None:
    """Darkens the canvas under one object. Called before any object is painted: no object lies in another's shadow."""
    offset, softness = _shadow_px(item)
    rows, columns, window_rows, window_columns = outline.placed_in(canvas.shape[1], shift=offset)
    distance = outline.distance_px[window_rows, window_columns]
    depth = _smooth(np.clip(0.5 - distance * np.float32(1 / softness), 0.0, 1.0))
    canvas[:, rows, columns] *= 1.0 - np.float32(_SHADOW_STRENGTH) * depth


def _draw_surface(item: SceneObject, outline: _Outline) -> FloatArray:
    """Colours (3, n, n) of an object on its window: texture, light from the top left, rounded rim, soft gloss."""
    radius = np.float32(item.size_px / 2)
    main, second = (np.array(color, np.float32)[:, None, None] for color in item.colors)
    if item.texture == "plain":
        colors = np.broadcast_to(main, (3, *outline.u.shape))
    else:
        mix = _TEXTURES[item.texture](outline.u, outline.v, radius, np.random.default_rng(item.seed))
        colors = main + (second - main) * mix
    x, y = outline.dx / radius, outline.dy / radius
    light = 1.0 - 0.11 * (x + y)
    depth = np.clip(outline.distance_px * np.float32(-1 / max(2.0, 0.11 * item.size_px)), 0.0, 1.0)
    rim = 0.70 + 0.30 * (depth * (2.0 - depth))
    gx, gy = (x + 0.36) * 2, (y + 0.40) * 2
    gloss = np.maximum(0.0, 1.0 - gx * gx - gy * gy)
    return colors * (light * rim) + gloss * gloss * 26.0


# ------------------------------------------------------------------------------------------------------------ shapes
# Each takes the object's frame (u, v) in radii and returns a signed distance in radii, negative inside. The values are
# exact near the edge, which is all that antialiasing and a soft shadow need.


def _sector(u: FloatArray, v: FloatArray, count: int, start: float) -> tuple[FloatArray, FloatArray]:
    """Coordinates along and across the nearest of `count` directions spread evenly over the circle from `start`."""
    along = np.full(np.broadcast(u, v).shape, -np.inf, np.float32)
    for k in range(count):
        angle = start + 2 * math.pi * k / count
        np.maximum(along, u * np.float32(math.cos(angle)) + v * np.float32(math.sin(angle)), out=along)
    across = np.sqrt(np.maximum(u * u + v * v - along * along, 0.0))
    return along, across


def _disc(u: FloatArray, v: FloatArray, radius: float = 0.88) -> FloatArray:
    return np.sqrt(u * u + v * v) - np.float32(radius)


def _rectangle(u: FloatArray, v: FloatArray, half_u: float, half_v: float, corner: float = 0.05) -> FloatArray:
    x = np.abs(u) - np.float32(half_u - corner)
    y = np.abs(v) - np.float32(half_v - corner)
    outside_x, outside_y = np.maximum(x, 0.0), np.maximum(y, 0.0)
    outside = np.sqrt(outside_x * outside_x + outside_y * outside_y)
    return outside + np.minimum(np.maximum(x, y), 0.0) - np.float32(corner)


def _triangle(u: FloatArray, v: FloatArray) -> FloatArray:
    inner, corner = 0.53, 0.06
    along, across = _sector(u, v, 3, math.pi / 2)  # a side points down, a corner up
    beyond = np.maximum(across - np.float32((inner - corner) * math.tan(math.pi / 3)), 0.0)
    side = along - np.float32(inner - corner)
    return np.where(beyond > 0.0, np.sqrt(side * side + beyond * beyond), side) - np.float32(corner)


def _star(u: FloatArray, v: FloatArray) -> FloatArray:
    tip, notch, corner = 0.97, 0.45, 0.04
    along, across = _sector(u, v, 5, -math.pi / 2)
    notch_x, notch_y = notch * math.cos(math.pi / 5), notch * math.sin(math.pi / 5)
    length = math.hypot(tip - notch_x, notch_y)
    normal_x, normal_y = np.float32(notch_y / length), np.float32((tip - notch_x) / length)
    x = along - np.float32(tip)
    side = x * normal_x + across * normal_y
    beyond = np.maximum(x * normal_y - across * normal_x, 0.0)  # past the tip, along the edge
    return np.where(beyond > 0.0, np.sqrt(side * side + beyond * beyond), side) - np.float32(corner)


def _heart(u: FloatArray, v: FloatArray) -> FloatArray:
    # A square on its corner with a disc on each of its two upper sides.
    half = np.float32(math.sqrt(0.5))
    y = v - 0.16
    diamond = _rectangle((u + y) * half, (y - u) * half, 0.5, 0.5, corner=0.02)
    lobe_x, lobe_y = np.abs(u) - np.float32(0.5 * math.sqrt(0.5)), y + np.float32(0.5 * math.sqrt(0.5))
    return np.minimum(diamond, _disc(lobe_x, lobe_y, 0.5))


_DISTANCES: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "disc": _disc,
    "square": lambda u, v: _rectangle(u, v, 0.75, 0.75),
    "triangle": _triangle,
    "star": _star,
    "cross": lambda u, v: np.minimum(_rectangle(u, v, 0.92, 0.31), _rectangle(u, v, 0.31, 0.92)),
    "ring": lambda u, v: np.abs(_disc(u, v, 0.66)) - np.float32(0.25),
    "heart": _heart,
    "crescent": lambda u, v: np.maximum(_disc(u, v, 0.92), -_disc(u - 0.46, v, 0.70)),
}

# ---------------------------------------------------------------------------------------------------------- textures
# Each takes the object's frame in radii, the radius in pixels and a generator, and returns the share of the second
# colour, (n, n) in [0, 1]. Edges inside a texture are one pixel wide like those of the shape.


def _smooth(t: FloatArray) -> FloatArray:
    """Smooth step of values in [0, 1]."""
    return t * t * (3.0 - 2.0 * t)


def _wave(x: FloatArray) -> FloatArray:
    """A smooth wave of period 1 between -1 and 1, made of parabolas so that no machine's sine is needed."""
    t = 4.0 * np.abs(x - np.floor(x) - 0.5) - 1.0
    return t * (1.5 - 0.5 * t * t)


def _bands_px(x: FloatArray, radius: np.float32, per_radius: float, phase: float, share: float = 0.5) -> FloatArray:
    """Signed distance in pixels to the edges of bands across x that cover `share` of it; positive on a band."""
    turns = x * np.float32(per_radius) + np.float32(phase)
    into = np.abs(turns - np.floor(turns) - 0.5) - np.float32(0.5 - share / 2)
    return into * (radius / np.float32(per_radius))


def _edge(distance_px: FloatArray) -> FloatArray:
    return np.clip(distance_px + 0.5, 0.0, 1.0)


def _striped(u: FloatArray, v: FloatArray, radius: np.float32, rng: np.random.Generator) -> FloatArray:
    per_radius, phase = rng.uniform(1.7, 2.3), rng.random()
    return _edge(_bands_px(u, radius, per_radius, phase))


def _checked(u: FloatArray, v: FloatArray, radius: np.float32, rng: np.random.Generator) -> FloatArray:
    per_radius = rng.uniform(1.15, 1.5)
    first = _edge(_bands_px(u, radius, per_radius, rng.random()))
    other = _edge(_bands_px(v, radius, per_radius, rng.random()))
    return first + other - 2.0 * first * other


def _dotted(u: FloatArray, v: FloatArray, radius: np.float32, rng: np.random.Generator) -> FloatArray:
    per_radius = np.float32(rng.uniform(1.7, 2.1))
    # Turned by 45 degrees against the shape, which reads as dots where a straight grid reads as a check.
    half = np.float32(math.sqrt(0.5))
    x = (u + v) * (half * per_radius) + np.float32(rng.random())
    y = (v - u) * (half * per_radius) + np.float32(rng.random())
    x, y = x - np.floor(x) - 0.5, y - np.floor(y) - 0.5
    return _edge((0.30 - np.sqrt(x * x + y * y)) * (radius / per_radius))


def _marbled(u: FloatArray, v: FloatArray, radius: np.float32, rng: np.random.Generator) -> FloatArray:
    (a, b, c, d), phases = rng.uniform(-0.6, 0.6, 4).astype(np.float32), rng.random(3).astype(np.float32)
    bend = _wave(u * (0.9 + a) + v * (0.8 + b) + phases[0])
    sway = _wave(v * (1.1 + c) - u * (0.7 + d) + phases[1])
    veins = _wave(0.68 * (u - v) + 0.42 * bend + 0.38 * sway + phases[2])
    return _edge((veins - 0.05) * (radius * 0.13))  # about one pixel wide


_TEXTURES = {"striped": _striped, "dotted": _dotted, "checked": _checked, "marbled": _marbled}

# ------------------------------------------------------------------------------------------------------- backgrounds


def _noise(rng: np.random.Generator, size: int, cells: int) -> FloatArray:
    """Smooth noise (size, size) in [-1, 1] with features of about size / cells pixels."""
    lattice = rng.random((cells + 1, cells + 1), dtype=np.float32) * 2.0 - 1.0
    position = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(cells / size)
    low = np.minimum(position.astype(np.int64), cells - 1)
    t = _smooth(position - low.astype(np.float32))
    rows = lattice[low] * (1.0 - t)[:, None] + lattice[low + 1] * t[:, None]
    return rows[:, low] * (1.0 - t) + rows[:, low + 1] * t


def _clouds(rng: np.random.Generator, size: int, cells: int) -> FloatArray:
    """Noise at three scales, about in [-1, 1]."""
    strengths = (0.65, 0.30, 0.15)
    return sum(
        (_noise(rng, size, min(cells * 2**k, size // 2)) * np.float32(s) for k, s in enumerate(strengths)),
        start=np.zeros((size, size), np.float32),
    )


def _draw_background(background: Background, size: int) -> FloatArray:
    """Colours (3, H, W) of a background, 0 to 255 as float32."""
    low, high, accent = (np.array(color, np.float32)[:, None, None] for color in background.colors)
    if background.kind == "uniform":
        return np.broadcast_to(low, (3, size, size)).copy()
    rng = np.random.default_rng(background.seed)
    steps = (np.arange(size, dtype=np.float32) + 0.5) / np.float32(size) - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    slope = steps[None, :] * np.float32(math.cos(angle)) + steps[:, None] * np.float32(math.sin(angle))
    pattern = _BACKGROUND_PATTERNS[background.kind](rng, size, steps)
    # From the first colour to the second along the slope, and towards the accent where the pattern is.
    ramp = np.clip(0.5 + 0.75 * slope + 0.18 * _noise(rng, size, 3), 0.0, 1.0)
    colors = low + (high - low) * ramp
    colors += (accent - colors) * pattern
    grain = rng.random((size, size), dtype=np.float32) - 0.5
    return colors + (grain * 3.0 + _noise(rng, size, size // 4) * 2.5)


# A pattern takes a generator, the side in pixels and the unit axis (from -0.5 to 0.5), and returns the share of the
# accent colour, (H, W) in [0, 1].


def _turned(rng: np.random.Generator, steps: FloatArray) -> tuple[FloatArray, FloatArray]:
    angle = rng.uniform(0, math.pi)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return steps[None, :] * cosine + steps[:, None] * sine, steps[:, None] * cosine - steps[None, :] * sine


def _gradient_pattern(rng: np.random.Generator, size: int, steps: FloatArray) -> FloatArray:
    x, y = (steps - np.float32(rng.uniform(-0.5, 0.5)) for _ in range(2))
    spot = np.maximum(0.0, 1.0 - (x[None, :] * x[None, :] + y[:, None] * y[:, None]) * np.float32(rng.uniform(1.5, 4)))
    return spot * 0.7


def _stripes_pattern(rng: np.random.Generator, size: int, steps: FloatArray) -> FloatArray:
    across, _ = _turned(rng, steps)
    turns = across * np.float32(rng.uniform(3, 9)) + np.float32(rng.uniform(0, 0.3)) * _noise(rng, size, 4)
    return 0.45 * np.clip(0.5 + 2.0 * _wave(turns + np.float32(rng.random())), 0.0, 1.0)


def _mosaic_pattern(rng: np.random.Generator, size: int, steps: FloatArray) -> FloatArray:
    count = int(rng.integers(10, 26))
    x, y = rng.uniform(-0.6, 0.6, (2, count)).astype(np.float32)
    dx, dy = steps[None, :] - x[:, None], steps[None, :] - y[:, None]
    nearest = np.argmin((dx * dx)[:, None, :] + (dy * dy)[:, :, None], axis=0)
    return rng.uniform(0, 0.9, count).astype(np.float32)[nearest]


def _contours_pattern(rng: np.random.Generator, size: int, steps: FloatArray) -> FloatArray:
    levels = int(rng.integers(4, 7))
    height = (_clouds(rng, size, int(rng.integers(2, 5))) + 1.0) * np.float32(levels / 2)
    level = np.floor(height)
    step = level + np.clip((height - level) * 8.0, 0.0, 1.0)
    return np.clip(step / np.float32(levels), 0.0, 1.0)


def _weave_pattern(rng: np.random.Generator, size: int, steps: FloatArray) -> FloatArray:
    first, other = _turned(rng, steps)
    per_side = np.float32(rng.uniform(5, 14))
    threads = np.maximum(_wave(first * per_side), 0.0) + np.maximum(_wave(other * per_side), 0.0)
    return np.clip(threads * 0.35 + 0.2 * _noise(rng, size, 5), 0.0, 1.0)


_BACKGROUND_PATTERNS: dict[str, Callable[[np.random.Generator, int, FloatArray], FloatArray]] = {
    "gradient": _gradient_pattern,
    "clouds": lambda rng, size, steps: _smooth(np.clip(0.5 + _clouds(rng, size, int(rng.integers(3, 8))), 0.0, 1.0)),
    "stripes": _stripes_pattern,
    "mosaic": _mosaic_pattern,
    "contours": _contours_pattern,
    "weave": _weave_pattern,
}

# ---------------------------------------------------------------------------------------------------------- sampling


def _rgb(text: str, gain: float = 1.0) -> Color:
    red, green, blue = (min(255, round(int(text[k : k + 2], 16) * gain)) for k in (0, 2, 4))
    return red, green, blue


def sample_background(rng: np.random.Generator) -> Background:
    """A textured background of a random kind and palette."""
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    palette = _BACKGROUND_COLORS[rng.integers(len(_BACKGROUND_COLORS))]
    first, second, accent = (_rgb(text, rng.uniform(0.92, 1.06)) for text in palette)
    if rng.random() < 0.5:
        first, second = second, first
    return Background(kind, (first, second, accent), seed=int(rng.integers(2**31)))


def sample_object(
    rng: np.random.Generator,
    class_index: int,
    center: tuple[float, float],
    size_px: float,
    avoid: Sequence[Color] = (),
) -> SceneObject:
    """An object of one class at one place, with random colours, rotation and texture details.

    Its main colour is not close to those of `avoid`, as far as a few draws can find one.
    """
    if not 0 <= class_index < len(CLASS_NAMES):
        raise ValueError(f"class_index is {class_index}, expected 0 to {len(CLASS_NAMES) - 1}.")
    for _ in range(8):
        pair = _OBJECT_COLORS[rng.integers(len(_OBJECT_COLORS))]
        colors = [_rgb(text, rng.uniform(0.92, 1.05)) for text in pair]
        if all(math.dist(colors[0], other) > 75 for other in avoid):
            break
    shape, texture = divmod(class_index, len(TEXTURES))
    return SceneObject(
        shape=SHAPES[shape],
        texture=TEXTURES[texture],
        colors=(colors[0], colors[1]),
        center=center,
        size_px=round(size_px, 2),
        angle=round(rng.uniform(0, 2 * math.pi), 4),
        seed=int(rng.integers(2**31)),
    )


@lru_cache(maxsize=8)
def _class_table(seed: int, block: int) -> NDArray[np.int64]:
    """Classes (MAX_OBJECTS, 40) of the objects of 40 scenes in a row: each row of the table holds every class once."""
    table = np.tile(np.arange(len(CLASS_NAMES)), (MAX_OBJECTS, 1))
    return np.random.default_rng([seed, block, _CLASS_STREAM]).permuted(table, axis=1)


def sample_scene(
    seed: int,
    index: int,
    size_px: int = 128,
    min_objects: int = MIN_OBJECTS,
    max_objects: int = MAX_OBJECTS,
) -> SceneSpec:
    """Scene number `index` of the data set `seed`: a pure function of its arguments.

    Objects overlap, some sit wholly inside a larger one's box, a few run over the image border, and each shows at
    least `MIN_VISIBLE` of its pixels. Classes are balanced: in 40 scenes in a row from a multiple of 40 on, the
    largest objects have each class exactly once; the others have random parts of such rounds.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed is {seed} and index is {index}, expected both to be 0 or more.")
    if not 1 <= min_objects <= max_objects <= MAX_OBJECTS:
        raise ValueError(
            f"min_objects is {min_objects} and max_objects {max_objects}, expected 1 <= min <= max <= {MAX_OBJECTS}."
        )
    rng = np.random.default_rng([seed, index])
    background = sample_background(rng)
    count = int(rng.integers(min_objects, max_objects + 1))
    classes = _class_table(seed, index // len(CLASS_NAMES))[:count, index % len(CLASS_NAMES)]
    # Large ones first: painter's order puts the small ones in front, where they can be seen.
    largest = 0.72 - 0.035 * count
    sizes = size_px * np.exp(rng.uniform(math.log(0.22), math.log(largest), count))
    layout, objects = _Layout(np.zeros((size_px, size_px), np.uint8)), list[SceneObject]()
    for class_index, size in zip(classes, np.sort(sizes)[::-1], strict=True):
        taken = [*background.colors[:2], *(item.colors[0] for item in objects)]
        item = sample_object(rng, int(class_index), (0.0, 0.0), float(size), taken)
        if placed := _place(rng, layout, item):
            layout, item = placed
            objects.append(item)
    return SceneSpec(size_px, background, tuple(objects))


def _place(rng: np.random.Generator, layout: _Layout, item: SceneObject) -> tuple[_Layout, SceneObject] | None:
    """The object where it fits, every object showing enough of itself; smaller with each failed try, or not at all."""
    nest, side = rng.random() < 0.16, len(layout.front)
    for attempt in range(24):
        center = None
        if nest and layout.boxes and attempt < 4:
            x1, y1, x2, y2 = layout.boxes[rng.integers(len(layout.boxes))]
            inner = float(min(x2 - x1, y2 - y1)) * rng.uniform(0.4, 0.62)
            if inner >= 0.14 * side:
                low, high = (x1 + inner / 2, y1 + inner / 2), (x2 - inner / 2, y2 - inner / 2)
                center, diameter = rng.uniform(low, high), inner
        if center is None:
            diameter = max(item.size_px * 0.95**attempt, 0.14 * side)
            # Mostly inside; one in six may run over the border.
            inset = diameter / 2 * (1.0 if rng.random() > 1 / 6 else 0.35)
            center = rng.uniform(inset, side - inset, 2)
        x, y = (round(float(c) * _CENTER_STEPS) / _CENTER_STEPS for c in center)
        tried = replace(item, center=(x, y), size_px=round(diameter, 2))
        covered = layout.with_in_front(_outline(tried))
        if covered is not None and (covered.seen >= MIN_VISIBLE * np.array(covered.areas)).all():
            return covered, tried
    return None
