"""Verifies a data set folder against its manifest and the Parquet contract."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from modeling_decodepos.schema import SEGMENTATION_IGNORE, build_features, row_problems

from .parquet import CARD_NAME, data_sha256, file_sha256, load_manifest, recipe_sha256
from .pictures import upright_size

_MOST_PER_FILE = 5  # a systematic fault would fill the screen


def check_dataset(folder: Path) -> list[str]:
    """What is wrong with a data set folder, one line per problem; empty if nothing is."""
    if not folder.is_dir():
        return [f"{folder} is not a folder"]
    try:
        manifest = load_manifest(folder)
    except ValueError as error:
        return [str(error)]
    if missing := [
        key for key in ("recipe", "recipe_sha256", "splits", "class_names", "files") if key not in manifest
    ]:
        return [f"manifest.json has no {', '.join(missing)}"]

    problems = []
    if not manifest.get("complete"):
        problems.append("the build is not finished: run the command that began it again")
    elif manifest.get("data_sha256") != data_sha256(manifest):
        problems.append("manifest.json: data_sha256 does not fit the hashes of the files; it was edited")
    if manifest["recipe_sha256"] != recipe_sha256(manifest["recipe"]):
        problems.append("manifest.json: recipe_sha256 does not fit the recipe; it was edited")
    if not (folder / CARD_NAME).is_file():
        problems.append(f"{CARD_NAME} is missing, so load_dataset would not know the splits")
    for path in sorted((folder / "data").glob("*.parquet")):
        if path.relative_to(folder).as_posix() not in manifest["files"]:
            problems.append(f"data/{path.name} is not in manifest.json, but load_dataset may read it")

    rows = dict.fromkeys(manifest["splits"], 0)
    ids: set[str] = set()
    for path, entry in tqdm(manifest["files"].items(), desc="checking", unit=" files"):
        rows[entry["split"]] = rows.get(entry["split"], 0) + entry["rows"]
        problems += [f"{path}: {text}" for text in _file_problems(folder / path, entry, manifest["class_names"], ids)]
    if manifest.get("complete"):
        for split, expected in manifest["splits"].items():
            if rows[split] != expected:
                problems.append(f"split {split} has {rows[split]} rows, expected {expected}")
    return problems


def _file_problems(path: Path, entry: dict[str, Any], class_names: list[str], ids: set[str]) -> list[str]:
    if not path.is_file():
        return ["the file is missing; run the command that built the folder again"]
    if (size := path.stat().st_size) != entry["bytes"]:
        return [f"{size} bytes, expected {entry['bytes']}: cut off or replaced; delete it and build again"]
    if (digest := file_sha256(path)) != entry["sha256"]:
        return [f"sha256 is {digest[:12]}…, expected {entry['sha256'][:12]}…: damaged; delete it and build again"]
    file = pq.ParquetFile(path)
    if file.metadata.num_rows != entry["rows"]:
        return [f"{file.metadata.num_rows} rows, expected {entry['rows']}"]
    expected = build_features(class_names).arrow_schema
    if not file.schema_arrow.equals(expected):
        return [_schema_difference(file.schema_arrow, expected)]

    problems: list[str] = []
    for batch in file.iter_batches(batch_size=100):
        for row in batch.to_pylist():
            found = [*row_problems(row, len(class_names)), *_image_problems(row, len(class_names))]
            if row["image_id"] in ids:
                found.append("image_id appears twice")
            ids.add(row["image_id"])
            problems += [f"{row['image_id']}: {text}" for text in found]
    if len(problems) > _MOST_PER_FILE:
        problems = [*problems[:_MOST_PER_FILE], f"… and {len(problems) - _MOST_PER_FILE} problems more"]
    return problems


def _schema_difference(found: Any, expected: Any) -> str:
    for name in expected.names:
        if name not in found.names:
            return f"column {name} is missing"
        if not found.field(name).equals(expected.field(name)):
            return f"column {name} is {found.field(name).type}, expected {expected.field(name).type}"
    return f"columns are {', '.join(found.names)}, expected {', '.join(expected.names)}"


def _image_problems(row: dict[str, Any], class_count: int) -> Iterable[str]:
    size = (row["width"], row["height"])
    try:
        if row["image"] is None or row["image"]["bytes"] is None:
            yield "image has no embedded bytes"
        else:
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                if (found := upright_size(image)) != size:
                    yield f"image is {found[0]} x {found[1]} px, expected {size[0]} x {size[1]}"
        if row["segmentation"] is not None:
            with Image.open(io.BytesIO(row["segmentation"]["bytes"])) as image:
                labels = np.asarray(image)
            if labels.shape != size[::-1]:
                yield f"segmentation has shape {labels.shape}, expected {size[::-1]}"
            elif (wrong := labels[(labels > class_count) & (labels != SEGMENTATION_IGNORE)]).size:
                yield f"segmentation has the value {wrong[0]}, expected 0 to {class_count} or {SEGMENTATION_IGNORE}"
    except (UnidentifiedImageError, OSError) as error:
        yield f"image or segmentation cannot be decoded ({error})"
