"""The table of protocols. A new one is a file beside this one, its settings, and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.evaluation import settings as own


@dataclass(frozen=True)
class ProtocolEntry:
    """One protocol of the table."""

    name: str  # of the protocol, and of its file
    settings: type[Any]  # a dataclass: its fields are flags and part of the protocol id, its docstring is the summary
    needs: str  # of the data: "objects" (boxes with classes), "masks"
    quick: dict[str, Any]  # what is set for a look in minutes on a CPU, beside `QUICK`
    headline: tuple[str, ...] = ()  # what the command prints, of numbers by k at k = 20; all, where none is named
    version: int = 1  # counts up whenever the numbers of equal settings change

    @property
    def run(self) -> Callable[..., Any]:
        """`run(evaluation, settings)`: the numbers of one seed by name. Its file is loaded here, torch with it."""
        run: Callable[..., Any] = importlib.import_module(f"training.evaluation.{self.name}").run
        return run


QUICK = {"size_px": 96, "train_images": 400, "validation_images": 150}
_SEGMENTATION = {"steps": 150, "head_width": 64, "learning_rate": 1e-3}
_VARIANTS = ("recontextualised_class_mean", "repositioned_class_mean", "alone_class_mean")
_OBJECTS = ("class_mean", *_VARIANTS, "commonest_class")
_DETECTION = {"steps": 300, "width": 128, "layers": 2, "queries": 50}
_ENTRIES = (
    ProtocolEntry("object_knn", own.ObjectKnnSettings, "objects", {}, _OBJECTS),
    ProtocolEntry("object_linear", own.ObjectLinearSettings, "objects", {}),
    ProtocolEntry(
        "linear_segmentation", own.LinearSegmentationSettings, "masks", {"steps": 300, "learning_rate": 0.01}
    ),
    ProtocolEntry("patch_retrieval", own.PatchRetrievalSettings, "masks", {"memory_patches": 20_000}),
    ProtocolEntry("segmentation", own.UperNetSettings, "masks", _SEGMENTATION),
    ProtocolEntry("detection", own.DetectionSettings, "objects", _DETECTION),
)
PROTOCOLS = {entry.name: entry for entry in _ENTRIES}
