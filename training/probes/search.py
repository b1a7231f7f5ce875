"""Can a network find an object again, in another place and before another background?

One scene shows an object; a second shows it elsewhere, among other neighbours. Boxes of the object's size cover the
second scene, and the one whose feature is most like the object's is the network's answer. Beside the network stands
the one that its training began with, or its untrained twin: the same architecture with random weights, of several
seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin

from modeling_decodepos.batch_norms import FITTED_ON, fit_batch_norms
from modeling_decodepos.data.scenes import Scene, render_scene, sample_scene
from modeling_decodepos.diagnosis.models.features import REGION_BINS
from modeling_decodepos.diagnosis.models.networks import (
    every_stage,
    load_network,
    vision_part,
)
from modeling_decodepos.diagnosis.report.figures import colorize, over_grey
from modeling_decodepos.diagnosis.statistics.estimates import Estimate, estimate, ratio
from modeling_decodepos.drawing.sheet import BOX, Pixels, Sheet
from modeling_decodepos.modeling_decodepos import DecodePosModel
from training.probes.before_after import as_pixels, sample_triplet
from training.probes.during import embed
from training.views.normalise import normalise, statistics_of

PLACES = 16
"""Boxes per side that cover the second scene."""

ANSWER = "#22d3ee"
"""Colour of the box that a network answers with."""

_FITTED_SEED = 1_000_003  # of the scenes that fit batch norms: none that is searched

OVERLAP = 0.5
"""Intersection over union from which on a box counts as the object."""


@dataclass(frozen=True)
class Search:
    """One question and its answer. The object is the last box of both scenes."""

    object_scene: Scene
    searched_scene: Scene
    boxes: Tensor  # (PLACES ** 2, 4) unit boxes that cover the searched scene
    similarity: Tensor  # (PLACES ** 2,) centred cosine of each with the object
    overlap: Tensor  # (PLACES ** 2,) intersection over union of each with the object

    @property
    def is_found(self) -> bool:
        """Whether the most similar box is the object."""
        return bool(self.overlap[self.similarity.argmax()] >= OVERLAP)


def search_objects(model: DecodePosModel, *, seed: int = 0, count: int = 100, size_px: int = 96) -> list[Search]:
    """The answers of a network, in evaluation mode, to the first `count` questions of a seed."""
    searches = []
    for index in range(count):
        triplet = sample_triplet(seed, index, size_px)
        here, there = render_scene(triplet.anchor), render_scene(triplet.same)
        target = torch.from_numpy(there.boxes[-1])
        boxes = cover(target[2:] - target[:2])
        rows = embed(model, as_pixels([here, there]), [torch.from_numpy(here.boxes[-1:]), boxes]).double()
        centred = rows - rows[1:].mean(0)  # what all boxes of a scene share says nothing about any one
        similarity = F.cosine_similarity(centred[:1], centred[1:])
        searches.append(Search(here, there, boxes, similarity, overlaps(boxes, target)))
    return searches


def cover(size: Tensor) -> Tensor:
    """(PLACES ** 2, 4) unit boxes of one size (width, height), evenly over the picture, row by row."""
    x, y = (torch.linspace(0, 1 - float(side), PLACES) for side in size)
    corners = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
    return torch.cat([corners, corners + size], 1)


def overlaps(boxes: Tensor, target: Tensor) -> Tensor:
    """(N,) intersection over union of boxes (N, 4) with one box (4,)."""
    inner = torch.minimum(boxes[:, 2:], target[2:]) - torch.maximum(boxes[:, :2], target[:2])
    shared = inner.clamp(min=0).prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (target[2:] - target[:2]).prod() - shared)


def share_found(*runs: Sequence[Search]) -> Estimate:
    """How often the object is found, over the questions, averaged over runs of several networks on the same ones."""
    found = np.array([[search.is_found for search in run] for run in runs], float).mean(0)
    return estimate(np.stack([found, np.ones_like(found)], 1), ratio)


def share_by_chance(searches: Sequence[Search]) -> float:
    """How often a box drawn at random is the object."""
    return float(np.mean([(search.overlap >= OVERLAP).double().mean() for search in searches]))


def load(name: str, centre_cells: bool) -> DecodePosModel:
    """The network of a name, as the diagnosis takes it, with regions read at the centres of cells if wanted."""
    network = load_network(name)
    if isinstance(network.call, DecodePosModel):
        network.call.config.centre_cells |= centre_cells
        return network.call.eval()
    module = vision_part(network)
    if not isinstance(module, PreTrainedModel):
        raise ValueError(f"{name} is no model of transformers; give one such as a resnet, convnext or mobilenet_v2.")
    backbone: Any = module if isinstance(module, BackboneMixin) else every_stage(module)
    centred = centre_cells and backbone.config.model_type == "resnet"  # patches are read at their centres already
    pixels: Any = {"image_mean": network.mean, "image_std": network.std}
    return DecodePosModel.from_backbone(backbone, centre_cells=centred, region_bins=REGION_BINS, **pixels).eval()


def untrained(model: DecodePosModel, seed: int, size_px: int = 96) -> DecodePosModel:
    """The same architecture with random weights, its batch norms as scenes of a size and their objects want them."""
    config = copy.deepcopy(model.config)
    config.zero_init_residual = False  # else a network of a few layers, and no control for a deep one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = DecodePosModel(config).eval()

    def show(scenes: Sequence[Scene]) -> None:
        boxes = [torch.from_numpy(scene.boxes) for scene in scenes]
        twin(normalise(as_pixels(scenes), *statistics_of(twin)), regions=boxes)

    scenes = [render_scene(sample_scene(_FITTED_SEED, index, size_px)) for index in range(FITTED_ON)]
    fit_batch_norms(twin, show, [scenes[start : start + 16] for start in range(0, FITTED_ON, 16)])
    return twin


# -------------------------------------------------------------------------------------------------------- the picture


def draw_searches(columns: Sequence[tuple[str, str, Sequence[Search]]], rows: int = 3) -> Image.Image:
    """The first `rows` questions, never chosen ones: object, searched scene, and each network's similarity map.

    A column is name, number and answers of a network, all on the same questions.
    """
    titles = ["this object …", "… is where, in this scene?", *(f"{name}\n{note}" for name, note, _ in columns)]
    sheet = Sheet(titles, rows, tile=190, gap=10, left=10, top=54, below=10)
    for row, first in enumerate(columns[0][2][:rows]):
        target = (first.searched_scene.boxes[-1], BOX)
        sheet.put(row, 0, first.object_scene.pixels, "", [(first.object_scene.boxes[-1], BOX)], smooth=True)
        sheet.put(row, 1, first.searched_scene.pixels, smooth=True)
        for column, (_, _, searches) in enumerate(columns, start=2):
            answer = searches[row].boxes[searches[row].similarity.argmax()]
            tile = heat(first.searched_scene.pixels, searches[row].boxes, searches[row].similarity)
            sheet.put(row, column, tile, "", [target, (answer, ANSWER)], smooth=True)
    return sheet.image


def heat(pixels: Pixels, boxes: Tensor, similarity: Tensor) -> Pixels:
    """A grey picture (S, S, 3) under the similarity (PLACES ** 2,) of the boxes that `cover` it, at their centres."""
    side = len(pixels)
    left, top = (boxes[0, :2] + boxes[0, 2:]).div(2).mul(side).tolist()
    right, bottom = (boxes[-1, :2] + boxes[-1, 2:]).div(2).mul(side).tolist()
    size = (round(bottom - top), round(right - left))
    middle = F.interpolate(similarity.view(1, 1, PLACES, PLACES), size, mode="bilinear", align_corners=True)
    margins = (round(left), side - size[1] - round(left), round(top), side - size[0] - round(top))
    full = F.pad(middle, margins, mode="replicate")[0, 0]
    return over_grey(pixels, colorize(full))
