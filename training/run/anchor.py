"""Continuing from weights: what they were is kept beside the run, and holds the student's features in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modeling_decodepos.losses import Objective, region_similarity_loss
from modeling_decodepos.modeling_decodepos import DecodePosModel
from modeling_decodepos.regions import View, check_regions
from training.export.folders import new_folder

START_FOLDER = "start"


def save_start(model: DecodePosModel, folder: Path, accelerator: Accelerator, resumed: bool) -> None:
    """Keep the weights a run begins with: a continued run needs them, and their source may have gone by then.

    All processes must call this. Where a run was resumed, those that are there stay.
    """
    if accelerator.is_main_process and not (resumed and folder.is_dir()):
        with new_folder(folder, replace=True) as writing:
            model.save_pretrained(writing)
    accelerator.wait_for_everyone()


class FeatureAnchor:
    """A loss that keeps the student's region features near those of the weights it started from.

    Both look at the same view, so the anchor asks for no invariance: it says what may not be forgotten.
    """

    def __init__(self, start: DecodePosModel, objective: Objective, weight: float):
        self.start = start.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.weight = weight
        # Of the student's views the one of the whole image, whose regions lie where they were.
        self.view = next(name for name in objective.student_views if name in ("whole", "whole_cut", "plain"))
        for module in self.start.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # The student's batch norms use the batch's statistics; with the same ones both start equal.
                module.train()
                module.momentum = 0.0

    def synchronise(self) -> None:
        """Share batch statistics over processes, where the student does."""
        self.start = nn.SyncBatchNorm.convert_sync_batchnorm(self.start)

    def loss(
        self, views: Mapping[str, View], features: Mapping[str, Tensor], num_pairs: Mapping[tuple[str, str], Tensor]
    ) -> Tensor:
        """-2 times the mean cosine, as for every other pair: -2 as long as nothing was forgotten."""
        view, student = views[self.view], features[self.view]
        with torch.no_grad():
            regions = check_regions(view.boxes, len(view.boxes), view.valid_regions)
            target = self.start(view.pixel_values, regions=regions.boxes, valid_regions=regions.valid)
        return region_similarity_loss(
            student, target.region_embeddings, view.valid_regions, num_pairs[self.view, self.view]
        )
