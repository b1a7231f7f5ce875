"""Single rows of Parquet files, by their number over all the files."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 64


class ParquetRows:
    """Rows by number, of files that hold many. Rows asked for in rising order are read once, a batch at a time."""

    def __init__(self, files: Sequence[Path]):
        self.files = files
        self.starts = np.cumsum([0, *(pq.read_metadata(file).num_rows for file in files)])
        self._file, self._first = -1, 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: Any = ()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        file = int(np.searchsorted(self.starts, number, side="right")) - 1
        wanted = number - int(self.starts[file])
        if file != self._file or wanted < self._first:
            self._open(file, wanted)
        while wanted >= self._first + len(self._batch):
            self._first += len(self._batch)
            self._batch = next(self._batches)
        return self._batch.slice(wanted - self._first, 1).to_pylist()[0]

    def _open(self, file: int, wanted: int) -> None:
        """Begins at the row group that holds the row."""
        opened = pq.ParquetFile(self.files[file])
        groups = range(opened.num_row_groups)
        starts = np.cumsum([0, *(opened.metadata.row_group(group).num_rows for group in groups)])
        group = int(np.searchsorted(starts, wanted, side="right")) - 1
        self._file, self._first, self._batch = file, int(starts[group]), ()
        self._batches = opened.iter_batches(batch_size=BATCH_ROWS, row_groups=groups[group:])


@lru_cache(maxsize=1)
def rows_of(files: tuple[Path, ...], sha256: str = "") -> ParquetRows:
    """The rows of files, opened once. Give their hash if there may be others by the same names."""
    return ParquetRows(files)


def class_names_of(schema: pa.Schema) -> list[str] | None:
    """Class names of `objects` from the features that `datasets` writes into a file, if they are there."""
    from datasets import ClassLabel, Features

    if b"huggingface" not in (schema.metadata or {}):
        return None

    def search(feature: Any) -> list[str] | None:
        if isinstance(feature, ClassLabel):
            return list(feature.names)
        inner = list(feature.values()) if isinstance(feature, dict) else [getattr(feature, "feature", None)]
        return next((names for part in inner if part is not None and (names := search(part))), None)

    return search(Features.from_arrow_schema(schema).get("objects"))
