"""`prepare coco --ids`: the images that a list names, from whichever official split."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataset_scripts.build.parquet import build_dataset, load_manifest
from dataset_scripts.check import check_dataset
from dataset_scripts.prepare import main
from dataset_scripts.sources.coco.builder import coco_source
from dataset_scripts.sources.coco.listed import load_ids
from tests.dataset_scripts.small_sources import annotation_entry, coco, image_entry, put
from tests.real_data import COCO_MULTIOBJECT, COCO_SAMPLE

PHOTOS = Path(__file__).parents[3] / "benchmarks" / "photo_ids"
IDS = {"validation": [21, 3], "train": [22, 1, 20]}


def build(source, output, ids=None, *flags):
    if ids is not None:
        path = output.parent / "ids.json"
        path.write_text(ids if isinstance(ids, str) else json.dumps(ids))
        flags = ("--ids", str(path), *flags)
    return main(["coco", "--source", str(source), "--output", str(output), "--workers", "1", *flags])


def refusal(capsys, *arguments):
    assert build(*arguments) == 2
    return capsys.readouterr().err


def rows_of(folder):
    return {path.name.split("-")[0]: pq.read_table(path).to_pylist() for path in (folder / "data").glob("*.parquet")}


def rows_by_id(folder):
    return {row["image_id"]: row for rows in rows_of(folder).values() for row in rows}


def ids_of(folder):
    return {split: [int(row["image_id"]) for row in rows] for split, rows in rows_of(folder).items()}


@pytest.fixture
def source(tmp_path):
    """Both official splits; images 3, 4, 22 and 23 have useless annotations only, and licence 1 differs."""
    for split, first, url in (("train2017", 1, "http://train.example"), ("val2017", 20, "http://val.example")):
        images = [image_entry(first + k, 40 + k, 30, license=1) for k in (3, 0, 2, 1)]
        annotations = [annotation_entry(10 * first + k, first + k, [2 + k, 3, 20, 10], 7) for k in (0, 1)]
        annotations += [annotation_entry(10 * first + k, first + k, [3, 3, 0, 5]) for k in (2, 3)]
        coco(tmp_path / "coco", images, annotations, split, licenses=[{"id": 1, "url": url}])
    return tmp_path / "coco"


def test_listed_rows_are_those_of_a_whole_build_by_rising_id(source, tmp_path):
    assert build(source, tmp_path / "whole") == 0
    for split, number in (("train2017", 4), ("train2017", 2), ("val2017", 23)):  # not on the list: never opened
        put(source, f"{split}/{number:012d}.jpg", b"no picture")
    assert build(source, tmp_path / "built", IDS) == 0
    assert check_dataset(tmp_path / "built") == []
    assert ids_of(tmp_path / "built") == {"train": [1, 20, 22], "validation": [3, 21]}
    whole, listed = rows_by_id(tmp_path / "whole"), rows_by_id(tmp_path / "built")
    assert listed == {number: whole[number] for number in listed}
    assert (listed["1"]["license"], listed["20"]["license"]) == ("http://train.example", "http://val.example")


def test_images_without_objects_keep_their_maps(source, tmp_path):
    """Whether a file has outlines is told by all of it, also if no image of the list has any."""
    assert build(source, tmp_path / "whole") == 0
    assert build(source, tmp_path / "built", {"train": [3, 22]}) == 0
    whole, listed = rows_by_id(tmp_path / "whole"), rows_by_id(tmp_path / "built")
    assert all(row["segmentation"] and not row["objects"]["bbox"] for row in listed.values())
    assert listed == {number: whole[number] for number in listed}


def test_the_manifest_and_the_card_speak_of_the_listed_images(source, tmp_path):
    assert build(source, tmp_path / "built", {"test": [23, 20]}) == 0
    manifest = load_manifest(tmp_path / "built")
    assert manifest["splits"] == {"test": 2}
    (part,) = manifest["recipe"]["parts"].values()  # nothing of train2017 is in it
    assert (part["name"], part["images"], part["annotations"]) == ("val2017", 2, 2)
    assert part["dropped"] == {"without area": 1}
    card = (tmp_path / "built" / "README.md").read_text()
    assert "A list of ids chose the images" in card and "1 without area (val2017)" in card
    assert build(source, tmp_path / "whole") == 0
    assert "ids_sha256" not in load_manifest(tmp_path / "whole")["recipe"]  # folders from before keep their recipe
    assert "A list of ids" not in (tmp_path / "whole" / "README.md").read_text()


def test_another_list_is_another_recipe_and_another_order_is_not(source, tmp_path, capsys):
    output = tmp_path / "built"
    assert build(source, output, IDS) == 0
    before = load_manifest(output)
    capsys.readouterr()
    turned = {split: ids[::-1] for split, ids in reversed(IDS.items())}
    assert build(source, output, json.dumps(turned, indent=4)) == 0
    assert "nothing to do" in capsys.readouterr().out
    moved = {"validation": [22, 3], "train": [21, 1, 20]}  # the same images, two of them on the other side
    assert "ids_sha256: the folder has" in refusal(capsys, source, output, moved)
    assert "ids_sha256: the folder has" in refusal(capsys, source, output)
    assert load_manifest(output) == before
    assert build(source, output, moved, "--overwrite") == 0
    assert ids_of(output) == {"train": [1, 20, 21], "validation": [3, 22]}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("{", "is no valid JSON (Expecting"),
        ("25\n30\n", "is no valid JSON (Extra data"),
        ('{"train": [1], "train": [2]}', "is no valid JSON (a key appears twice)"),
        ([25, 30], 'holds list, expected the COCO ids of each split: {"train"'),
        ({}, "names no split"),
        ({"train": [1], "gallery": [2]}, "has the key 'gallery', expected splits only: train, validation, test"),
        ({"train": []}, "train is [], expected a list of at least one id"),
        ({"train": 1}, "train is 1, expected a list"),
        ({"train": [1, "2"]}, 'train holds "2", expected whole numbers'),
        ({"train": [1, True]}, "train holds true, expected whole numbers"),
        ({"train": [1, 2.0]}, "train holds 2.0, expected whole numbers"),
        ({"train": [9, 5, 9, 1, 5]}, "train: 2 ids (5, 9) are there more than once"),
        ({"train": [1, 2], "validation": [3, 2]}, "1 id (2) is in two splits"),
    ],
)
def test_a_wrong_list_is_explained_before_the_source_is_looked_at(tmp_path, capsys, ids, message):
    assert message in refusal(capsys, tmp_path / "nowhere", tmp_path / "built", ids)
    assert not (tmp_path / "built").exists()


def test_a_list_that_is_not_there_is_explained(source, tmp_path, capsys):
    for name, what in (("absent.json", "is not there"), (".", "is no file")):
        message = refusal(capsys, source, tmp_path / "built", None, "--ids", str(tmp_path / name))
        assert what in message and '{"train": [25, 30]' in message


def test_ids_that_no_annotation_file_knows_are_counted(source, tmp_path, capsys):
    message = refusal(capsys, source, tmp_path / "built", {"train": [99, 1, 96], "test": [98, 97]}, "--allow_missing")
    assert "4 of the 5 ids in --ids are in no annotation file: 96, 97, 98, …" in message
    assert "instances_train2017.json, instances_val2017.json" in message
    (source / "annotations" / "instances_train2017.json").unlink()
    assert "3 of the 5 ids in --ids are in no annotation file: 1, 2, 3." in refusal(
        capsys, source, tmp_path / "built", {"train": [1, 2, 3, 20, 21]}
    )


def test_an_id_that_two_files_have_names_no_image(tmp_path, capsys):
    for split in ("train2017", "val2017"):
        coco(tmp_path / "coco", [image_entry(1), image_entry(len(split))], [], split)
    assert "1 id (1) is in more than one of" in refusal(capsys, tmp_path / "coco", tmp_path / "built", {"train": [1]})
    assert build(tmp_path / "coco", tmp_path / "built", {"train": [7, 9]}) == 0  # the others do not matter


def test_missing_pictures_of_the_list_are_an_error_unless_allowed(source, tmp_path, capsys):
    (source / "train2017" / f"{4:012d}.jpg").unlink()  # not on the list
    (source / "train2017" / f"{1:012d}.jpg").unlink()
    message = refusal(capsys, source, tmp_path / "built", IDS)
    assert "1 of the 2 pictures in instances_train2017.json that --ids names are not in" in message
    assert f"the first is {1:012d}.jpg" in message and "--allow_missing" in message
    assert build(source, tmp_path / "built", IDS, "--allow_missing") == 0
    assert ids_of(tmp_path / "built") == {"train": [20, 22], "validation": [3, 21]}
    assert load_manifest(tmp_path / "built")["recipe"]["parts"]["train"]["missing"] == 1


def test_a_list_can_do_without_a_folder_of_pictures_but_no_split_of_it_can(source, tmp_path, capsys):
    (source / "train2017").rename(tmp_path / "elsewhere")
    assert build(source, tmp_path / "val", {"train": [20], "validation": [21]}) == 0
    assert "2 of the 2 pictures in instances_train2017.json" in refusal(capsys, source, tmp_path / "built", IDS)
    assert build(source, tmp_path / "built", IDS, "--allow_missing") == 0
    assert ids_of(tmp_path / "built") == {"train": [20, 22], "validation": [21]}
    message = refusal(capsys, source, tmp_path / "none", {"train": [20], "validation": [3, 1]}, "--allow_missing")
    assert "None of the 2 pictures that --ids names for validation is there" in message


def test_parquet_is_refused(tmp_path, capsys):
    put(tmp_path, "parquet/train.parquet", b"")
    assert "this one is Parquet" in refusal(capsys, tmp_path / "parquet", tmp_path / "built", IDS)
    assert "this one is Parquet" in refusal(capsys, "somebody/coco", tmp_path / "built", IDS)  # nothing is downloaded


@pytest.mark.slow
def test_a_listed_build_does_not_depend_on_workers(source, tmp_path):
    ids = {split: sorted(of_split) for split, of_split in IDS.items()}
    for workers in (1, 2):
        (tmp_path / f"work-{workers}").mkdir()
        plan = coco_source(source, tmp_path / f"work-{workers}", ids=ids)
        build_dataset(tmp_path / str(workers), plan, workers, rows_per_shard=1)
    assert load_manifest(tmp_path / "1") == load_manifest(tmp_path / "2")


@pytest.mark.skipif(not COCO_SAMPLE.is_dir(), reason="the COCO sample is not on this machine")
def test_a_list_of_the_real_sample_is_built(tmp_path):
    annotations = json.loads((COCO_SAMPLE / "annotations" / "instances_val2017.json").read_text())
    known = sorted(image["id"] for image in annotations["images"])
    ids = {"train": known[30:5:-5], "validation": known[1:4]}
    assert build(COCO_SAMPLE, tmp_path / "whole") == 0
    assert build(COCO_SAMPLE, tmp_path / "built", ids) == 0
    assert check_dataset(tmp_path / "built") == []
    assert ids_of(tmp_path / "built") == {split: sorted(of_split) for split, of_split in ids.items()}
    whole, listed = rows_by_id(tmp_path / "whole"), rows_by_id(tmp_path / "built")
    assert listed == {number: whole[number] for number in listed}
    (part,) = load_manifest(tmp_path / "built")["recipe"]["parts"].values()
    chosen = [a for a in annotations["annotations"] if str(a["image_id"]) in listed]
    assert (part["images"], part["annotations"]) == (8, len(chosen))


# -------------------------------------------------------------------------------------------- the lists of the project


@pytest.mark.parametrize("path", sorted(PHOTOS.glob("*.json")), ids=lambda path: path.stem)
def test_lists_of_photos_are_well_formed(path):
    assert json.loads(path.read_text()) == load_ids(path)  # sorted, and nothing else in it


def test_the_list_of_coco_multiobject_has_as_many_photos_as_its_readme_says():
    ids = load_ids(PHOTOS / "coco-multiobject.json")
    assert {split: len(of_split) for split, of_split in ids.items()} == {"train": 1530, "validation": 420}
    assert "1,530 images in `train` and 420 in `validation`" in (PHOTOS / "README.md").read_text()


@pytest.mark.skipif(not COCO_MULTIOBJECT.is_dir(), reason="the COCO development set is not on this machine")
def test_the_list_of_coco_multiobject_names_its_photos_in_its_order():
    for split, ids in load_ids(PHOTOS / "coco-multiobject.json").items():
        (path,) = (COCO_MULTIOBJECT / "data").glob(f"{split}-*.parquet")
        assert pq.read_table(path, columns=["image_id"])["image_id"].to_pylist() == ids
