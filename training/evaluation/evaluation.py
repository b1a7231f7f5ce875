"""What every protocol receives: the model, the data, the seed and the processes of one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from tqdm.auto import tqdm

from modeling_decodepos.diagnosis.models.load import FeatureModel
from modeling_decodepos.diagnosis.models.networks import Spec
from training.evaluation.models import EvaluatedModel, load_model
from training.evaluation.pictures import AnnotatedImages, Reader
from training.evaluation.processes import Processes
from training.evaluation.results import Measured

T = TypeVar("T")


@dataclass(frozen=True)
class Common:
    """What all protocols can be told. What changes a number is part of its protocol id."""

    model: Spec | FeatureModel
    data: str
    seed: int = 0
    size_px: int = 224
    region_bins: int = 0
    centre_cells: bool = False
    train_split: str = "train"
    validation_split: str = "validation"
    train_images: int = 0
    validation_images: int = 0
    batch_size: int = 64
    num_workers: int = 0


@dataclass
class Evaluation:
    """One call with one seed."""

    common: Common
    processes: Processes = field(default_factory=Processes)
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""
        return self.common.seed

    @functools.cached_property
    def model(self) -> EvaluatedModel:
        """The model, on this process's device."""
        common = self.common
        return load_model(common.model, self.seed, self.processes.device, common.region_bins, common.centre_cells)

    def images(self, side: str, *, masks: bool = False, objects: bool = True) -> AnnotatedImages:
        """The images of a side, "train" or "validation"."""
        split, limit = (
            (self.common.train_split, self.common.train_images)
            if side == "train"
            else (self.common.validation_split, self.common.validation_images)
        )
        return AnnotatedImages(self.common.data, split, limit=limit, masks=masks, objects=objects)

    def reader(self, images: AnnotatedImages) -> Reader:
        """Reads pictures; those that cannot be read are told by `finish_reading`."""
        return Reader(images, self.common.num_workers)

    def finish_reading(self, reader: Reader) -> None:
        """Say which images could not be read, on whatever process."""
        broken = [message for part in self.processes.collect([[*reader.broken]]) for message in part]
        if broken:
            self.note(f"{len(broken)} images of {reader.images.name} are not counted, such as: {broken[0]}")

    def progress(self, items: Iterable[T], what: str, total: int, unit: str = "image") -> Iterable[T]:
        """The same items, with a bar on the main process."""
        return tqdm(items, desc=what, total=total, unit=unit, disable=not self.processes.is_main, leave=False)

    def note(self, text: str) -> None:
        """Something that the reader of the numbers should know, once."""
        if text not in self.notes:
            self.notes.append(text)


class Run(Protocol):
    """How a protocol measures: the numbers of one seed, by name."""

    def __call__(self, evaluation: Evaluation, settings: Any) -> Mapping[str, Measured]:
        """The numbers."""
        ...


@dataclass(frozen=True)
class ProtocolEntry:
    """One protocol of the table.

    Attributes:
        version: Counts up whenever the numbers of equal settings change.
        settings: A dataclass; its fields are flags, and part of the protocol id.
        run: See `Run`.
        quick: Common and own settings for a look in minutes on a CPU.
        needs: What the data must have: "objects" (boxes with classes), "masks".
        summary: One line.
    """

    version: int
    settings: Callable[..., Any]
    run: Run
    quick: dict[str, Any]
    needs: str
    summary: str
