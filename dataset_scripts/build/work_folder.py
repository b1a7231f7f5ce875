"""What a build keeps on disk for its workers, or for a second try: a folder inside the output that goes away."""

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from ..files import LOCK_NAME, lock_folder, unfinished

WORK_NAME = ".work"
MANIFEST_NAME = "manifest.json"
IDS_NAME = "index.json"  # of a folder with ids and no pixels


def holds_something(folder: Path, marks: Collection[str]) -> bool:
    """Whether there is anything in the folder; refused if no file by one of the names `marks` says that it is ours."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder or nothing. Choose another --output.")
    names = {path.name for path in folder.iterdir()} - {LOCK_NAME, WORK_NAME} if folder.is_dir() else set()
    if names and not names.intersection(marks):  # a kill while the first of them was written
        names -= {path.name for mark in marks for path in unfinished(folder, mark)}
        names -= {path.name for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())}
    if names and not names.intersection(marks):
        raise ValueError(
            f"{folder} is not empty and has no {' or '.join(marks)}, so it was not written by this program. "
            "Choose another --output; nothing in there was touched."
        )
    return bool(names)


class WorkFolder:
    """`OUTPUT/.work`, made when it is first opened. One build has it at a time.

    As a context manager, it removes the folder at the end, and what an earlier build left there when it was killed.
    After a failure it stays where `open` was told to keep it.
    """

    def __init__(self, output: Path):
        self.output, self.path = output, (output / WORK_NAME).absolute()
        self._lock: IO[str] | None = None
        self._kept = self._made_output = False

    def open(self, keep: bool = False) -> Path:
        """The folder, for this build alone; `keep` what is there, also if the build fails, for a next try."""
        if self._lock is None:
            holds_something(self.output, (MANIFEST_NAME, IDS_NAME))
            self._made_output = not self.output.exists()
            self._lock = lock_folder(self.path, "--output", "build")
        if keep:
            self._kept = True
        elif not self._kept:
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK_NAME:
                    path.unlink()
        return self.path

    def __enter__(self) -> "WorkFolder":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if self._lock is None and kind is None and self.path.is_dir():
            with contextlib.suppress(ValueError):  # another build has it
                self.open()
        if self._lock is None:
            return
        if kind is None or not self._kept:
            shutil.rmtree(self.path, ignore_errors=True)
            if self._made_output and not any(self.output.iterdir()):
                self.output.rmdir()
        self._lock.close()
