"""A data set folder: Parquet shards, a manifest and a card.

    FOLDER/data/train-00000-of-00008.parquet …    rows in the contract of `modeling_decodepos.schema`
    FOLDER/manifest.json                          recipe and its hash; rows, bytes and sha256 of every shard
    FOLDER/README.md                              card; `datasets.load_dataset(FOLDER)` reads its header

A build can be killed at any moment and run again. Every file appears under its name only when it is whole, and a shard
is written down in the manifest only after that; a second run keeps the shards that are written down and whose hash is
right. Row n of a split is made from n alone, so the bytes do not depend on the number of workers.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from modeling_decodepos.schema import SCHEMA_VERSION, build_features

from .proposals import Proposals, add_regions, check_provider, recipe_of

MANIFEST_NAME = "manifest.json"
CARD_NAME = "README.md"
MANIFEST_FORMAT = 1
ROWS_PER_GROUP = 100  # small enough to read single images from a remote file

Row = dict[str, Any]
RowMaker = Callable[[str, int], Row]
"""Makes row n of a split: (split, n) -> row, all but its `regions`. A pure function that can be pickled."""


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` (exclusive) of a split and the file for them, relative to the data set folder."""

    path: str
    split: str
    start: int
    stop: int


@dataclass(frozen=True)
class Source:
    """What a builder hands over: which rows there are, how to make one, and how the card describes them.

    Attributes:
        recipe: all that decides the bytes of the rows; JSON values only.
        splits: rows per split; a split without rows gets no file.
        class_names: of `objects.category`.
        make_row: makes one row; its `regions` are added here.
        title: of the card.
        license: a Hub licence identifier, for the card.
        description: body of the card, Markdown.
        proposals: the provider of `regions`, by name or with settings.
    """

    recipe: Mapping[str, Any]
    splits: Mapping[str, int]
    class_names: Sequence[str]
    make_row: RowMaker
    title: str
    license: str
    description: str
    proposals: str | Proposals = "none"


# ------------------------------------------------------------------------------------------------------------- files


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, so that it survives a crash of the machine whole or not at all."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shard(path: Path, rows: Iterable[Row], schema: pa.Schema) -> dict[str, Any]:
    """Writes rows to one Parquet file, whole or not at all; returns its manifest entry without the split."""
    temporary = _temporary(path)
    count = 0
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            group: list[Row] = []
            for row in rows:
                group.append(row)
                if len(group) == ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    count, group = count + len(group), []
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema))
                count += len(group)
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"rows": count, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


# ---------------------------------------------------------------------------------------------------------- manifest


def recipe_sha256(recipe: Mapping[str, Any]) -> str:
    """Hash of a recipe; the order of its keys does not count."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def recipe_differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """One line per key in which two recipes differ."""
    return [
        f"{key}: the folder has {json.dumps(found.get(key))}, this command asks for {json.dumps(asked.get(key))}"
        for key in sorted({*found, *asked})
        if found.get(key) != asked.get(key)
    ]


def data_sha256(manifest: Mapping[str, Any]) -> str:
    """One hash for all shards of a data set: what a run or a result cites as its data."""
    lines = [f"{entry['sha256']}  {path}\n" for path, entry in sorted(manifest["files"].items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a data set folder."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(f"No {MANIFEST_NAME} in {folder}, expected a folder written by dataset_scripts.prepare.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). Build the data set again with --overwrite.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ValueError(
            f"{path}: format is {found!r}, expected {MANIFEST_FORMAT}. It was written by another program."
        )
    return manifest


def _save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_text(folder / MANIFEST_NAME, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def plan_shards(splits: Mapping[str, int], rows_per_shard: int) -> list[Shard]:
    """The shards of all splits, each with `rows_per_shard` rows but for the last of a split."""
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}, expected at least 1.")
    shards = []
    for split, rows in splits.items():
        starts = range(0, rows, rows_per_shard)
        shards += [
            Shard(
                f"data/{split}-{k:05d}-of-{len(starts):05d}.parquet", split, start, min(start + rows_per_shard, rows)
            )
            for k, start in enumerate(starts)
        ]
    return shards


# ------------------------------------------------------------------------------------------------------------- build


def build_dataset(
    folder: Path, source: Source, workers: int = 1, rows_per_shard: int = 500, overwrite: bool = False
) -> dict[str, Any]:
    """Builds, completes or recognises a data set folder; returns its manifest.

    A finished folder of the same recipe is left as it is. A half-built one is completed. A folder of another recipe is
    refused with the differences, unless `overwrite`; one that holds something else is always refused.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1.")
    check_provider(source.proposals)
    recipe = {
        **source.recipe,
        "proposals": recipe_of(source.proposals),
        "rows_per_shard": rows_per_shard,
        "schema_version": SCHEMA_VERSION,
    }
    make_row = partial(_row_with_regions, make_row=source.make_row, proposals=source.proposals)
    shards = plan_shards(source.splits, rows_per_shard)
    if not shards:
        raise ValueError(f"The splits {dict(source.splits)} have no rows, expected at least one.")
    manifest = _open_folder(folder, source, recipe, overwrite)
    if manifest["complete"] and not _missing(folder, manifest):
        print(f"{folder} is finished and has this recipe: nothing to do.")
        return manifest

    manifest = {**manifest, "complete": False, "files": _kept_shards(folder, manifest, shards)}
    _save_manifest(folder, manifest)
    missing = [shard for shard in shards if shard.path not in manifest["files"]]
    if manifest["files"]:
        print(f"{folder}: keeping {len(manifest['files'])} of {len(shards)} shards from an earlier run.")
    features = build_features(source.class_names)
    total = sum(shard.stop - shard.start for shard in missing)
    with tqdm(total=total, desc=folder.name, unit=" images", mininterval=0.5) as progress:
        for shard, entry in _written(folder, missing, make_row, features.arrow_schema, workers, progress):
            manifest["files"][shard.path] = {"split": shard.split, **entry}
            _save_manifest(folder, manifest)

    order = [shard.path for shard in shards]
    manifest["files"] = {path: manifest["files"][path] for path in order}
    manifest |= {"data_sha256": data_sha256(manifest), "complete": True}
    write_text(folder / CARD_NAME, build_card(source, manifest, features))
    _save_manifest(folder, manifest)
    return manifest


def _open_folder(folder: Path, source: Source, recipe: Mapping[str, Any], overwrite: bool) -> dict[str, Any]:
    """The manifest to go on from: the folder's own if the recipe is the same, else a new one."""
    fresh = {
        "format": MANIFEST_FORMAT,
        "complete": False,
        "recipe": recipe,
        "recipe_sha256": recipe_sha256(recipe),
        "versions": {name: version(name) for name in ("datasets", "numpy", "pillow", "pyarrow")},
        "splits": {split: rows for split, rows in source.splits.items() if rows},
        "class_names": list(source.class_names),
        "files": {},
    }
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder or nothing. Choose another --output.")
    if not folder.exists() or not any(folder.iterdir()):
        return fresh
    if not (folder / MANIFEST_NAME).exists():
        raise ValueError(
            f"{folder} is not empty and has no {MANIFEST_NAME}, so it was not written by this program. "
            "Choose another --output; nothing in there was touched."
        )
    if overwrite:
        return fresh
    found = load_manifest(folder)
    if differences := recipe_differences(found["recipe"], recipe):
        raise ValueError(
            f"{folder} was built with another recipe:\n  "
            + "\n  ".join(differences)
            + "\nChoose another --output, or build it anew with --overwrite."
        )
    return found


def _missing(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """True if a file of a finished data set is gone or has another length. Hashes are left to the check."""
    whole = [
        (folder / path).is_file() and (folder / path).stat().st_size == entry["bytes"]
        for path, entry in manifest["files"].items()
    ]
    return not all(whole) or not (folder / CARD_NAME).is_file()


def _kept_shards(folder: Path, manifest: Mapping[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
    """Manifest entries of the shards that are there with the right hash; other Parquet files in `data` are removed."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    planned = {shard.path for shard in shards}
    kept = {
        path: entry
        for path, entry in manifest["files"].items()
        if path in planned and (folder / path).is_file() and file_sha256(folder / path) == entry["sha256"]
    }
    for path in [*data.glob("*.parquet"), *data.glob(".*.tmp"), *folder.glob(".*.tmp")]:
        if path.relative_to(folder).as_posix() not in kept:
            path.unlink()
    return kept


# In a worker: the number of rows made so far by all workers. A shared counter lets the bar move within a shard.
_rows_done: Any = None


def _worker_context() -> Any:
    # Not "fork": a child would inherit the locks of whatever threads this process has. A server that has imported the
    # libraries once, and nothing else, is forked in no time, and its memory is shared.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(counter: Any) -> None:
    global _rows_done
    _rows_done = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent alone
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A parent that was killed outright cannot tell its workers, and they would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _count_row() -> None:
    with _rows_done.get_lock():
        _rows_done.value += 1


def _row_with_regions(split: str, number: int, make_row: RowMaker, proposals: str | Proposals) -> Row:
    return add_regions(make_row(split, number), proposals)


def _make_rows(shard: Shard, make_row: RowMaker, on_row: Callable[[], Any]) -> Iterable[Row]:
    for number in range(shard.start, shard.stop):
        try:
            row = make_row(shard.split, number)
        except Exception as error:
            error.add_note(f"This was row {number} of split {shard.split!r}, for {shard.path}.")
            raise
        yield row
        on_row()


def _work(folder: Path, shard: Shard, make_row: RowMaker, schema: pa.Schema) -> dict[str, Any]:
    return write_shard(folder / shard.path, _make_rows(shard, make_row, _count_row), schema)


def _written(
    folder: Path, shards: Sequence[Shard], make_row: RowMaker, schema: pa.Schema, workers: int, progress: tqdm
) -> Iterable[tuple[Shard, dict[str, Any]]]:
    """Writes shards, in this process or in several, and yields each with its manifest entry as it is finished."""
    if min(workers, len(shards)) <= 1:
        for shard in shards:
            yield shard, write_shard(folder / shard.path, _make_rows(shard, make_row, progress.update), schema)
        return
    context = _worker_context()
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(min(workers, len(shards)), context, _start_worker, (counter,)) as pool:
        waiting = {pool.submit(_work, folder, shard, make_row, schema): shard for shard in shards}
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                progress.update(counter.value - progress.n)
                for future in finished:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A worker process was killed, perhaps for memory. Finished shards are kept: run the same command "
                "again, with fewer --workers if it happens twice."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# -------------------------------------------------------------------------------------------------------------- card


def build_card(source: Source, manifest: Mapping[str, Any], features: Any) -> str:
    """Text of the data set card: a YAML header that `load_dataset` and the Hub read, then Markdown."""
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    entries = manifest["files"].values()
    sizes = {split: sum(e["bytes"] for e in entries if e["split"] == split) for split in manifest["splits"]}
    total = sum(sizes.values())
    splits = SplitDict()
    for split, rows in manifest["splits"].items():
        splits.add(SplitInfo(split, num_bytes=sizes[split], num_examples=rows))
    data = DatasetCardData(
        pretty_name=source.title,
        license=source.license,
        task_categories=["object-detection", "image-feature-extraction"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in manifest["splits"]],
            }
        ],
    )
    info = DatasetInfo(features=features, splits=splits, download_size=total, dataset_size=total)
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    rows = "\n".join(f"| {split} | {manifest['splits'][split]:,} | {sizes[split] / 1e6:.1f} |" for split in sizes)
    return f"""---
{data.to_yaml()}
---

# {source.title}

{source.description.strip()}

| split | images | MB |
| --- | --- | --- |
{rows}

## Columns

- `image`, `image_id`, `width`, `height`
- `objects`: annotations: `bbox`, `category`, `area`, `iscrowd`
- `regions`: class-free proposals: `bbox`, `score` (null where the source gives none), `source`
- `segmentation`: one-channel PNG: 0 = no class, k = category k - 1, 255 = ignore; null where there is none
- `license`, `author`, `original_url`, `landing_url`: null where they do not apply

Every `bbox` is x, y, width, height in absolute pixels, origin at the top left corner of the image.

```python
from datasets import load_dataset

dataset = load_dataset("FOLDER", split="{next(iter(sizes))}")  # FOLDER: where this card lies, or its id on the Hub
print(dataset[0]["objects"])
```

## How it was made

`manifest.json` holds the recipe and the sha256 of every file. To verify them:
`python -m dataset_scripts.prepare check FOLDER`.

```json
{json.dumps(manifest["recipe"], indent=2)}
```
"""


def available_cores() -> int:
    """Processor cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
