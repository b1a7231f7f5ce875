"""A data set folder: Parquet shards, a manifest and a card.

    FOLDER/data/train-00000-of-00008.parquet …    rows in the contract of `modeling_decodepos.data.schema`
    FOLDER/manifest.json                          recipe and its hash; rows, bytes and sha256 of every shard
    FOLDER/README.md                              card; `datasets.load_dataset(FOLDER)` reads its header

A build can be killed at any moment and run again. Every file appears under its name only when it is whole, and a shard
is written down in the manifest only after that; a second run keeps the shards that are written down and whose hash is
right. Row n of a split is made from n alone, so the bytes do not depend on the number of workers.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from modeling_decodepos.data.schema import SCHEMA_VERSION, build_features

from ..files import DISK_FULL, file_sha256, lock_folder, read_json, remove_unfinished, whole_file, write_text
from ..proposals import Proposals, add_regions, recipe_of
from .engines import ENGINES, Count, Unfinished
from .work_folder import MANIFEST_NAME, holds_something

CARD_NAME = "README.md"
MANIFEST_FORMAT = 1
ROWS_PER_GROUP = 100  # small enough to read single images from a remote file

_SHARED = "--output must lie on a file system that all machines of the cluster share, under one path on each."
SHARED_WITHIN_S = 60.0  # until a file of another machine must be seen here; NFS asks for a folder's news that rarely

Row = dict[str, Any]
RowMaker = Callable[[str, int], Row]
"""Makes row n of a split: (split, n) -> row, all but its `regions`. A pure function that can be pickled."""


class RowFailed(RuntimeError):
    """A row could not be made. The message names it and the reason; what the builder raised is the cause."""


@dataclass(frozen=True)
class PlannedShard:
    """Rows `start` to `stop` (exclusive) of a split and the file for them, relative to the data set folder."""

    path: str
    split: str
    start: int
    stop: int


@dataclass(frozen=True)
class DatasetPlan:
    """What a builder hands over: which rows there are, how to make one, and how the card describes them."""

    recipe: Mapping[str, Any]  # all that decides the bytes of the rows; JSON values only
    splits: Mapping[str, int]  # rows of each; a split without rows gets no file
    class_names: Sequence[str]
    make_row: RowMaker
    title: str
    license: str | list[str]  # identifiers of the Hub
    description: str  # body of the card, Markdown
    proposals: str | Proposals = "none"
    # Further configurations: how many rows of each split, from the first on, belong to it.
    tiers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    extra_files: Mapping[str, str] = field(default_factory=dict)  # texts, by name


# ------------------------------------------------------------------------------------------------------------ shards


def write_shard(path: Path, rows: Iterable[Row], schema: pa.Schema) -> dict[str, Any]:
    """Writes rows to one Parquet file, whole or not at all; returns its manifest entry without the split."""
    count, left = 0, iter(rows)
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while group := list(islice(left, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
            count += len(group)
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
        manifest = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error} Build the data set again with --overwrite.") from error
    found = manifest.get("format")
    if found != MANIFEST_FORMAT:
        raise ValueError(
            f"{path}: format is {found!r}, expected {MANIFEST_FORMAT}. It was written by another program."
        )
    return manifest


def _save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_text(folder / MANIFEST_NAME, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def plan_shards(
    splits: Mapping[str, int], rows_per_shard: int, tiers: Mapping[str, Mapping[str, int]] | None = None
) -> list[PlannedShard]:
    """The shards of all splits, each with `rows_per_shard` rows but for the last of a split or of a tier."""
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}, expected at least 1.")
    shards = []
    for split, rows in splits.items():
        ends = sorted({rows, *(tier.get(split, 0) for tier in (tiers or {}).values())} - {0})
        if ends and ends[-1] > rows:
            raise ValueError(f"A tier has {ends[-1]} rows of split {split!r}, expected at most {rows}.")
        starts = [start for begin, end in pairwise([0, *ends]) for start in range(begin, end, rows_per_shard)]
        shards += [
            PlannedShard(f"data/{split}-{k:05d}-of-{len(starts):05d}.parquet", split, start, stop)
            for k, (start, stop) in enumerate(pairwise([*starts, rows]))
        ]
    return shards


# ------------------------------------------------------------------------------------------------------------- build


def build_dataset(
    folder: Path,
    source: DatasetPlan,
    workers: int = 1,
    rows_per_shard: int = 500,
    overwrite: bool = False,
    engine: str = "local",
) -> dict[str, Any]:
    """Builds, completes or recognises a data set folder; returns its manifest.

    A finished folder of the same recipe is left as it is. A half-built one is completed. A folder of another recipe is
    refused with the differences, unless `overwrite`; one that holds something else is always refused.

    Raises:
        ValueError: It cannot be built as asked, or another build of this folder is under way.
        RowFailed: A row could not be made.
        Unfinished: A full disk or a lost worker; a second call goes on.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}, expected 0 (one per core) or more.")
    recipe = {
        **source.recipe,
        "proposals": recipe_of(source.proposals),
        "rows_per_shard": rows_per_shard,
        "schema_version": SCHEMA_VERSION,
    }
    shards = plan_shards(source.splits, rows_per_shard, source.tiers)
    if not shards:
        raise ValueError(f"The splits {dict(source.splits)} have no rows, expected at least one.")
    manifest = _open_folder(folder, source, recipe, overwrite)
    whole = (folder / CARD_NAME).is_file() and all(_is_seen(folder, *file) for file in manifest["files"].items())
    if manifest["complete"] and whole:  # hashes are left to the check
        print(f"{folder} is finished and has this recipe: nothing to do.")
        return manifest
    try:
        with lock_folder(folder, "--output", "build"):
            # Once more: the folder may have changed hands between the look and the lock.
            manifest = _open_folder(folder, source, recipe, overwrite)
            try:
                return _complete(folder, source, manifest, shards, workers, engine)
            finally:  # of this build, or of one that was killed
                remove_unfinished(folder / "data")
                remove_unfinished(folder)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise Unfinished(
            f"{folder}: the disk or quota is full ({os.strerror(error.errno)}). Finished shards are kept and nothing "
            "half-written is left: make room and run the same command again."
        ) from error


def _complete(
    folder: Path,
    source: DatasetPlan,
    manifest: dict[str, Any],
    shards: Sequence[PlannedShard],
    workers: int,
    engine: str,
) -> dict[str, Any]:
    """Writes what the manifest does not have yet; returns the finished manifest."""
    manifest = {**manifest, "complete": False, "files": _kept_shards(folder, manifest, shards)}
    _save_manifest(folder, manifest)
    missing = [shard for shard in shards if shard.path not in manifest["files"]]
    if manifest["files"]:
        print(f"{folder}: keeping {len(manifest['files'])} of {len(shards)} shards from an earlier run.")
    features = build_features(source.class_names)
    how = {"make_row": source.make_row, "proposals": source.proposals, "schema": features.arrow_schema}
    work = partial(_make_shard, folder=folder.absolute(), **how)
    total = sum(shard.stop - shard.start for shard in missing)
    with (
        tqdm(total=total, desc=folder.name, unit=" images", mininterval=0.5) as progress,
        closing(ENGINES[engine](missing, work, workers, progress.update)) as written,
    ):
        for shard, entry in written:
            _wait_until_seen(folder, shard.path, entry)
            manifest["files"][shard.path] = {"split": shard.split, **entry}
            _save_manifest(folder, manifest)

    manifest["files"] = {shard.path: manifest["files"][shard.path] for shard in shards}
    manifest |= {"data_sha256": data_sha256(manifest), "complete": True}
    for name, text in source.extra_files.items():
        write_text(folder / name, text)
    write_text(folder / CARD_NAME, build_card(source, manifest, features))
    _save_manifest(folder, manifest)
    return manifest


def _is_seen(folder: Path, path: str, entry: Mapping[str, Any]) -> bool:
    return (folder / path).is_file() and (folder / path).stat().st_size == entry["bytes"]


def _wait_until_seen(folder: Path, path: str, entry: Mapping[str, Any]) -> None:
    """Returns when a file that another machine may have written is seen from here."""
    patience = time.monotonic() + SHARED_WITHIN_S
    while not _is_seen(folder, path, entry):
        if time.monotonic() > patience:
            raise ValueError(
                f"{folder / path} was written, but is not to be seen on {socket.gethostname()}. {_SHARED}"
            )
        time.sleep(0.2)


def _open_folder(folder: Path, source: DatasetPlan, recipe: Mapping[str, Any], overwrite: bool) -> dict[str, Any]:
    """The manifest to go on from: the folder's own if the recipe is the same, else a new one."""
    fresh = {
        "format": MANIFEST_FORMAT,
        "complete": False,
        "recipe": recipe,
        "recipe_sha256": recipe_sha256(recipe),
        "versions": {name: version(name) for name in ("datasets", "numpy", "pillow", "pyarrow")},
        "splits": {split: rows for split, rows in source.splits.items() if rows},
        "class_names": list(source.class_names),
        "tiers": {name: dict(tier) for name, tier in source.tiers.items()},
        "files": {},
    }
    if not holds_something(folder, (MANIFEST_NAME,)) or overwrite:
        return fresh
    found = load_manifest(folder)
    if not found["files"]:  # nothing is lost that another recipe did not get to
        return fresh
    if differences := recipe_differences(found["recipe"], recipe):
        raise ValueError(
            f"{folder} was built with another recipe:\n  "
            + "\n  ".join(differences)
            + "\nChoose another --output, or build it anew with --overwrite."
        )
    return found


def _kept_shards(folder: Path, manifest: Mapping[str, Any], shards: Sequence[PlannedShard]) -> dict[str, Any]:
    """Manifest entries of the shards that are there with the right hash; other Parquet files in `data` are removed."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    planned = {shard.path for shard in shards}
    kept = {
        path: entry
        for path, entry in manifest["files"].items()
        if path in planned and _is_seen(folder, path, entry) and file_sha256(folder / path) == entry["sha256"]
    }
    for path in data.glob("*.parquet"):
        if path.relative_to(folder).as_posix() not in kept:
            path.unlink()
    return kept


def _make_shard(
    shard: PlannedShard, count: Count, folder: Path, make_row: RowMaker, proposals: str | Proposals, schema: pa.Schema
) -> dict[str, Any]:
    path = folder / shard.path
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not there on {socket.gethostname()}. {_SHARED}")

    def rows() -> Iterator[Row]:
        for number in range(shard.start, shard.stop):
            try:
                row = add_regions(make_row(shard.split, number), proposals)
            except Exception as error:
                if getattr(error, "errno", None) in DISK_FULL:
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise RowFailed(f"row {number} of split {shard.split!r}, for {shard.path}: {reason}") from error
            yield row
            count(1)

    return write_shard(path, rows(), schema)


# -------------------------------------------------------------------------------------------------------------- card


def build_card(source: DatasetPlan, manifest: Mapping[str, Any], features: Any) -> str:
    """Text of the data set card: a YAML header that `load_dataset` and the Hub read, then Markdown."""
    from datasets import DatasetInfo, SplitDict
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    configs, infos = [], {}
    for name, rows in {"default": manifest["splits"], **source.tiers}.items():
        files, splits = _tier_files(manifest["files"], rows), [split for split, count in rows.items() if count]
        paths: dict[str, Any] = {split: [path for path in files if files[path]["split"] == split] for split in splits}
        sizes = {split: sum(files[path]["bytes"] for path in paths[split]) for split in splits}
        if name == "default":
            paths = {split: f"data/{split}-*.parquet" for split in splits}
        configs.append(
            {"config_name": name, "data_files": [{"split": split, "path": paths[split]} for split in splits]}
        )
        infos[name] = DatasetInfo(
            features=features,
            splits=SplitDict.from_split_dict(
                [{"name": split, "num_bytes": sizes[split], "num_examples": rows[split]} for split in splits]
            ),
            download_size=sum(sizes.values()),
            dataset_size=sum(sizes.values()),
        )
    data = DatasetCardData(
        pretty_name=source.title,
        license=source.license,
        task_categories=["object-detection", "image-feature-extraction"],
        configs=configs,
    )
    DatasetInfosDict(infos).to_dataset_card_data(data)
    splits = infos["default"].splits.values()
    first = next(iter(manifest["splits"]))
    table = "\n".join(f"| {split.name} | {split.num_examples:,} | {split.num_bytes / 1e6:.1f} |" for split in splits)
    return f"""---
{data.to_yaml()}
---

# {source.title}

{source.description.strip()}

## Size

| split | images | MB |
| --- | --- | --- |
{table}

## Columns

- `image`, `image_id`, `width`, `height`
- `objects`: annotations: `bbox`, `category`, `area`, `iscrowd`
- `regions`: class-free proposals: `bbox`, `score` (null where the source gives none), `source`
- `segmentation`: one-channel PNG: 0 = no class, k = category k - 1, 255 = ignore; null where there is none
- `license`, `author`, `original_url`, `landing_url`: null where they do not apply

Every `bbox` is x, y, width, height in absolute pixels, origin at the top left corner of the image.

```python
from datasets import load_dataset

dataset = load_dataset("FOLDER", split="{first}")  # FOLDER: where this card lies, or its id on the Hub
print(dataset[0]["objects"])
```

## How it was made

`manifest.json` holds the recipe and the sha256 of every file. To verify them:
`python -m dataset_scripts.prepare check FOLDER`.

```json
{json.dumps(manifest["recipe"], indent=2)}
```
"""


def _tier_files(files: Mapping[str, Any], tier: Mapping[str, int]) -> dict[str, Any]:
    """Manifest entries of the shards of a tier; `plan_shards` ended one where the tier ends."""
    chosen, left = {}, dict(tier)
    for path, entry in files.items():
        if left.get(entry["split"], 0) > 0:
            left[entry["split"]] -= entry["rows"]
            chosen[path] = entry
    return chosen
