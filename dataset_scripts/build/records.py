"""The list of what a build makes its rows from, in a file, so that a worker is sent a path and not the list.

A record is one JSON value, stored as text in a column of an Arrow file. Readers map it into memory: a process holds no
more than the records that it looks at.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

_SCHEMA = pa.schema({"record": pa.large_binary()})
_PER_BATCH = 4096


@dataclass(frozen=True)
class Records:
    """A file of so many records, and the hash of their JSON texts."""

    path: Path
    count: int
    sha256: str

    def __getitem__(self, number: int) -> Any:
        return json.loads(_column(self.path)[number].as_py())


def write_records(folder: Path, records: Iterable[Any]) -> Records:
    """Writes records to a new file in the folder; bytes are taken for the JSON text of a record."""
    path = folder / f"{secrets.token_hex(8)}.records"
    texts = (r if isinstance(r, bytes) else json.dumps(r, separators=(",", ":")).encode() for r in records)
    digest, count = hashlib.sha256(), 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        while batch := list(islice(texts, _PER_BATCH)):
            writer.write_batch(pa.record_batch([pa.array(batch, pa.large_binary())], schema=_SCHEMA))
            digest.update(b"".join(text + b"\n" for text in batch))
            count += len(batch)
    return Records(path, count, digest.hexdigest())


@lru_cache(maxsize=8)
def _column(path: Path) -> pa.ChunkedArray:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()["record"]
