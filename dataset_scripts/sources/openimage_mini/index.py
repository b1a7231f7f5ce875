"""The list behind OpenImage-MINI: ids, boxes, attribution and the rule that chose them, without pixels.

    FOLDER/index.json                        rule, classes, counts, hashes
    FOLDER/data/train-small.parquet …        one row per image; the small tier is a file of its own
    FOLDER/README.md                         card; `load_dataset(FOLDER)` reads it

It is what `--ids_only` writes, and what every build goes through, so that a build from this folder and one from the
CSV files cannot differ.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from modeling_decodepos.commands.settings import from_values

from ...files import whole_file, write_text
from .selection import Rule
from .tables import IMAGE_LIST, Boxes, Ids, check_image_ids, id_text

INDEX_NAME = "index.json"
INDEX_FORMAT = 1
FILES = ("data/train-small.parquet", "data/train-rest.parquet", "data/validation.parquet")

SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "boxes": pa.list_(pa.list_(pa.float32(), 4)),
        "categories": pa.list_(pa.int64()),
        "masks": pa.list_(pa.string()),
        "mask_categories": pa.list_(pa.int64()),
        "license": pa.string(),
        "author": pa.string(),
        "original_url": pa.string(),
        "landing_url": pa.string(),
        "rotation": pa.int16(),
        "original_size": pa.int64(),
        "original_md5": pa.string(),
    }
)


@dataclass(frozen=True)
class Index:
    """The chosen images."""

    rule: Rule
    absent: tuple[str, ...]  # tables that were not there, so that what they tell is missing
    classes: tuple[tuple[str, str], ...]  # (LabelName, readable name) in the order of `categories`
    counts: Mapping[str, Mapping[str, int]]  # what was read and left out, for the record
    small: int  # rows of `train` that are the small tier, from the first on
    train: pa.Table
    validation: pa.Table

    @property
    def splits(self) -> dict[str, pa.Table]:
        """Rows by split."""
        return {"train": self.train, "validation": self.validation}

    @cached_property
    def sha256(self) -> str:
        """Hash of all that decides the rows of a build but the pixels."""
        digest = hashlib.sha256()
        digest.update(json.dumps([asdict(self.rule), self.absent, self.classes, self.small]).encode())
        for table in self.splits.values():
            for batch in table.to_batches(max_chunksize=1000):
                for row in batch.to_pylist():
                    digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def ids_sha256(ids: Sequence[str]) -> str:
    """Hash of a list of ids: that of a text file with one per line."""
    return hashlib.sha256("".join(f"{image_id}\n" for image_id in ids).encode()).hexdigest()


def index_rows(
    ids: Ids,
    boxes: Boxes,
    classes: NDArray[np.intp],
    masks: Sequence[Sequence[tuple[str, int]]] | None,
    attribution: pa.Table | None,
) -> pa.Table:
    """Rows of a split, one per id in that order, with what is known of its images.

    Args:
        ids: of the images.
        boxes: all usable boxes of the split, sorted.
        classes: places of the kept classes, in the order of their new numbers.
        masks: name and class of the masks of every image.
        attribution: columns of the image list for every image.
    """
    number_of = {place: number for number, place in enumerate(classes.tolist())}
    mine = boxes[np.isin(boxes["image"], ids) & np.isin(boxes["category"], classes)]
    sorter = np.argsort(ids)
    row = sorter[np.searchsorted(ids, mine["image"], sorter=sorter)]
    mine = mine[np.argsort(row, kind="stable")]
    offsets = pa.array(np.cumsum([0, *np.bincount(row, minlength=len(ids))]), pa.int32())
    corners = pa.FixedSizeListArray.from_arrays(pa.array(mine["corners"].ravel()), 4)
    kept = [[(name, number_of[place]) for name, place in found if place in number_of] for found in masks or []]
    kept = kept or [[]] * len(ids)
    columns = {
        "image_id": [id_text(number) for number in ids],
        "boxes": pa.ListArray.from_arrays(offsets, corners),
        "categories": pa.ListArray.from_arrays(offsets, np.searchsorted(classes, mine["category"])),
        "masks": pa.array([[name for name, _ in found] for found in kept], SCHEMA.field("masks").type),
        "mask_categories": [[number for _, number in found] for found in kept],
    }
    for name in IMAGE_LIST:
        columns[name] = pa.nulls(len(ids), SCHEMA.field(name).type) if attribution is None else attribution[name]
    return pa.table(columns).cast(SCHEMA)


# ------------------------------------------------------------------------------------------------------------ folder


def write_index(folder: Path, index: Index) -> None:
    """Writes the folder; `index.json` comes last, so a folder that has one is whole."""
    (folder / INDEX_NAME).unlink(missing_ok=True)
    tables = (index.train.slice(0, index.small), index.train.slice(index.small), index.validation)
    files = {name: table for name, table in zip(FILES, tables, strict=True) if table.num_rows}
    for name, table in files.items():
        with whole_file(folder / name) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    write_text(folder / "README.md", _card(index, list(files)))
    facts = {
        "format": INDEX_FORMAT,
        "rule": asdict(index.rule),
        "absent": index.absent,
        "classes": index.classes,
        "counts": index.counts,
        "small": index.small,
        "sha256": index.sha256,
        "ids_sha256": {split: ids_sha256(table["image_id"].to_pylist()) for split, table in index.splits.items()},
    }
    write_text(folder / INDEX_NAME, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def read_index(folder: Path) -> Index:
    """The index of a folder, verified against its own hash."""
    path = folder / INDEX_NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Write the ids again.") from error
    if not isinstance(facts, dict) or facts.get("format") != INDEX_FORMAT:
        raise ValueError(f"{path}: expected format {INDEX_FORMAT}. It was written by another program.")
    small, rest, validation = (
        pq.read_table(folder / name).cast(SCHEMA) if (folder / name).is_file() else SCHEMA.empty_table()
        for name in FILES
    )
    index = Index(
        from_values(Rule, facts["rule"], "the rule"),
        tuple(facts["absent"]),
        tuple((label, name) for label, name in facts["classes"]),
        facts["counts"],
        facts["small"],
        pa.concat_tables([small, rest]),
        validation,
    )
    if (found := index.sha256) != facts["sha256"]:
        raise ValueError(
            f"{folder}: the ids have the hash {found[:12]}…, index.json says {facts['sha256'][:12]}…: a file is "
            "damaged or was edited. Get the folder again."
        )
    for table in index.splits.values():
        check_image_ids(table["image_id"], f"{folder}, image_id")
    return index


def _card(index: Index, files: Sequence[str]) -> str:
    from datasets import ClassLabel, DatasetInfo, Features, List, Value
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    category = List(ClassLabel(names=[name for _, name in index.classes]))
    features = Features.from_arrow_schema(SCHEMA)
    features |= {"boxes": List(List(Value("float32"), length=4)), "categories": category, "mask_categories": category}

    def config(name: str, chosen: Sequence[str]) -> dict[str, Any]:
        paths = {split: [path for path in chosen if f"/{split}" in path] for split in ("train", "validation")}
        return {"config_name": name, "data_files": [{"split": s, "path": path} for s, path in paths.items() if path]}

    data = DatasetCardData(
        pretty_name="OpenImage-MINI (our reconstruction), ids and boxes",
        license="cc-by-4.0",
        task_categories=["object-detection"],
        configs=[config("default", files), config("small", [file for file in files if "rest" not in file])],
    )
    info = DatasetInfo(features=Features({name: features[name] for name in SCHEMA.names}))
    DatasetInfosDict({"default": info, "small": info}).to_dataset_card_data(data)
    return f"""---
{data.to_yaml()}
---

# OpenImage-MINI (our reconstruction), ids and boxes

The images of our reconstruction of OpenImage-MINI, without their pixels: {index.train.num_rows:,} for training, of
which the first {index.small:,} are the small tier, and {index.validation.num_rows:,} for validation. The paper's list
was never released. Annotations: Open Images, CC BY 4.0. Every photo has a licence of its own, listed as CC BY 2.0.

`boxes` are x1, y1, x2, y2 in shares of the image. To fetch the photos and build the data set:

    python -m dataset_scripts.prepare openimage-mini --source THIS_FOLDER --output openimage-mini
"""
