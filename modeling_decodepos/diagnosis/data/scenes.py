"""Probe data drawn in memory: scenes, and the same objects drawn elsewhere. Nothing is downloaded."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ...data.scenes import (
    CLASS_NAMES,
    FIRST_INDEX,
    TEXTURES,
    Background,
    SceneSpec,
    render_scene,
    sample_object,
    sample_scene,
)
from ...imagenet import MEAN_COLOUR
from .exchange import draw_swaps
from .probe import LEAST_SIDE, Grid, ProbeData, RegionImages
from .scene_pairs import FIRST_GALLERY, OBJECT_SHAPES, find_fitting, move_inside, sample_elsewhere

_STREAM = 5
_GRID_OBJECT = 0.3  # diameter of a pasted object relative to the view


def build_scene_data(images: int, size_px: int, seed: int, objects: int = 10) -> ProbeData:
    """`images` gallery scenes, `images` query scenes with one probed object each, and `objects` objects on a grid."""
    first = FIRST_INDEX["probe"]
    gallery = [sample_scene(seed, FIRST_GALLERY + index, size_px) for index in range(images)]
    specs = _probed_scenes(seed, first, images, size_px)
    queries, last = _draw(specs)
    shown, _ = _draw(gallery)
    rng = np.random.default_rng([seed, _STREAM])
    owner = {region: number for number, region in enumerate(last)}

    def move(region: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        spec = specs[owner[region]]
        *others, item = spec.objects
        moved = dataclasses.replace(item, center=sample_elsewhere(rng, item, size_px))
        scene = render_scene(dataclasses.replace(spec, objects=(*others, moved)))
        return torch.from_numpy(scene.pixels).permute(2, 0, 1), torch.from_numpy(scene.boxes[-1])

    return ProbeData(
        name="scenes (drawn in memory)",
        size_px=size_px,
        seed=seed,
        gallery=shown,
        queries=queries,
        swaps=draw_swaps(queries, last, move, rng) if len(last) > 1 else None,
        grid=_draw_grid(rng, objects, size_px),
        class_names=CLASS_NAMES,
        groups=torch.arange(len(CLASS_NAMES)) // len(TEXTURES),
        notes=("In the neighbour read-out, the question is the neighbour's shape (8 shapes).",),
    )


def _probed_scenes(seed: int, first: int, count: int, size_px: int) -> list[SceneSpec]:
    """Scenes that have a suitable object, which is then in front of all others and wholly inside."""
    specs: list[SceneSpec] = []
    index = first
    while len(specs) < count:
        spec = sample_scene(seed, index, size_px)
        index += 1
        fitting = find_fitting(spec)
        if not fitting:
            continue
        number = fitting[-1]
        item = dataclasses.replace(spec.objects[number], center=move_inside(spec.objects[number], size_px))
        others = spec.objects[:number] + spec.objects[number + 1 :]
        specs.append(dataclasses.replace(spec, objects=(*others, item)))
    return specs


def _draw(specs: list[SceneSpec]) -> tuple[RegionImages, list[int]]:
    """The pictures of scenes with their objects as regions, and the number of each scene's last region."""
    scenes = [render_scene(spec) for spec in specs]
    kept = [(scene.boxes[:, 2:] - scene.boxes[:, :2] >= LEAST_SIDE).all(1) for scene in scenes]
    images = RegionImages(
        torch.stack([torch.from_numpy(scene.pixels).permute(2, 0, 1) for scene in scenes]),
        [torch.from_numpy(scene.boxes[own]) for scene, own in zip(scenes, kept, strict=True)],
        torch.cat([torch.from_numpy(scene.classes[own]) for scene, own in zip(scenes, kept, strict=True)]),
    )
    return images, (np.cumsum([len(rows) for rows in images.boxes]) - 1).tolist()


def _draw_grid(rng: np.random.Generator, objects: int, size_px: int) -> Grid:
    """Objects of different classes, each alone in three by three places on a canvas of ImageNet's mean colour."""
    plain = Background("uniform", (MEAN_COLOUR,) * 3)
    size = _GRID_OBJECT * size_px
    low = float(np.ceil(size / 2) + 1)
    places = [low, float(round(size_px / 2)), size_px - low]
    shapes = [k for k, name in enumerate(CLASS_NAMES) if name.split()[1] in OBJECT_SHAPES]
    specs = []
    for class_index in rng.permutation(shapes)[:objects]:
        item = sample_object(rng, int(class_index), (0.0, 0.0), size)
        centres = ((x, y) for y, x in product(places, places))
        specs += [SceneSpec(size_px, plain, (dataclasses.replace(item, center=centre),)) for centre in centres]
    drawn, _ = _draw(specs)
    return Grid(drawn.pixels.view(-1, 9, 3, size_px, size_px), drawn.every_box.view(-1, 9, 4))
