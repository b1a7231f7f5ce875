"""`linear_segmentation`: a frozen backbone, and one 1x1 convolution that reads classes from its map. mIoU.

The map is standardised per channel by the training images, then a linear layer is trained with AdamW on the class of
the pixel in the middle of each cell. Scores are enlarged to the label map's own size before the best is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_decodepos.data.schema import SEGMENTATION_IGNORE
from training.evaluation.evaluation import Evaluation
from training.evaluation.learning import learn
from training.evaluation.results import Measured
from training.evaluation.segmentation_data import (
    SegmentationData,
    open_segmentation,
    read_batches,
    read_pictures,
    score,
    stack_labels,
    stack_pixels,
)
from training.evaluation.settings import LinearSegmentationSettings

MOST_CACHED = 2 * 2**30
"""Bytes of frozen maps that a process keeps."""


class FrozenCells:
    """Maps and labels of training images; as many as fit into `MOST_CACHED` bytes are computed once."""

    def __init__(self, evaluation: Evaluation, data: SegmentationData):
        self.evaluation, self.data = evaluation, data
        self.known: dict[str, tuple[Tensor, Tensor]] = {}
        self.held = 0

    def of(self, items: list[int]) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) maps and (B, h, w) labels on the model's device; images that cannot be read are left out."""
        images, device = self.data.train, self.evaluation.model.device
        missing = [item for item in dict.fromkeys(items) if images.ids[item] not in self.known]
        made: dict[str, tuple[Tensor, Tensor]] = {}
        if pictures := list(read_pictures(self.evaluation, images, missing)):
            maps = self.evaluation.model.dense(stack_pixels(pictures)).cpu()
            offset = self.evaluation.model.dense_offset(self.evaluation.common.size_px, maps)
            labels = stack_labels(pictures, maps.shape[2], maps.shape[3], offset)
            made = {p.image_id: (maps[n].clone(), labels[n].clone()) for n, p in enumerate(pictures)}
        for image_id, cells in made.items():
            self.held += sum(part.nbytes for part in cells)
            if self.held <= MOST_CACHED:
                self.known[image_id] = cells
        every = self.known | made
        found = [every[images.ids[item]] for item in items if images.ids[item] in every]
        if not found:
            return torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        own_maps, own_labels = (torch.stack(column).to(device) for column in zip(*found, strict=True))
        return own_maps, own_labels


class LinearHead(nn.Module):
    """Standardise channels by fixed statistics, then one 1x1 convolution."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, std: Tensor, classes: int):
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        # A channel that does not vary says nothing, and must not become noise.
        self.register_buffer("scale", torch.where(std > 1e-6 * mean.abs(), 1 / std, 0.0).view(1, -1, 1, 1))
        self.classify = nn.Conv2d(mean.numel(), classes, 1)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) scores."""
        return self.classify((feature_map - self.mean) * self.scale)


def run(evaluation: Evaluation, settings: LinearSegmentationSettings) -> Mapping[str, Measured]:
    """mIoU of one seed."""
    data = open_segmentation(evaluation)
    head = train_head(evaluation, data, settings)
    return score(evaluation, data, lambda pixels: head(evaluation.model.dense(pixels)))


def train_head(evaluation: Evaluation, data: SegmentationData, settings: LinearSegmentationSettings) -> LinearHead:
    """The trained head, equal on every process."""
    mean, std = channel_statistics(evaluation, data)
    head = LinearHead(mean, std, data.classes).to(evaluation.model.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    cells = FrozenCells(evaluation, data)

    def part_loss(items: list[int], step: int) -> tuple[Tensor, Tensor]:
        feature_map, labels = cells.of(items)
        if not len(labels):
            return mean.new_zeros(()), torch.zeros(())
        total = F.cross_entropy(head(feature_map), labels, ignore_index=SEGMENTATION_IGNORE, reduction="sum")
        return total, (labels != SEGMENTATION_IGNORE).sum().cpu()

    learn(
        evaluation,
        head,
        optimizer,
        part_loss,
        items=len(data.train),
        steps=settings.steps,
        batch_size=settings.head_batch_size,
        what="linear head",
    )
    return head.eval().requires_grad_(False)


def channel_statistics(evaluation: Evaluation, data: SegmentationData, most: int = 1000) -> tuple[Tensor, Tensor]:
    """(C,) mean and standard deviation of the map's channels over (up to `most` of) the training images."""
    places = evaluation.processes.own(range(0, len(data.train), max(1, len(data.train) // most)))
    sums: list[Tensor] = []
    count = torch.zeros(1, dtype=torch.float64)
    for batch in read_batches(evaluation, data.train, "statistics", places):
        rows = evaluation.model.dense(stack_pixels(batch)).transpose(0, 1).flatten(1).double().cpu()
        sums.append(torch.stack([rows.sum(1), rows.square().sum(1)]))
        count += rows.shape[1]
    width = max(evaluation.processes.collect([sums[0].shape[1] if sums else 0]))
    own = torch.stack(sums).sum(0) if sums else torch.zeros((2, width), dtype=torch.float64)
    whole, cells = evaluation.processes.total(own), evaluation.processes.total(count)
    mean = whole[0] / cells
    std = (whole[1] / cells - mean.square()).clamp(min=0).sqrt()
    return mean.float().to(evaluation.model.device), std.float().to(evaluation.model.device)
