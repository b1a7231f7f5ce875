"""Data as they come out of other people's programs: columns of another type, lists that do not fit, damaged shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hostile.conftest import SMALL_RUN
from tests.hostile.running import refused, run
from tests.training.evaluation.conftest import squares_row

Rows = list[dict[str, Any]]


def table(change: Callable[[Rows], Any] = lambda rows: None, split: str = "train", count: int = 8) -> pa.Table:
    """Rows of squares as another program would write them: without the features that `datasets` keeps."""
    rows = [squares_row(number, split) for number in range(count)]
    rows = change(rows) or rows
    return pa.Table.from_pylist(rows)


def each(**values: Any) -> Callable[[Rows], None]:
    """Every row with other values."""

    def change(rows: Rows) -> None:
        for row in rows:
            row |= values

    return change


def objects(**values: Any) -> Callable[[Rows], None]:
    """The objects of one row with other values."""
    return lambda rows: rows[3]["objects"].update(values)


def without(name: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        for row in rows:
            del row[name]

    return change


# The change, what training says, and what an evaluation of objects says; None where it is no concern of the command's.
COLUMNS: dict[str, tuple[Callable[[Rows], Any], str | None, str | None]] = {
    "no image": (without("image"), "lacks the columns image", "lacks the columns image"),
    "no width": (without("width"), "lacks the columns width", "lacks the columns width"),
    "width a word": (each(width="64"), "column width is string; expected whole", "column width is string"),
    "width a fraction": (each(width=64.5), "column width is double", "column width is double"),
    "width nothing": (each(width=None), "column width is null", "column width is null"),
    "image a number": (each(image=7), "column image is int64", "column image is int64"),
    "image without bytes": (each(image={"path": "a.png"}), "column image is struct", "column image is struct"),
    "objects a word": (each(objects="two squares"), "column objects is string", "column objects is string"),
    "objects a list": (each(objects=[[1.0, 2.0, 3.0, 4.0]]), "column objects is list", "column objects is list"),
    "boxes words": (
        each(objects={"bbox": [["1", "2", "3", "4"]], "category": [0]}),
        "column objects is struct.*numbers in fours",
        "column objects is struct",
    ),
    "one category short": (objects(category=[1]), "train-003: the lists of objects differ", "differ in length"),
    "one box short": (objects(bbox=[[1.0, 2.0, 20.0, 20.0]]), "train-003: the lists of objects differ", "differ"),
    "a crowd flag too many": (objects(iscrowd=[False] * 3), "train-003: the lists of objects differ", "differ"),
    "three numbers": (objects(bbox=[[1.0, 2.0, 3.0]] * 2), "holds 2 boxes with 6 numbers", "2 boxes with 6 numbers"),
    "boxes not finite": (
        each(objects={"bbox": [[float("nan")] * 4], "category": [0], "area": [1.0], "iscrowd": [False]}),
        "are no regions",
        None,
    ),
    "boxes outside": (
        each(objects={"bbox": [[500.0, 500.0, 9.0, 9.0]], "category": [0], "area": [1.0], "iscrowd": [False]}),
        "are no regions",
        None,
    ),
    "another size": (each(width=63), "data set says 63 x 64", None),
    "no bytes": (each(image={"bytes": b"", "path": None}), "has no bytes", None),
    "no pictures": (each(image={"bytes": b"<html>", "path": None}), "no known kind of picture", None),
}


def write(folder: Path, made: Callable[[str], pa.Table]) -> Path:
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        pq.write_table(made(split), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def train(data: Path, out: Path, *more: object) -> list[object]:
    return [*SMALL_RUN, "--region_source", "objects", "--data", data, "--output_dir", out, *more]


def evaluate(data: Path, out: Path) -> list[object]:
    return ["object_knn", "--model", "random:resnet_tiny", "--data", data, "--output", out, "--size_px", 64]


@pytest.mark.parametrize("name", COLUMNS)
def test_columns(name: str, tmp_path: Path) -> None:
    change, in_training, in_evaluation = COLUMNS[name]
    data = write(tmp_path / "data", lambda split: table(change, split))
    if in_training:
        refused("pretrain", train(data, tmp_path / "run"), in_training)
    if in_evaluation:
        refused("evaluate", evaluate(data, tmp_path / "r.json"), in_evaluation)


def test_a_category_that_no_class_has(tmp_path: Path) -> None:
    import datasets

    from modeling_decodepos.data.schema import build_features
    from tests.training.evaluation.conftest import NAMES

    features = build_features(NAMES)
    features["objects"]["category"] = datasets.List(datasets.Value("int64"))

    def made(split: str) -> pa.Table:
        rows = [squares_row(number, split) for number in range(8)]
        rows[3]["objects"]["category"] = [1, 7]
        named = datasets.Dataset.from_list([squares_row(0, split)], features=build_features(NAMES)).data.schema
        plain = datasets.Dataset.from_list(rows, features=features).data.table
        return plain.replace_schema_metadata(named.metadata)

    data = write(tmp_path / "data", made)
    refused("pretrain", train(data, tmp_path / "run"), "train-003: objects.category holds 7.*3 classes, 0 to 2")
    refused("evaluate", evaluate(data, tmp_path / "r.json"), "objects.category holds 7")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


SHARDS: dict[str, Callable[[Path], Any]] = {
    "cut": cut,
    "empty": lambda file: file.write_bytes(b""),
    "a page": lambda file: file.write_bytes(b"<!doctype html><p>Sign in"),
    "zeros": lambda file: file.write_bytes(bytes(4000)),
    "without rows": lambda file: pq.write_table(table().slice(0, 0), file),
    "other columns": lambda file: pq.write_table(pa.table({"a": [1]}), file),
}


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_shard_is_named(name: str, streaming: bool, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "data"
    folder.mkdir(parents=True)
    for number in range(2):
        pq.write_table(table(), folder / f"train-{number:05}-of-00002.parquet")
    SHARDS[name](folder / "train-00001-of-00002.parquet")
    words = train(tmp_path / "data", tmp_path / "run", "--streaming", str(streaming).lower())
    if streaming and name == "without rows":
        assert run("pretrain", *words).code == 0  # nothing to read, nothing to miss
    else:
        refused("pretrain", words, "train-00001-of-00002.parquet")


@pytest.mark.parametrize("name", ["cut", "empty", "a page", "zeros", "other columns"])
def test_the_diagnosis_names_a_damaged_shard(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "data"
    folder.mkdir(parents=True)
    pq.write_table(table(), folder / "train-00000-of-00001.parquet")
    SHARDS[name](folder / "train-00000-of-00001.parquet")
    words = ["random:resnet_tiny", "--data", tmp_path / "data", "--output", tmp_path / "out", "--size", 64]
    refused("diagnose", [*words, "--images", 8], "train-00000-of-00001.parquet")


@pytest.mark.parametrize("what", ["nothing", "text", "broken pictures", "a file", "absent"])
def test_folders_that_hold_no_pictures(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    if what == "a file":
        folder.write_text("hello")
    elif what != "absent":
        folder.mkdir()
    if what == "text":
        (folder / "notes.txt").write_text("hello")
    if what == "broken pictures":
        for number in range(5):
            (folder / f"{number}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(90))
    refused("pretrain", [*SMALL_RUN, "--data", folder, "--output_dir", tmp_path / "run"], "pictures")
    refused("diagnose", ["random:resnet_tiny", "--data", folder, "--output", tmp_path / "out"], "pictures")
    refused("evaluate", evaluate(folder, tmp_path / "r.json"), "pictures")
    refused("prepare", ["folder", "--source", folder, "--output", tmp_path / "built"], "pictures")
    refused("views", ["--data", folder, "--output", tmp_path / "a.png"], "pictures")
    refused("preview", [folder, "--output", tmp_path / "a.png"], "pictures")
