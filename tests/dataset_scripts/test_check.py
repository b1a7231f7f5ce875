"""`prepare check` on folders that this program did not write, and what it counts."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_scripts.build.parquet import build_dataset, load_manifest, recipe_sha256
from dataset_scripts.check import check_dataset, inspect_dataset
from dataset_scripts.prepare import main
from dataset_scripts.sources.scenes import scenes_source
from modeling_decodepos.data.scenes import CLASS_NAMES
from modeling_decodepos.data.schema import build_features

SCHEMA = build_features(CLASS_NAMES).arrow_schema
SOURCE = scenes_source(train=8, validation=4, size_px=32)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "scenes"
    build_dataset(folder, SOURCE, rows_per_shard=4)
    return folder


@pytest.fixture
def plain(built: Path, tmp_path: Path) -> Path:
    """What somebody who downloads the files alone has."""
    shutil.copytree(built / "data", tmp_path / "plain" / "data")
    return tmp_path / "plain"


def rewrite(path: Path, change) -> None:
    table = change(pq.read_table(path))
    pq.write_table(table, path)


def jpeg(size: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_folder_without_a_manifest_is_held_against_the_contract(plain: Path, capsys: pytest.CaptureFixture):
    assert main(["check", str(plain), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "no manifest.json" in said and "no README.md" in said
    assert "is in order: 3 files, 12 images\n" in said
    (plain / "data" / "train-00001-of-00002.parquet").unlink()
    assert check_dataset(plain) == ["data/train-00001-of-00002.parquet is missing: other files' names promise it"]
    (plain / "data" / "train-00000-of-00002.parquet").write_bytes(b"PAR1 and then nothing")
    assert any("cannot be read as Parquet" in problem for problem in check_dataset(plain))
    shutil.rmtree(plain / "data")
    assert check_dataset(plain) == [f"{plain} has neither manifest.json nor Parquet files"]


def test_columns_are_named_wherever_they_stand(plain: Path):
    def change(table: pa.Table) -> pa.Table:
        table = table.append_column("note", pa.array(["x"] * len(table)))
        table = table.drop_columns(["author", "regions"])
        table = table.set_column(table.column_names.index("width"), "width", table["width"].cast(pa.int64()))
        return table.select(table.column_names[::-1])

    rewrite(plain / "data" / "train-00000-of-00002.parquet", change)
    found = inspect_dataset(plain)
    assert found.problems == [
        "data/train-00000-of-00002.parquet: missing columns: regions, author; the layout is in "
        "modeling_decodepos/data/schema.py",
        "data/train-00000-of-00002.parquet: column width is int64, expected int32",
    ]
    assert any("nothing here reads: note" in note for note in found.notes)


def test_every_image_is_decoded_where_no_hash_vouches_for_it(plain: Path):
    path = plain / "data" / "train-00000-of-00002.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["image"]["bytes"] = jpeg(32)[:-300]  # its header is right
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    (problem,) = check_dataset(plain)
    assert rows[1]["image_id"] in problem and "cannot be decoded" in problem


def test_an_image_in_two_splits_is_named(plain: Path):
    path = plain / "data" / "validation-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[2]["image_id"] = "scenes-0-train-000005"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    (problem,) = check_dataset(plain)
    assert "scenes-0-train-000005: image_id appears twice" in problem
    assert "train-00001-of-00002.parquet: once in train, once in validation" in problem


def test_an_older_layout_is_accepted_and_a_newer_one_is_not(built: Path, tmp_path: Path):
    folder = shutil.copytree(built, tmp_path / "copy")
    manifest = load_manifest(folder)

    def set_version(version: int) -> None:
        recipe = manifest["recipe"] | {"schema_version": version}
        changed = manifest | {"recipe": recipe, "recipe_sha256": recipe_sha256(recipe)}
        (folder / "manifest.json").write_text(json.dumps(changed))

    set_version(1)
    found = inspect_dataset(folder)
    assert found.problems == []
    assert "schema_version is 1, this program writes 2: the folder has no landing_url" in found.notes[0]
    set_version(3)
    (problem,) = check_dataset(folder)
    assert "schema_version is 3" in problem and "update this checkout" in problem


def test_the_summary_counts_what_is_there(plain: Path):
    path = plain / "data" / "train-00000-of-00002.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["regions"] = {"bbox": [], "score": None, "source": []}
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    every = [row for file in sorted((plain / "data").iterdir()) for row in pq.read_table(file).to_pylist()]
    train = [row for row in every if "train" in row["image_id"]]
    categories = [category for row in every for category in row["objects"]["category"]]
    commonest = max(set(categories), key=lambda c: (categories.count(c), -c))
    first, _, classes, _ = inspect_dataset(plain).summary
    assert first.startswith(f"train: 8 images; {sum(len(row['objects']['bbox']) for row in train)} objects")
    assert f"{sum(len(row['regions']['bbox']) for row in train)} regions" in first
    assert first.endswith("12.5% of the images have none")
    assert classes.startswith(f"classes: {len(set(categories))} of {len(CLASS_NAMES)} occur; most often: ")
    assert f"most often: {CLASS_NAMES[commonest]} {categories.count(commonest)} (" in classes


@pytest.mark.slow
def test_workers_find_the_same(plain: Path):
    rewrite(plain / "data" / "train-00000-of-00002.parquet", lambda table: table.drop_columns(["author"]))
    assert inspect_dataset(plain, workers=3) == inspect_dataset(plain, workers=1)
