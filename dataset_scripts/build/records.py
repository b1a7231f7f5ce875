"""The list of what a build makes its rows from, in a file, so that a worker is sent a path and not the list.

A record is one JSON value. The file holds the records one after the other, then where each begins (int64), then how
many there are (int64). Readers map it into memory: a process holds no more than the records that it looks at.
"""

import atexit
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBER = np.dtype("<i8")


@dataclass(frozen=True)
class Records:
    """A file of records.

    Attributes:
        path: of the file; its name depends on what it holds.
        count: number of records.
        sha256: of their JSON texts.
    """

    path: Path
    count: int
    sha256: str

    def __getitem__(self, number: int) -> Any:
        mapped, starts = _mapped(self.path)
        return json.loads(mapped[starts[number] : starts[number + 1]])


def work_folder(output: Path) -> Path:
    """A hidden folder beside the output, where every worker can see it; it is removed when the program ends."""
    output = output.resolve()
    folder = output.parent / f".{output.name}.index"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write_records(folder: Path, records: Iterable[Any]) -> Records:
    """Writes records to a file in the folder."""
    temporary = folder / f".{os.getpid()}.tmp"
    digest = hashlib.sha256()
    starts = [0]
    with temporary.open("wb") as file:
        for record in records:
            text = json.dumps(record, separators=(",", ":")).encode()
            digest.update(text + b"\n")
            file.write(text)
            starts.append(starts[-1] + len(text))
        file.write(bytes(-starts[-1] % _NUMBER.itemsize))
        file.write(np.array([*starts, len(starts) - 1], _NUMBER).tobytes())
    # Named by what it holds: a reader that has an older file mapped keeps it, and a newer one has another name.
    path = folder / f"{digest.hexdigest()[:32]}.records"
    temporary.replace(path)
    return Records(path, len(starts) - 1, digest.hexdigest())


@lru_cache(maxsize=8)
def map_file(path: Path, sha256: str | None = None) -> mmap.mmap:
    """The bytes of a file, read where they are looked at. Give its hash if there may be another file by this name."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _mapped(path: Path) -> tuple[mmap.mmap, NDArray[np.int64]]:
    mapped = map_file(path)
    size = _NUMBER.itemsize
    count = int.from_bytes(mapped[-size:], "little")
    return mapped, np.frombuffer(mapped, _NUMBER, count + 1, len(mapped) - (count + 2) * size)
