"""What every protocol receives: the model, the data, the seed and the processes of one call."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm.auto import tqdm

from training.evaluation.models import EvaluatedModel, load_model
from training.evaluation.pictures import AnnotatedImages, Reader
from training.evaluation.processes import Processes
from training.evaluation.settings import Common

T = TypeVar("T")


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
