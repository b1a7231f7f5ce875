"""Batch norms of a backbone whose weights are continued: whose statistics they use, and how they get new ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.batch_norms import batch_norms, fit_batch_norms
from modeling_decodepos.modeling_decodepos import DecodePosModel
from training.data.batches import RegionDataset
from training.recipe import ModelArguments
from training.views.normalise import normalise, statistics_of

CLEAN_PICTURES, BATCH_SIZE = 512, 32


def are_held(args: ModelArguments) -> bool:
    """Whether batch norms keep the statistics they came with while the network trains."""
    if args.batch_norm == "auto":
        return args.backbone not in BACKBONES
    return args.batch_norm != "train"


def hold(*models: DecodePosModel) -> None:
    """Let batch norms use, and keep, their statistics; their scales and shifts still train."""
    for model in models:
        for norm in batch_norms(model):
            norm.eval()


def clean_pictures(dataset: RegionDataset) -> Iterator[Tensor]:
    """Batches of 8-bit (B, 3, S, S) pictures from all over a data set, whole and in their own colours."""
    plain = copy.copy(dataset)
    plain.view_names = ["plain"]
    step = max(1, len(dataset) // CLEAN_PICTURES)
    keys = [(0, index) for index in range(0, len(dataset), step)][:CLEAN_PICTURES]
    for start in range(0, len(keys), BATCH_SIZE):
        yield plain.__getitems__(keys[start : start + BATCH_SIZE]).views["plain"].pixel_values


def recalibrate(model: DecodePosModel, pictures: Iterable[Tensor]) -> None:
    """Give batch norms the mean statistics of some batches of pictures; no weight changes.

    Every process that gets the same pictures comes to the same statistics.
    """
    device = next(model.parameters()).device
    fit_batch_norms(model, lambda pixels: model(normalise(pixels.to(device), *statistics_of(model))), pictures)


@contextmanager
def fitted(model: DecodePosModel, pictures: Iterable[Tensor]) -> Iterator[None]:
    """The model with batch norms that saw these pictures, as long as this is open; then it is as it was, bit for bit.

    What an untrained network must be measured with: norms that saw nothing make it look worse than its weights are.
    """
    kept = [[buffer.clone() for buffer in norm.buffers()] for norm in batch_norms(model)]
    if kept:
        recalibrate(model, pictures)
    try:
        yield
    finally:
        for norm, buffers in zip(batch_norms(model), kept, strict=True):
            for buffer, before in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(before)
