"""Features of all pictures of a folder or a data set, into one file."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from .. import __version__
from ..data.pictures import BrokenImage
from ..diagnosis.models.load import FeatureModel
from ..diagnosis.models.networks import Spec
from .choices import KINDS
from .embedder import Embedder, Rows
from .files import SUFFIXES, Arrays, Parts, parquet, parts_folder, read_settings, refuse_other, write_text_lines
from .pictures import Row, Shown, Source, open_source, show

T = TypeVar("T")
R = TypeVar("R")

_BATCH = {"cpu": 8}  # what stays in a processor's cache

_PART = 64
"""Pictures, at least, that a run which is killed may have to read again."""

_KINDS = tuple(KINDS)


@dataclass(frozen=True)
class FeatureFile:
    """A file of features, and how it was made."""

    path: Path
    about: dict[str, Any]  # settings, and how many pictures, rows and broken pictures there were
    is_new: bool  # false where it was there already, made with the same settings


def embed(
    model: Spec | FeatureModel,
    data: str | Path,
    output: str | Path,
    *,
    features: str | Sequence[str] = ("image", "regions"),
    regions: str = "auto",
    grid: int = 3,
    stage: str = "",
    split: str = "",
    size_px: int = 224,
    reading: str = "own",
    device: str = "cpu",
    fp16: bool = False,
    batch_size: int | None = None,
    workers: int = 2,
    progress: bool = False,
) -> FeatureFile:
    """A file with features of all pictures: Parquet, a row per feature, or safetensors, by the name of the output.

    Memory does not grow with the number of pictures. A run that was stopped goes on when it is called again, and ends
    in the same file, byte for byte; the file is there when it is whole. Other settings are refused.

    Args:
        model: Whatever the diagnosis takes, see `Embedder`.
        data: A folder of pictures or of Parquet files in our contract, or the Hub id of a data set with an `image`.
        output: A file that ends in .parquet or .safetensors.
        features: Some of `KINDS`.
        regions: One of `REGIONS`.
        grid: Boxes per side, where the regions are a grid.
        stage: The name of a stage; the last one by default.
        split: One of the data's splits; all by default.
        size_px: Side of the square that pictures are resized to.
        reading: Where the cells of the map lie, as in the diagnosis.
        device: Where the network runs.
        fp16: Write features in half precision, and on a GPU compute in it.
        batch_size: Pictures that the network sees at a time; by default 8 on a CPU, else 64.
        workers: Threads that decode pictures meanwhile.
        progress: Show a bar.
    """
    batch_size = _BATCH.get(device, 64) if batch_size is None else batch_size
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size is {batch_size} and workers {workers}; expected at least 1 of either.")
    output = _check_output(Path(output), features)
    source = open_source(str(data), split)
    how: dict[str, Any] = {"features": features, "regions": regions, "grid": grid, "stage": stage, "fp16": fp16}
    embedder = Embedder(model, size_px=size_px, reading=reading, device=device, **how)
    wanted = embedder.wanted_regions(source.columns)
    settings = {
        "decodepos": __version__,
        "model": embedder.model.name,
        "weights": embedder.weights,
        "data": str(data),
        "pictures_of": source.identity,
        "split": split,
        "features": list(embedder.kinds),
        "regions": wanted,
        "grid": grid if wanted == "grid" else 0,
        "stage": embedder.stage_name,
        "size_px": embedder.model.size_px,
        "reading": embedder.model.reading,
        "device": embedder.model.device.type,
        "fp16": fp16,
        "batch_size": batch_size,
    }
    if output.exists():
        about = read_settings(output) or {}
        refuse_other(about, settings, output)
        shutil.rmtree(parts_folder(output), ignore_errors=True)  # of a run that was killed at its very end
        return FeatureFile(output, about, False)
    parts = Parts(output, settings)
    _write_parts(parts, embedder, source, wanted, batch_size, workers, progress)
    if not parts.pictures:
        raise ValueError(f"{data}: not a single picture could be read{_first(parts.broken())}.")
    return FeatureFile(output, parts.join(), True)


def _check_output(output: Path, features: str | Sequence[str]) -> Path:
    if output.suffix not in SUFFIXES:
        raise ValueError(f"output is {output}; expected a name that ends in {' or '.join(SUFFIXES)}.")
    if output.suffix == ".parquet":
        parquet()
        if "maps" in features:
            raise ValueError(f"maps do not go into {output}, which has a row per feature: name a .safetensors file.")
    return output


def _first(broken: list[str]) -> str:
    return f", first {broken[0]}" if broken else ""


def _write_parts(
    parts: Parts, embedder: Embedder, source: Source, regions: str, batch_size: int, workers: int, progress: bool
) -> None:
    """Read and write what is missing."""
    size = batch_size * -(-_PART // batch_size)
    start = parts.count * size
    side, grid = embedder.model.size_px, embedder.grid

    def read(item: tuple[int, tuple[str, Row]]) -> tuple[str, Shown | BrokenImage]:
        number, (where, row) = item
        image_id = number if row.get("image_id") is None else row["image_id"]
        try:
            return str(image_id), show(where, row, side, regions, grid, source)
        except BrokenImage as error:
            return str(image_id), error

    bar = tqdm(total=source.count, initial=start, unit=" pictures", disable=not progress, dynamic_ncols=True)
    with bar, ThreadPoolExecutor(workers) as pool:
        items = enumerate(source.rows(start), start)
        batches: list[Batch] = []
        for found in _chunks(_map_ahead(pool, read, items, 2 * batch_size), batch_size):
            batches.append(_read_batch(embedder, found))
            bar.update(len(found))
            if len(batches) * batch_size == size:
                parts.add(_as_arrays(batches, parts.pictures))
                batches = []
        if batches:
            parts.add(_as_arrays(batches, parts.pictures))


@dataclass(frozen=True)
class Batch:
    """What was read of some pictures."""

    image_ids: list[str]
    rows: list[dict[str, Rows]]
    maps: Tensor | None
    broken: list[str]


def _read_batch(embedder: Embedder, found: Sequence[tuple[str, Shown | BrokenImage]]) -> Batch:
    broken = [str(picture) for _, picture in found if isinstance(picture, BrokenImage)]
    whole = [(image_id, picture) for image_id, picture in found if isinstance(picture, Shown)]
    rows, maps = embedder.read([picture for _, picture in whole]) if whole else ([], None)
    return Batch([image_id for image_id, _ in whole], rows, maps, broken)


def _as_arrays(batches: Sequence[Batch], first: int) -> Arrays:
    """A part of the file; its pictures are numbered from `first` on."""
    pictures = [own for batch in batches for own in batch.rows]
    rows = [(kind, number, own[kind]) for number, own in enumerate(pictures, first) for kind in _KINDS if kind in own]
    counts = [len(part.boxes) for _, _, part in rows]
    arrays = {
        "first": np.array([first]),
        "broken": write_text_lines(text for batch in batches for text in batch.broken),
        "image_id": write_text_lines(image_id for batch in batches for image_id in batch.image_ids),
        "kind": np.repeat(np.array([_KINDS.index(kind) for kind, _, _ in rows], np.uint8), counts),
        "picture": np.repeat(np.array([number for _, number, _ in rows], np.int64), counts),
        "label": write_text_lines(label for _, _, part in rows for label in part.labels),
        "box": _joined([part.boxes for _, _, part in rows]),
        "feature": _joined([part.features for _, _, part in rows]),
    }
    maps = [batch.maps.numpy() for batch in batches if batch.maps is not None]
    return arrays | ({"maps": np.concatenate(maps)} if maps else {})


def _joined(parts: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([part.numpy() for part in parts]) if parts else np.zeros((0, 1), np.float32)


def _map_ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """What a function makes of items, in their order, in threads; at most `ahead` wait to be taken."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
