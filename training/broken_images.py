"""Images that could not be read in a run: which, why, and when they are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dataset_scripts.files import write_text
from training.interruption import RunStopped


class BrokenImages:
    """Broken images by id, kept in `broken_images.jsonl` of the run folder: one object with id and reason per line.

    Every process of a run holds one and is told the same, so that all come to one verdict; only one of them writes.
    """

    def __init__(self, image_count: int, max_share: float, path: Path, resume: bool = False, writes: bool = True):
        self.image_count, self.max_share, self.path, self.writes = image_count, max_share, path, writes
        self.reasons: dict[str, str] = {}
        if resume and path.is_file():
            self.reasons = dict(_read(path))
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            # What a crash left half written goes; so does the list of an earlier run that left no checkpoint.
            write_text(path, "".join(map(_line, self.reasons.items())))

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, broken: Iterable[tuple[str, str]]) -> int:
        """Note images with their reasons, and how many of them were not known; a batch's list goes in as it is.

        Raises:
            RunStopped: There are more than the run allows. They are in the file all the same.
        """
        new = {image_id: reason for image_id, reason in broken if image_id not in self.reasons}
        self.reasons |= new
        if new and self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, new.items())))
        self._stop_if_too_many()
        return len(new)

    def _stop_if_too_many(self) -> None:
        if len(self.reasons) <= self.max_share * self.image_count:
            return
        first = "\n".join(f"  {image_id}: {reason}" for image_id, reason in list(self.reasons.items())[:5])
        raise RunStopped(
            f"{len(self.reasons)} of {self.image_count} images cannot be read, more than max_broken_share "
            f"{self.max_share:g} allows:\n{first}\n  … all of them: {self.path}\n"
            "Repair or remove them, or raise --max_broken_share."
        )


def _line(item: tuple[str, str]) -> str:
    return json.dumps({"image_id": item[0], "reason": item[1]}) + "\n"


def _read(path: Path) -> Iterable[tuple[str, str]]:
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut off by a crash; the image will be met again
            continue
        yield line["image_id"], line["reason"]
