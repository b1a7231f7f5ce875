"""Images that could not be read in a run: which, why, and when they are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dataset_scripts.files import read_json_lines, write_text
from training.data.decoding import BrokenImage
from training.data.sources import ImageSource
from training.errors import RunStopped


class TooManyBroken(RunStopped):
    """More images than allowed cannot be read. The weights are as good as ever: they are saved first."""


class BrokenImages:
    """Broken images by id, kept in `broken_images.jsonl` of the run folder: one object with id and reason per line.

    Every process of a run holds one and is told the same, so that all come to one verdict; only one of them writes.
    """

    def __init__(self, image_count: int, max_share: float, path: Path, resume: bool = False, writes: bool = True):
        self.image_count, self.max_share, self.path, self.writes = image_count, max_share, path, writes
        self.reasons: dict[str, str] = {}
        for line in read_json_lines(path) if resume else ():  # what is missing will be met again
            self.reasons[str(line.get("image_id"))] = str(line.get("reason"))
        # What a crash left half written goes; so does the list of an earlier run that left no checkpoint.
        self.keep(self.reasons)

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, broken: Iterable[tuple[str, str]]) -> int:
        """Note images with their reasons, and how many of them were not known; a batch's list goes in as it is.

        When there are more than the run allows, `TooManyBroken` is raised; they are in the file all the same.
        """
        new = {image_id: reason for image_id, reason in broken if image_id not in self.reasons}
        self.reasons |= new
        if new and self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_lines(new))
        if len(self.reasons) > self.max_share * self.image_count:
            first = "\n".join(f"  {image_id}: {reason}" for image_id, reason in list(self.reasons.items())[:5])
            raise TooManyBroken(
                f"{len(self.reasons)} of {self.image_count} images cannot be read, more than max_broken_share "
                f"{self.max_share:g} allows:\n{first}\n  … all of them: {self.path}\n"
                "Repair or remove them and go on with --allow_change data, or raise --max_broken_share."
            )
        return len(new)

    def keep(self, still_broken: dict[str, str]) -> None:
        """Go on with these only, as `still_broken` found them: the others have been repaired, or removed."""
        self.reasons = still_broken
        if self.writes:
            write_text(self.path, _lines(self.reasons))


def still_broken(reasons: dict[str, str], source: ImageSource) -> dict[str, str]:
    """Which of the images of an earlier list cannot be read now either, with the reason they give today."""
    found = {}
    for index in range(len(source)) if reasons else ():
        if source.image_id(index) in reasons:
            try:
                source.pixels(index)
            except BrokenImage as error:
                found[error.image_id] = error.reason
    return found


def _lines(reasons: dict[str, str]) -> str:
    return "".join(json.dumps({"image_id": name, "reason": reason}) + "\n" for name, reason in reasons.items())
