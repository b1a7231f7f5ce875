"""What every protocol receives: the model, the data, the seed and the processes of one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch.utils.data import Dataset
from tqdm.auto import tqdm

from modeling_decodepos.diagnosis.models.readings import choose_reading
from training.data.decoding import BrokenImage
from training.data.workers import load_in_workers
from training.evaluation.annotated_images import AnnotatedImages
from training.evaluation.frozen import each_on_a_core
from training.evaluation.models import EvaluatedModel, load_model
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
        reading = choose_reading(common.reading, common.centre_cells)
        return load_model(common.model, self.seed, self.processes.device, common.region_bins, reading, common.stage)

    def images(self, side: str, *, masks: bool = False, objects: bool = True) -> AnnotatedImages:
        """The images of a side, "train" or "validation"."""
        split, limit = (getattr(self.common, f"{side}_{part}") for part in ("split", "images"))
        return AnnotatedImages(self.common.data, split, limit=limit, masks=masks, objects=objects)

    def read(self, images: AnnotatedImages, places: Sequence[int], make: Callable[[int], T]) -> Iterator[T | None]:
        """What `make` gives for each place, in order; None for unreadable images.

        From threads, or from worker processes if wanted.
        """
        broken, work = [], _Work(make, list(places))
        workers = self.common.num_workers
        made = (
            load_in_workers(work, workers, batch_size=None)
            if workers
            else each_on_a_core(work.__getitem__, range(len(work)))
        )
        for result in made:
            if isinstance(result, BrokenImage):
                broken.append(result)
            yield None if isinstance(result, BrokenImage) else result
        if broken:
            self.note(f"{len(broken)} images of {images.name} are not counted, such as: {broken[0]}")

    def progress(self, items: Iterable[T], what: str, total: int, unit: str = "image") -> Iterable[T]:
        """The same items, with a bar on the main process."""
        return tqdm(items, desc=what, total=total, unit=unit, disable=not self.processes.is_main, leave=False)

    def note(self, text: str) -> None:
        """Something that the reader of the numbers should know, once."""
        if text not in self.notes:
            self.notes.append(text)


class _Work(Dataset):
    """What `make` gives for each place, or why the image cannot be read."""

    def __init__(self, make: Callable[[int], Any], places: list[int]):
        self.make, self.places = make, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(self.places[number])
        except BrokenImage as error:
            return error
