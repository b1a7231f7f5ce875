import dataclasses
import io
import json
import shutil
import socket
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from dataset_scripts.build.parquet import RowFailed, build_dataset, file_sha256, load_manifest
from dataset_scripts.check import check_dataset
from dataset_scripts.prepare import main
from dataset_scripts.proposals import propose
from dataset_scripts.sources.scenes import scene_row, scenes_source
from modeling_decodepos.data.scenes import CLASS_NAMES, FIRST_INDEX, render_scene, sample_scene
from modeling_decodepos.data.schema import build_features, xywh_to_unit_xyxy

SOURCE = scenes_source(train=12, validation=4, size_px=48)
FIRST, SECOND, LAST = (f"data/train-0000{k}-of-00003.parquet" for k in range(3))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "scenes"
    build_dataset(folder, SOURCE, rows_per_shard=5)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_manifest(folder, **changes):
    manifest = load_manifest(folder) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rewrite(folder, name, change):
    """Changes the rows of one shard and makes the manifest agree, as a faulty builder would."""
    rows = pq.read_table(folder / name).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, build_features(CLASS_NAMES).arrow_schema), folder / name)
    manifest = load_manifest(folder)
    manifest["files"][name] |= {
        "bytes": (folder / name).stat().st_size,
        "sha256": file_sha256(folder / name),
        "rows": len(rows),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))


def test_the_bytes_do_not_depend_on_the_number_of_workers(built, tmp_path):
    build_dataset(tmp_path / "two", SOURCE, workers=2, rows_per_shard=5)
    assert contents(tmp_path / "two") == contents(built)


def test_load_dataset_reads_the_folder_offline_and_after_a_move(built, tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("load_dataset reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    moved = shutil.copytree(built, tmp_path / "elsewhere")
    for folder in (built, moved):
        dataset = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in dataset.items()} == {"train": 12, "validation": 4}
        assert dataset["train"].features == build_features(CLASS_NAMES)
    for row in dataset["train"]:
        assert row["image"].size == (48, 48)
        scene = render_scene(sample_scene(0, int(row["image_id"][-6:]), size_px=48))
        np.testing.assert_array_equal(np.asarray(row["image"]), scene.pixels)
        np.testing.assert_array_equal(np.asarray(row["segmentation"]), scene.segmentation)
        np.testing.assert_allclose(xywh_to_unit_xyxy(row["objects"]["bbox"], 48, 48), scene.boxes, atol=1e-6)
        assert row["objects"]["category"] == scene.classes.tolist()
        assert row["objects"]["area"] == [(scene.instances == k + 1).sum() for k in range(len(scene.classes))]
        assert row["regions"]["bbox"] == row["objects"]["bbox"]


def test_validation_shows_other_scenes_than_train():
    train = {scene_row("train", k, 0, 48)["image"]["bytes"] for k in range(8)}
    validation = {scene_row("validation", k, 0, 48)["image"]["bytes"] for k in range(8)}
    assert not train & validation
    with pytest.raises(ValueError, match="train is"):
        scenes_source(train=FIRST_INDEX["validation"] + 1)


def test_a_finished_folder_is_left_alone(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    build_dataset(folder, dataclasses.replace(SOURCE, make_row=fail_at("train", 0)), rows_per_shard=5)
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def _row_or_failure(failing, split, number):
    if (split, number) == failing:
        raise OSError("the machine went away")
    return SOURCE.make_row(split, number)


def fail_at(split, number):
    return partial(_row_or_failure, (split, number))


def test_a_killed_build_goes_on_from_its_finished_shards(built, tmp_path):
    folder = tmp_path / "scenes"
    with pytest.raises(RowFailed, match=f"row 7 of split 'train', for {SECOND}: OSError: the machine went away"):
        build_dataset(folder, dataclasses.replace(SOURCE, make_row=fail_at("train", 7)), rows_per_shard=5)
    assert list(load_manifest(folder)["files"]) == [FIRST]
    assert any("not finished" in problem for problem in check_dataset(folder))
    # What a kill in other moments leaves: half a file, and a whole file that the manifest does not know.
    (folder / "data" / f".{SECOND[5:]}.123.tmp").write_bytes(b"half")
    (folder / SECOND).write_bytes(b"not from this recipe")
    written = (folder / FIRST).stat().st_mtime_ns

    build_dataset(folder, SOURCE, rows_per_shard=5)
    assert (folder / FIRST).stat().st_mtime_ns == written
    assert contents(folder) == contents(built)


def test_a_damaged_shard_of_a_half_built_folder_is_made_again(built, folder):
    edit_manifest(folder, complete=False)
    data = bytearray((folder / FIRST).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / FIRST).write_bytes(data)
    build_dataset(folder, SOURCE, rows_per_shard=5)
    assert contents(folder) == contents(built)


def test_another_recipe_is_refused_with_its_differences(folder, capsys):
    before = contents(folder)
    command = ["scenes", "--output", str(folder), "--train", "12", "--validation", "4", "--size-px", "64"]
    assert main([*command, "--workers", "1", "--seed", "3"]) == 2
    message = capsys.readouterr().err
    assert "size_px: the folder has 48, this command asks for 64" in message
    assert "seed: the folder has 0, this command asks for 3" in message
    assert "train:" not in message
    assert contents(folder) == before


def test_overwrite_builds_anew_and_leaves_nothing_of_the_old(built, folder):
    source = dataclasses.replace(scenes_source(train=3, validation=0, size_px=32), proposals="random")
    manifest = build_dataset(folder, source, rows_per_shard=5, overwrite=True)
    assert list(manifest["files"]) == ["data/train-00000-of-00001.parquet"]
    assert len(list((folder / "data").iterdir())) == 1
    assert check_dataset(folder) == []


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not written by this program"):
        build_dataset(tmp_path, SOURCE, overwrite=True)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_the_command_builds_and_checks(tmp_path, capsys):
    folder = tmp_path / "scenes"
    command = ["scenes", "--output", str(folder), "--train", "3", "--validation", "2", "--size-px", "32"]
    assert main([*command, "--workers", "1", "--proposals", "grid"]) == 0
    assert main(["check", str(folder)]) == 0
    assert "2 files, 5 images" in capsys.readouterr().out
    (folder / "README.md").unlink()
    assert main(["check", str(folder)]) == 1
    assert "README.md is missing" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nothing")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--size-px", "8"])
    assert "--size_px: it is 8; expected at least 32" in capsys.readouterr().err


def test_check_finds_a_damaged_file(folder):
    assert check_dataset(folder) == []
    data = bytearray((folder / SECOND).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / SECOND).write_bytes(data)
    (problem,) = check_dataset(folder)
    assert SECOND in problem
    assert "sha256" in problem


def test_check_finds_missing_cut_and_foreign_files(folder):
    (folder / FIRST).unlink()
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-100])
    shutil.copy(folder / LAST, folder / "data" / "train-extra.parquet")
    problems = "\n".join(check_dataset(folder))
    assert f"{FIRST}: the file is missing" in problems
    assert f"{SECOND}:" in problems
    assert "cut off" in problems
    assert "train-extra.parquet is not in manifest.json" in problems


def test_check_finds_an_edited_manifest(folder):
    manifest = load_manifest(folder)
    edit_manifest(folder, recipe=manifest["recipe"] | {"seed": 1})
    assert any("recipe_sha256" in problem for problem in check_dataset(folder))
    (folder / "manifest.json").write_text("{")
    (problem,) = check_dataset(folder)
    assert "is not JSON" in problem


def png(size, value=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size), value, np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("image", png(47), "image is 47 x 47 px, expected 48 x 48"),
        ("image", {"bytes": b"no image", "path": None}, "cannot be decoded"),
        ("image", {"bytes": None, "path": "pictures/1.png"}, "no embedded bytes"),
        ("segmentation", png(48, 77), "value 77, expected 0 to 40 or 255"),
        ("segmentation", png(47), "segmentation has shape"),
        ("image_id", "scenes-0-train-000001", "image_id appears twice"),
    ],
)
def test_check_looks_into_the_rows(folder, column, value, expected):
    rewrite(folder, FIRST, lambda rows: rows[0].update({column: value}))
    problems = [problem for problem in check_dataset(folder) if "not finished" not in problem]
    assert len(problems) == 1
    assert expected in problems[0]


def test_check_accepts_unlabelled_pixels(folder):
    rewrite(folder, FIRST, lambda rows: rows[0].update(segmentation=png(48, 255)))
    assert [problem for problem in check_dataset(folder) if "not finished" not in problem] == []


@pytest.mark.parametrize("provider", ["boxes", "random", "grid", "none"])
def test_proposals_lie_in_the_image_and_repeat(provider):
    boxes = [[-5, 10, 30, 30], [90, 50, 40, 20], [200, 10, 5, 5]]
    found, scores = propose(provider, 120, 80, boxes, np.random.default_rng(4))
    again, _ = propose(provider, 120, 80, boxes, np.random.default_rng(4))
    np.testing.assert_array_equal(found, again)
    assert scores is None
    assert found.dtype == np.float32
    assert len(found) == {"boxes": 2, "random": 16, "grid": 29, "none": 0}[provider]
    assert (found >= 0).all()
    assert (found[:, 2:] > 0).all()
    assert (found[:, 0] + found[:, 2] <= 120 + 1e-3).all()
    assert (found[:, 1] + found[:, 3] <= 80 + 1e-3).all()


def test_only_the_provider_boxes_knows_the_annotations():
    for provider in ("random", "grid", "none"):
        one, _ = propose(provider, 100, 100, [[1, 1, 50, 50]], np.random.default_rng(0))
        other, _ = propose(provider, 100, 100, [], np.random.default_rng(0))
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        propose("boxes", 100, 100, [[1, 1, 50, 50]], np.random.default_rng(0))[0], [[1, 1, 50, 50]]
    )


def test_an_unknown_provider_is_refused():
    with pytest.raises(ValueError, match="'magic', expected one of boxes, random, grid, none"):
        propose("magic", 10, 10, [], np.random.default_rng(0))
