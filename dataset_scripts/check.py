"""Verifies a data set folder against its manifest and the Parquet contract, and counts what is in it.

A folder without a manifest, as others write and upload them, is held against the contract alone.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from modeling_decodepos.data.pictures import upright_size
from modeling_decodepos.data.schema import COLUMNS, SCHEMA_VERSION, SEGMENTATION_IGNORE, build_features, row_problems

from .build.engines import Count, run_local
from .build.parquet import CARD_NAME, MANIFEST_NAME, data_sha256, load_manifest, recipe_sha256
from .build.parquet_rows import class_names_of
from .files import file_sha256
from .pictures.listing import walk

_MOST_SHOWN = 5  # a systematic fault would fill the screen
_SHARD_NAME = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<count>\d{5})")
# Without these, rows cannot be judged; with another type in those, they can.
_NEEDED = {"image", "image_id", "width", "height", "objects"}
_ANY_TYPE = {"image_id", "objects.area", "objects.iscrowd", "license", "author", "original_url", "landing_url"}
# Columns that came with a version of the contract.
_NEW_COLUMNS = {2: ("landing_url",)}


@dataclass
class Findings:
    """What a check found, in lines: what is wrong, what is worth knowing and not wrong, what is in the folder."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    files: int = 0
    images: int = 0


@dataclass(frozen=True)
class _Contract:
    """What the files of a folder are held against. Without names, any category from 0 on is right."""

    class_names: tuple[str, ...] | None
    may_lack: tuple[str, ...] = ()

    @property
    def class_count(self) -> int:
        return 2**31 if self.class_names is None else len(self.class_names)

    @property
    def schema(self) -> pa.Schema:
        return build_features(self.class_names or ("unnamed",)).arrow_schema


@dataclass(frozen=True)
class _File:
    """A file to look at, and its size and hash if a manifest vouches for it."""

    path: str
    split: str
    rows: int
    bytes: int | None = None
    sha256: str = ""


@dataclass
class _Contents:
    """What one file holds. `ids` are hashes of the image ids, in order; `objects` counts them by category."""

    problems: list[str] = field(default_factory=list)
    extra_columns: list[str] = field(default_factory=list)
    ids: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    objects: Counter[int] = field(default_factory=Counter)
    regions: int = 0
    without_regions: int = 0


def check_dataset(folder: Path, workers: int = 1) -> list[str]:
    """What is wrong with a data set folder, one line per problem; empty if nothing is."""
    return inspect_dataset(folder, workers).problems


def inspect_dataset(folder: Path, workers: int = 1) -> Findings:
    """What is wrong with a data set folder, and what it holds. The findings do not depend on the number of workers."""
    findings = Findings()
    try:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        plan = _from_manifest if (folder / MANIFEST_NAME).exists() else _without_manifest
        files, contract = plan(folder, findings)
    except ValueError as error:
        findings.problems.append(str(error))
        return findings
    look = partial(_contents, folder=folder, contract=contract)
    total = sum(file.rows for file in files)
    with tqdm(total=total, desc="checking", unit=" images", mininterval=0.5) as progress:
        seen = dict(run_local(files, look, workers, progress.update))
    contents = [seen[file] for file in files]
    findings.problems += [f"{file.path}: {text}" for file in files for text in seen[file].problems]
    if extra := sorted({name for content in contents for name in content.extra_columns}):
        findings.notes.append(f"columns beyond the contract, which nothing here reads: {', '.join(extra)}")
    findings.problems += _repeated_ids(folder, files, contents)
    findings.files, findings.images = len(files), sum(len(content.ids) for content in contents)
    findings.summary = _summary(files, contents, contract.class_names)
    return findings


# ------------------------------------------------------------------------------------------------- what is to be there


def _from_manifest(folder: Path, findings: Findings) -> tuple[list[_File], _Contract]:
    manifest = load_manifest(folder)
    keys = ("recipe", "recipe_sha256", "splits", "class_names", "files")
    if missing := [key for key in keys if key not in manifest]:
        raise ValueError(f"manifest.json has no {', '.join(missing)}")
    version = manifest["recipe"].get("schema_version", 1)
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version is {version}, this program knows up to {SCHEMA_VERSION}: the folder was built by a newer "
            "one; update this checkout"
        )
    new = tuple(name for number, names in _NEW_COLUMNS.items() if number > version for name in names)
    if version < SCHEMA_VERSION:
        findings.notes.append(
            f"schema_version is {version}, this program writes {SCHEMA_VERSION}: the folder has no {', '.join(new)}. "
            "Training reads it as it is; build it again to have what is new"
        )

    complete = manifest.get("complete")
    data_fits = not complete or manifest.get("data_sha256") == data_sha256(manifest)
    recipe_fits = manifest["recipe_sha256"] == recipe_sha256(manifest["recipe"])
    faults = {
        "the build is not finished: run the command that began it again": not complete,
        "manifest.json: data_sha256 does not fit the hashes of the files; it was edited": not data_fits,
        "manifest.json: recipe_sha256 does not fit the recipe; it was edited": not recipe_fits,
        f"{CARD_NAME} is missing, so load_dataset would not know the splits": not (folder / CARD_NAME).is_file(),
    }
    findings.problems += [text for text, is_wrong in faults.items() if is_wrong]
    foreign = {path.relative_to(folder).as_posix() for path in folder.glob("data/*.parquet")} - {*manifest["files"]}
    findings.problems += [f"{path} is not in manifest.json, but load_dataset may read it" for path in sorted(foreign)]
    rows = Counter[str]()
    for entry in manifest["files"].values():
        rows[entry["split"]] += entry["rows"]
    findings.problems += [
        f"split {split} has {rows[split]} rows, expected {expected}"
        for split, expected in manifest["splits"].items()
        if complete and rows[split] != expected
    ]
    facts = ("split", "rows", "bytes", "sha256")
    files = [_File(path, *(entry[fact] for fact in facts)) for path, entry in manifest["files"].items()]
    return files, _Contract(tuple(manifest["class_names"]), may_lack=new)


def _without_manifest(folder: Path, findings: Findings) -> tuple[list[_File], _Contract]:
    paths = parquet_files(folder)
    if not paths:
        raise ValueError(f"{folder} has neither {MANIFEST_NAME} nor Parquet files")
    findings.notes.append(
        f"no {MANIFEST_NAME}: whether files are those that somebody wrote, and all of them, cannot be told. Every "
        "image is decoded instead, and held against the contract"
    )
    if not (folder / CARD_NAME).is_file():
        findings.notes.append(f"no {CARD_NAME}: load_dataset guesses the splits from the file names")

    files, names = [], None
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            metadata = pq.read_metadata(path)
            names = names or class_names_of(metadata.schema.to_arrow_schema())
        except (OSError, pa.ArrowException) as error:
            findings.problems.append(f"{name}: cannot be read as Parquet ({str(error).splitlines()[0]})")
            continue
        files.append(_File(name, split_of(path), metadata.num_rows))
    findings.problems += _missing_shards(folder, paths)
    if names is None:
        findings.notes.append("no class names are stored with objects.category")
    return files, _Contract(None if names is None else tuple(names))


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below a folder, but not hidden ones and not those in hidden folders."""
    return sorted(folder / name for name, _ in walk(folder) if name.endswith(".parquet"))


def split_of(path: Path) -> str:
    """The split that a file's name tells of: train-00000-of-00008.parquet, or train.parquet."""
    match = _SHARD_NAME.fullmatch(path.stem)
    return match["split"] if match else path.stem


def _missing_shards(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Files that the names of others promise: 00001-of-00003 without 00002-of-00003."""
    promised = set()
    for path in paths:
        if match := _SHARD_NAME.fullmatch(path.stem):
            count = int(match["count"])
            promised |= {path.with_name(f"{match['split']}-{k:05d}-of-{count:05d}.parquet") for k in range(count)}
    missing = sorted(path.relative_to(folder).as_posix() for path in promised - set(paths))
    return [f"{path} is missing: other files' names promise it" for path in missing[:_MOST_SHOWN]]


# ------------------------------------------------------------------------------------------------------- what is there


def _contents(file: _File, count: Count, folder: Path, contract: _Contract) -> _Contents:
    path, contents = folder / file.path, _Contents()
    problems = contents.problems
    if not path.is_file():
        problems.append("the file is missing; run the command that built the folder again")
    elif file.bytes is not None and (size := path.stat().st_size) != file.bytes:
        problems.append(f"{size} bytes, expected {file.bytes}: cut off or replaced; delete it and build again")
    elif file.sha256 and (found := file_sha256(path)) != file.sha256:
        hashes = f"sha256 is {found[:12]}…, expected {file.sha256[:12]}…"
        problems.append(f"{hashes}: damaged; delete it and build again")
    else:
        try:
            _read(path, file, contract, contents, count)
        except (OSError, pa.ArrowException) as error:
            problems.append(f"cannot be read as Parquet ({str(error).splitlines()[0]})")
    contents.problems = _first_few(problems, "problems more")
    return contents


def _first_few(problems: list[str], rest: str) -> list[str]:
    more = len(problems) - _MOST_SHOWN
    return problems if more <= 0 else [*problems[:_MOST_SHOWN], f"… and {more} {rest}"]


def _read(path: Path, file: _File, contract: _Contract, contents: _Contents, count: Count) -> None:
    parquet = pq.ParquetFile(path)
    found, expected = parquet.schema_arrow, contract.schema
    if parquet.metadata.num_rows != file.rows:
        contents.problems.append(f"{parquet.metadata.num_rows} rows, expected {file.rows}")
        return
    contents.extra_columns = [name for name in found.names if name not in COLUMNS]
    lacking = [name for name in COLUMNS if name not in found.names]
    if missing := [name for name in lacking if name not in contract.may_lack]:
        contents.problems.append(
            f"missing columns: {', '.join(missing)}; the layout is in modeling_decodepos/data/schema.py"
        )
    wrong = [difference for name in set(COLUMNS) - set(lacking) for difference in _differences(found, expected, name)]
    contents.problems += sorted(f"column {name} is {kind}, expected {wanted}" for name, kind, wanted in wrong)
    if {name for name, _, _ in wrong} - _ANY_TYPE or set(lacking) & _NEEDED:
        return  # rows of other types cannot be judged

    absent: dict[str, Any] = dict.fromkeys(lacking)
    if "regions" in absent:
        absent["regions"] = {"bbox": [], "score": None, "source": []}
    ids = []
    for batch in parquet.iter_batches(batch_size=100, columns=[name for name in COLUMNS if name in found.names]):
        for row in batch.to_pylist():
            row |= absent
            ids.append(_id_hash(row["image_id"]))
            categories = (row["objects"] or {}).get("category") or []
            contents.objects.update(k for k in categories if k is not None and 0 <= k < contract.class_count)
            regions = len((row["regions"] or {}).get("bbox") or [])
            contents.regions += regions
            contents.without_regions += not regions
            texts = row_problems(row, contract.class_count)
            texts += _image_problems(row, contract.class_count, decode=not file.sha256)
            contents.problems += [f"{row['image_id']}: {text}" for text in texts]
        count(batch.num_rows)
    contents.ids = np.array(ids, np.uint64)


def _differences(found: pa.Schema, expected: pa.Schema, name: str) -> list[tuple[str, str, str]]:
    """Where a column has another type than it should: names, types found, types expected."""
    have, want = found.field(name).type, expected.field(name).type
    if have == want:
        return []
    if not (pa.types.is_struct(have) and pa.types.is_struct(want)):
        return [(name, str(have), str(want))]
    types = {part.name: part.type for part in have}
    wrong = [part for part in want if types.get(part.name) != part.type]
    return [(f"{name}.{part.name}", str(types.get(part.name, "not there")), str(part.type)) for part in wrong]


def _image_problems(row: Mapping[str, Any], class_count: int, decode: bool) -> Iterable[str]:
    height, width = size = (row["height"], row["width"])
    try:
        if row["image"] is None or row["image"]["bytes"] is None:
            yield "image has no embedded bytes"
        else:
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                if (found := upright_size(image)) != size:
                    yield f"image is {found[1]} x {found[0]} px, expected {width} x {height}"
                if decode:
                    image.load()
        if row["segmentation"] is not None:
            with Image.open(io.BytesIO(row["segmentation"]["bytes"])) as image:
                labels = np.asarray(image)
            if labels.shape != size:
                yield f"segmentation has shape {labels.shape}, expected {size}"
            elif (wrong := labels[(labels > class_count) & (labels != SEGMENTATION_IGNORE)]).size:
                yield f"segmentation has the value {wrong[0]}, expected 0 to {class_count} or {SEGMENTATION_IGNORE}"
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        yield f"image or segmentation cannot be decoded ({error})"


# -------------------------------------------------------------------------------------------------- over all files


def _id_hash(image_id: object) -> int:
    # 8 bytes for each of 100 million ids fit into memory, their strings do not. Two equal hashes are looked at again.
    return int.from_bytes(hashlib.blake2b(str(image_id).encode(), digest_size=8).digest(), "big")


def _repeated_ids(folder: Path, files: Sequence[_File], contents: Sequence[_Contents]) -> list[str]:
    everything = np.concatenate([content.ids for content in contents] or [np.zeros(0, np.uint64)])
    values, counts = np.unique(everything, return_counts=True)
    repeated = values[counts > 1]
    if not repeated.size:
        return []
    first: dict[str, _File] = {}
    problems = []
    for file, content in zip(files, contents, strict=True):
        suspects = np.flatnonzero(np.isin(content.ids, repeated))
        if not suspects.size:
            continue
        for image_id in pq.read_table(folder / file.path, columns=["image_id"])["image_id"].take(suspects).to_pylist():
            earlier = first.get(image_id)
            if earlier is None:
                first[image_id] = file
                continue
            also = "" if earlier is file else f", also in {earlier.path}"
            between = f": once in {earlier.split}, once in {file.split}" if earlier.split != file.split else ""
            problems.append(f"{file.path}: {image_id}: image_id appears twice{also}{between}")
    return _first_few(problems, "ids more that appear twice")


def _summary(files: Sequence[_File], contents: Sequence[_Contents], class_names: tuple[str, ...] | None) -> list[str]:
    lines = []
    for split in dict.fromkeys(file.split for file in files):
        own = [content for file, content in zip(files, contents, strict=True) if file.split == split]
        images = sum(len(content.ids) for content in own)
        if not images:
            continue
        objects, regions = sum(content.objects.total() for content in own), sum(content.regions for content in own)
        without = sum(content.without_regions for content in own)
        lines.append(
            f"{split}: {images:,} images; {objects:,} objects ({objects / images:.1f} per image); {regions:,} regions "
            f"({regions / images:.1f} per image), {without / images:.1%} of the images have none"
        )
    counts = sum((content.objects for content in contents), Counter[int]())
    if counts:
        shares = [
            f"{class_names[k] if class_names else k} {number:,} ({number / counts.total():.1%})"
            for k, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
        classes = len(class_names) if class_names else max(counts) + 1
        lines.append(f"classes: {len(shares)} of {classes} occur; most often: {', '.join(shares[:3])}")
        lines.append(f"least often: {', '.join(shares[-3:])}")
    return lines
