"""Files of features: parts, which a run that was killed continues from, and the one file that they become.

A part is a safetensors file, and so is the result, or else it is Parquet with a row per feature. Texts are tensors of
bytes there, one JSON value per line.

Shapes: N features, I pictures, C numbers in a feature.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from .choices import KINDS

SUFFIXES = (".parquet", ".safetensors")
_SETTINGS = "decodepos"  # key of the file's metadata
_TABLE_BYTES = 32 * 2**20  # of features, in a row group
_NAMED = 20  # pictures that could not be read
_KINDS = tuple(KINDS)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class FeatureTable:
    """Features of a file, and what each is of."""

    kind: list[str]  # (N) image, regions or patches
    image_id: list[str]  # (N)
    box: np.ndarray  # (N, 4) float32, xyxy in units of the picture
    label: list[str | None]  # (N)
    feature: np.ndarray  # (N, C)
    settings: dict[str, Any]  # of the run that made them
    map_ids: list[str]  # (I) pictures of the maps
    maps: np.ndarray | None = None  # (I, C, h, w)


def load_features(path: str | Path, kind: str = "") -> FeatureTable:
    """The features of a file that `embed` wrote; of one kind, or all."""
    if kind and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}.")
    settings = read_settings(Path(path))
    if settings is None:
        raise ValueError(f"{path} is no file of features: `decodepos embed` writes them.")
    return (_load_table if Path(path).suffix == ".parquet" else _load_tensors)(Path(path), kind, settings)


def read_settings(path: Path) -> dict[str, Any] | None:
    """What a file was made with; None where it says nothing of it."""
    if path.suffix == ".parquet":
        text = (parquet().read_schema(path).metadata or {}).get(_SETTINGS.encode())
    else:
        with safe_open(path, "np") as opened:
            text = (opened.metadata() or {}).get(_SETTINGS)
    return None if text is None else json.loads(text)


def parquet() -> Any:
    """pyarrow's Parquet; ImportError with what to do where there is none."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need pyarrow: pip install 'decodepos[data]', or give an --output that ends in .safetensors."
        ) from error
    return pyarrow.parquet


def write_text_lines(values: Iterable[Any]) -> np.ndarray:
    """Values as bytes, one JSON value per line."""
    return np.frombuffer("".join(json.dumps(value) + "\n" for value in values).encode(), np.uint8)


def read_text_lines(lines: np.ndarray) -> list[Any]:
    """The values again."""
    return [json.loads(line) for line in lines.tobytes().splitlines()]


def parts_folder(output: Path) -> Path:
    """Where the parts of a file are, until it is there."""
    return output.with_name(f".{output.name}.parts")


# ------------------------------------------------------------------------------------------------------------- reading


def _load_table(path: Path, kind: str, settings: dict[str, Any]) -> FeatureTable:
    table = parquet().read_table(path, filters=[("kind", "==", kind)] if kind else None)
    box, feature = (
        column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
        for column in (table["box"], table["feature"])
    )
    kinds, image_ids, labels = (table[name].to_pylist() for name in ("kind", "image_id", "label"))
    return FeatureTable(kinds, image_ids, box, labels, feature, settings, [])


def _load_tensors(path: Path, kind: str, settings: dict[str, Any]) -> FeatureTable:
    with safe_open(path, "np") as opened:
        arrays = {name: opened.get_tensor(name) for name in opened.keys() if name != "maps"}  # noqa: SIM118
        maps = opened.get_tensor("maps") if "maps" in opened.keys() and kind in ("", "maps") else None  # noqa: SIM118
    ids, labels = (read_text_lines(arrays[name]) for name in ("image_id", "label"))
    kept = np.arange(len(arrays["kind"]))
    if kind:
        kept = np.flatnonzero(arrays["kind"] == _KINDS.index(kind))
    return FeatureTable(
        [_KINDS[code] for code in arrays["kind"][kept].tolist()],
        [ids[picture] for picture in arrays["picture"][kept].tolist()],
        arrays["box"][kept],
        [labels[row] for row in kept.tolist()],
        arrays["feature"][kept],
        settings,
        ids if maps is not None else [],
        maps,
    )


# --------------------------------------------------------------------------------------------------------------- parts


class Parts:
    """The parts of a result, in a folder beside it that goes when it is there."""

    def __init__(self, output: Path, settings: Mapping[str, Any]):
        self.output, self.settings = output, dict(settings)
        self.folder = parts_folder(output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check()
        found = sorted(self.folder.glob("*.safetensors"))
        names = [self._name(number).name for number in range(len(found))]
        self.count = next((k for k, file in enumerate(found) if file.name != names[k]), len(found))
        self.pictures = sum(len(read_text_lines(self._read(k, "image_id"))) for k in range(self.count))

    def _check(self) -> None:
        """Refuse parts of other settings: their features would be mixed with other ones."""
        path = self.folder / "settings.json"
        if not path.is_file():
            self._write_whole(path, lambda beside: beside.write_text(json.dumps(self.settings), encoding="utf-8"))
        refuse_other(json.loads(path.read_text(encoding="utf-8")), self.settings, self.folder)

    def _write_whole(self, path: Path, write: Callable[[Path], Any]) -> None:
        """Let a file be written among the parts, and put it in its place when it is whole."""
        beside = self.folder / f".{path.name}.{os.getpid()}.part"
        write(beside)
        os.replace(beside, path)

    def _name(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"

    def _read(self, number: int, name: str) -> np.ndarray:
        with safe_open(self._name(number), "np") as opened:
            values: np.ndarray = opened.get_tensor(name)
        return values

    def add(self, arrays: Arrays) -> None:
        """Write the next part."""
        plain = {name: np.ascontiguousarray(values) for name, values in arrays.items()}  # safetensors' own asks for it
        self._write_whole(self._name(self.count), lambda beside: save_file(plain, beside))
        self.pictures += len(read_text_lines(arrays["image_id"]))
        self.count += 1

    def broken(self) -> list[str]:
        """Pictures that could not be read."""
        return [text for number in range(self.count) for text in read_text_lines(self._read(number, "broken"))]

    def join(self) -> dict[str, Any]:
        """Write the result and remove the parts; returns what the file says of itself."""
        counts = np.bincount(np.concatenate([self._read(k, "kind") for k in range(self.count)]), minlength=len(_KINDS))
        rows = {kind: int(count) for kind, count in zip(_KINDS, counts, strict=True) if count}
        about = self.settings | {"pictures": self.pictures, "rows": rows, "broken": self.broken()[:_NAMED]}
        write = self._write_table if self.output.suffix == ".parquet" else self._write_tensors
        self._write_whole(self.output, lambda path: write(path, {_SETTINGS: json.dumps(about)}))
        shutil.rmtree(self.folder)
        return about

    def _write_table(self, path: Path, metadata: dict[str, str]) -> None:
        import pyarrow

        writer, waiting, waiting_bytes = None, [], 0
        for number in range(self.count):
            table = self._table(number).replace_schema_metadata(metadata)
            writer = writer or parquet().ParquetWriter(path, table.schema, compression="zstd")
            waiting.append(table)
            waiting_bytes += table.nbytes
            if waiting_bytes >= _TABLE_BYTES or number == self.count - 1:
                joined = pyarrow.concat_tables(waiting)
                writer.write_table(joined, row_group_size=max(1, len(joined)))
                waiting, waiting_bytes = [], 0
        if writer is not None:
            writer.close()

    def _table(self, number: int) -> Any:
        import pyarrow

        with safe_open(self._name(number), "np") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        first = int(arrays["first"][0])
        ids = read_text_lines(arrays["image_id"])
        lists = {name: _fixed_lists(arrays[name]) for name in ("box", "feature")}
        return pyarrow.table(
            {
                "kind": pyarrow.array([_KINDS[code] for code in arrays["kind"].tolist()], pyarrow.string()),
                "image_id": pyarrow.array([ids[k - first] for k in arrays["picture"].tolist()], pyarrow.string()),
                "box": lists["box"],
                "label": pyarrow.array(read_text_lines(arrays["label"]), pyarrow.string()),
                "feature": lists["feature"],
            }
        )

    def _write_tensors(self, path: Path, metadata: dict[str, str]) -> None:
        """The parts' tensors one behind the other, a part at a time: the library's own function needs all at once."""
        names = [name for name in self._shapes(0) if name not in ("first", "broken")]
        shapes = [self._shapes(number) for number in range(self.count)]
        header: dict[str, Any] = {"__metadata__": metadata}
        end = 0
        # Wide numbers first: every tensor then begins at a multiple of its numbers' size.
        names.sort(key=lambda name: (-_WIDTHS[shapes[0][name][0]], name))
        for name in names:
            kind, shape = shapes[0][name]
            rows = sum(part[name][1][0] for part in shapes)
            start, end = end, end + rows * int(np.prod(shape[1:], dtype=np.int64)) * _WIDTHS[kind]
            header[name] = {"dtype": kind, "shape": [rows, *shape[1:]], "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                for number in range(self.count):
                    file.write(np.ascontiguousarray(self._read(number, name)).data)

    def _shapes(self, number: int) -> dict[str, tuple[str, list[int]]]:
        with safe_open(self._name(number), "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}


_WIDTHS = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "U8": 1}


def _fixed_lists(values: np.ndarray) -> Any:
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])


def refuse_other(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError where something was made with other settings."""
    others = [key for key in wanted if found.get(key) != wanted[key]]
    if others:
        key = others[0]
        raise ValueError(
            f"{path} was made with {key} {found.get(key)!r}, but now {key} is {wanted[key]!r}. Give another --output, "
            "or remove it."
        )
