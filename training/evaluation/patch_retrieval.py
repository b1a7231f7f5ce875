"""`patch_retrieval`: segmentation by looking up similar patches, without any training. mIoU.

A memory holds patches (map cells) of training images with their share of each class. A patch of a validation image
gets the mean of the shares of its nearest neighbours, weighted by softmax(cosine / temperature); shares are enlarged
to the label map's own size before the best is taken. After in-context scene understanding (arXiv 2306.01667), with our
own sampling: numbers compare with each other, not with its tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_decodepos.data.schema import SEGMENTATION_IGNORE
from modeling_decodepos.diagnosis.statistics.knn import knn_neighbours
from training.evaluation.annotated_images import Picture, seed_of
from training.evaluation.evaluation import Evaluation
from training.evaluation.results import Measured
from training.evaluation.segmentation_data import (
    SegmentationData,
    open_segmentation,
    read_batches,
    score,
    shift_labels,
    stack_pixels,
)
from training.evaluation.settings import PatchRetrievalSettings


@dataclass(frozen=True)
class Memory:
    """Patches of the training images."""

    features: Tensor  # (M, D), fp16
    shares: Tensor  # (M, C) of each class


def run(evaluation: Evaluation, settings: PatchRetrievalSettings) -> Mapping[str, Measured]:
    """mIoU of one seed."""
    data = open_segmentation(evaluation)
    memory = build_memory(evaluation, data, settings.memory_patches)
    k = min(settings.neighbours, len(memory.features))
    if k < settings.neighbours:
        evaluation.note(f"neighbours is {settings.neighbours}, but the memory holds {k} patches: all of them count.")

    def predict(pixels: Tensor) -> Tensor:
        feature_map = evaluation.model.dense(pixels)
        rows = feature_map.permute(0, 2, 3, 1).flatten(0, 2)
        cosines, found = knn_neighbours(memory.features, rows, k, device=evaluation.processes.device)
        shares = look_up(cosines, memory.shares[found], settings.temperature)
        batch, _, height, width = feature_map.shape
        return shares.view(batch, height, width, -1).permute(0, 3, 1, 2)

    return score(evaluation, data, predict)


def look_up(cosines: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """(Q, C) weighted mean of the neighbours' shares, from (Q, k) cosines and (Q, k, C) shares."""
    return torch.einsum("qk,qkc->qc", (cosines / temperature).softmax(1), shares.float())


def build_memory(evaluation: Evaluation, data: SegmentationData, most: int) -> Memory:
    """Patches of all training images, the same number of each where not all fit."""
    per_image = max(1, most // len(data.train))
    features: list[Tensor] = []
    shares: list[Tensor] = []
    for batch in read_batches(evaluation, data.train, "memory"):
        for feature_map, picture in zip(evaluation.model.dense(stack_pixels(batch)), batch, strict=True):
            offset = evaluation.model.dense_offset(evaluation.common.size_px, feature_map)
            own, labelled = class_shares(picture, data.classes, feature_map.shape[1], feature_map.shape[2], offset)
            kept = torch.nonzero(labelled)[:, 0]
            if len(kept) > per_image:
                rng = np.random.default_rng(seed_of(evaluation.seed, "memory", picture.image_id))
                kept = kept[np.sort(rng.choice(len(kept), per_image, replace=False))]
            features.append(feature_map.flatten(1).T.cpu()[kept].half())
            shares.append(own[kept].half())
    # Image by image, so that the memory is the same however many processes built it.
    whole = [torch.cat(evaluation.processes.collect_rows(column)) for column in (features, shares)]
    if not len(whole[0]):
        raise ValueError(f"{data.train.name}: not a single pixel has a class: there is nothing to look up.")
    return Memory(whole[0], whole[1])


def class_shares(
    picture: Picture, classes: int, height: int, width: int, offset: tuple[float, float] = (0.0, 0.0)
) -> tuple[Tensor, Tensor]:
    """(h * w, C) share of each class among the labelled pixels of each cell, and (h * w,) whether it has any."""
    labels = shift_labels(picture, height, width, offset).long()
    # As many pixels per cell, so that cells count alike whatever the size of the map.
    fine = F.interpolate(labels[None, None].double(), (height * 8, width * 8), mode="nearest-exact")[0, 0].long()
    cells = fine.view(height, 8, width, 8).transpose(1, 2).reshape(height * width, 64)
    counts = torch.zeros(height * width, SEGMENTATION_IGNORE + 1)
    counts.scatter_add_(1, cells, torch.ones_like(cells, dtype=torch.float32))
    counts = counts[:, :classes]
    total = counts.sum(1, keepdim=True)
    return counts / total.clamp(min=1), total[:, 0] > 0
