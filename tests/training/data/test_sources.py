import io
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_scripts.build.parquet import data_sha256, load_manifest
from modeling_decodepos.data.schema import xywh_to_unit_xyxy
from tests.training.conftest import save_pictures
from training.data.batches import RegionDataset
from training.data.decoding import BrokenImage, decode_image
from training.data.sources import FolderImages, ParquetImages, describe_regions, open_images, usable_boxes
from training.errors import UnusableData
from training.recipe import ViewArguments


def write_rows(folder: Path, rows: list[dict], features: datasets.Features | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train-0.parquet")
    return folder


def jpeg(width: int = 20, height: int = 10) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 200)).save(file, "JPEG")
    return file.getvalue()


def row(number: int = 0, boxes: object = ((1, 2, 10, 5),), **changes: object) -> dict:
    return {
        "image": {"bytes": jpeg(), "path": None},
        "image_id": f"id-{number}",
        "width": 20,
        "height": 10,
        "objects": {"bbox": boxes, "iscrowd": None},
    } | changes


# --- Parquet


def test_parquet_gives_what_its_rows_say(scenes: Path):
    images = open_images(scenes, "train")
    assert isinstance(images, ParquetImages)
    rows = datasets.load_dataset(str(scenes), split="train").cast_column("image", datasets.Image(decode=False))
    assert len(images) == len(rows)
    for index, expected in enumerate(rows):
        assert images.image_id(index) == expected["image_id"]
        assert images.size(index) == (expected["height"], expected["width"]) == images.pixels(index).shape[:2]
        np.testing.assert_array_equal(images.pixels(index), decode_image(expected["image"]["bytes"], "x"))
        boxes = xywh_to_unit_xyxy(expected["regions"]["bbox"], expected["width"], expected["height"])
        np.testing.assert_allclose(images.boxes(index, 3), boxes.clip(0, 1), atol=1e-7)
    assert images.fingerprint == data_sha256(load_manifest(scenes))
    assert images.region_source == "regions"


def test_a_pickled_source_is_small_and_gives_the_same(scenes: Path):
    images = open_images(scenes, "train")
    images.pixels(3), images.boxes(3, 0)
    sent = pickle.dumps(images)
    assert len(sent) < 100_000
    np.testing.assert_array_equal(pickle.loads(sent).pixels(3), images.pixels(3))


def test_crowds_are_no_regions_and_nulls_are_no_boxes(tmp_path: Path):
    two = [[0, 0, 10, 10], [10, 0, 10, 10]]
    rows = [
        row(0, two, objects={"bbox": two, "iscrowd": [True, False]}),
        row(1, two, objects={"bbox": two, "iscrowd": None}),
        row(2, objects={"bbox": None, "iscrowd": None}),
        row(3, objects=None),
        row(4, [[-3, -2, 25, 15]]),
    ]
    images = open_images(write_rows(tmp_path, rows))
    assert images.region_source == "objects"
    expected = [[[0.5, 0, 1, 1]], [[0, 0, 0.5, 1], [0.5, 0, 1, 1]], [], [], [[0, 0, 1, 1]]]
    assert [images.boxes(index, 0).tolist() for index in range(5)] == expected
    assert all(images.boxes(index, 0).dtype == np.float64 for index in range(5))


def test_proposals_go_before_annotations_where_there_are_any(tmp_path: Path):
    empty, one = {"bbox": [], "score": []}, {"bbox": [[0, 0, 20, 10]], "score": [0.5]}
    features = None
    with_proposals = write_rows(tmp_path / "with", [row(n, regions=empty) for n in range(70)] + [row(70, regions=one)])
    features = datasets.load_dataset(str(with_proposals), split="train").features
    without = write_rows(tmp_path / "without", [row(n, regions=empty) for n in range(3)], features)
    assert open_images(with_proposals).region_source == "regions"
    assert open_images(without).region_source == "objects"
    assert open_images(with_proposals, region_source="objects").region_source == "objects"
    assert open_images(with_proposals, region_source="grid").boxes(0, 0).shape == (4 + 9 + 16, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objects": {"bbox": [], "iscrowd": []}}, ["no regions", "regions and objects", "--region_source random"]),
        ({"objects": [1, 2]}, ["column objects is list", "bbox", "schema.py"]),
    ],
)
def test_columns_of_another_kind_are_named(tmp_path: Path, changes: dict, words: list[str]):
    write_rows(tmp_path, [row(n, **changes) for n in range(3)])
    with pytest.raises(ValueError, match=".") as error:
        open_images(tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert len(open_images(tmp_path, region_source="random").boxes(0, 0)) == 16


def test_boxes_of_three_numbers_are_refused(tmp_path: Path):
    with pytest.raises(UnusableData, match=r"id-1: objects.bbox holds 1 boxes with 3 numbers"):
        open_images(write_rows(tmp_path, [row(0), row(1, [[1, 2, 3]])]))


WRONG_BOXES = {
    "negative": [15, 8, -10, -5],
    "corners for sides": [10, 5, 18, 9],
    "shares for pixels": [0.1, 0.2, 0.5, 0.6],
    "outside": [20, 0, 5, 5],
    "not finite": [0, 0, float("nan"), 5],
    "infinite": [0, 0, float("inf"), 5],
    "larger than the image": [-5, -5, 100, 100],
}


@pytest.mark.parametrize("wrong", WRONG_BOXES.values(), ids=WRONG_BOXES)
def test_a_box_that_shows_nothing_is_no_region(wrong: list[float]):
    boxes = np.array([wrong, [2, 1, 10, 5], [-2, -2, 24, 14], [19, 9, 1, 1]], dtype=np.float32)
    assert usable_boxes(boxes, np.array([10, 20])).tolist() == [False, True, True, True]


def test_boxes_that_are_no_regions_are_refused_unless_they_are_few(tmp_path: Path):
    good, wrong = [0, 0, 10, 5], WRONG_BOXES["negative"]
    rows = [row(0, None), row(1, [good, wrong]), row(2, [wrong], height=0)]  # an image without a size is broken anyway
    with pytest.raises(ValueError, match=r"1 of 4 boxes in column objects .* of image id-1, 20 x 10 pixels"):
        open_images(write_rows(tmp_path / "many", [*rows, row(3)]))
    numbers = [[3, 4], *[[3]] * 120]
    listed = [
        row(n, objects={"bbox": [good, wrong][: len(classes)], "category": classes, "iscrowd": None})
        for n, classes in enumerate(numbers)
    ]
    images = open_images(write_rows(tmp_path / "few", listed))
    assert isinstance(images, ParquetImages) and images.unusable_boxes == 1
    assert images.boxes(0, 0).tolist() == images.boxes(1, 0).tolist() == [[0, 0, 0.5, 0.5]]
    assert images.classes(0).tolist() == [3]


def test_an_empty_split_is_an_error(tmp_path: Path):
    datasets.Dataset.from_list([row()]).select([]).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"\[train\] holds no image"):
        open_images(tmp_path)


def test_a_parquet_file_without_rows_is_named(tmp_path: Path):
    write_rows(tmp_path, [row()])
    table = pq.read_table(tmp_path / "train-0.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "validation-0.parquet")
    with pytest.raises(ValueError, match=r"\[train\] cannot be read: .*validation-0.parquet holds no row"):
        open_images(tmp_path)


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path):
    write_rows(tmp_path, [row()])
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match=r"\[train\] cannot be read: .*not a parquet file"):
        open_images(tmp_path)


def test_unusable_rows_are_broken_images(tmp_path: Path):
    rows = [
        row(0, width=None),
        row(1, height=0),
        row(2, width=10, height=20),
        row(3, image={"bytes": None, "path": "a.jpg"}),
        row(4, image={"bytes": jpeg()[:300], "path": None}),
        row(5, image_id=None),
    ]
    images = open_images(write_rows(tmp_path, rows))
    reasons = ["width 0", "height 0", "20 x 10 px, but its data set says 10 x 20", "no bytes", "cannot be decoded"]
    for index, reason in enumerate(reasons):
        with pytest.raises(BrokenImage, match=f"image id-{index} .*{reason}"):
            images.pixels(index)
    for index in (0, 1):
        with pytest.raises(BrokenImage):
            images.size(index)
    assert images.image_id(5) == "row-5"


# --- plain folders


def test_a_folder_is_its_pictures_in_the_order_of_their_paths(pictures: Path):
    images = open_images(pictures)
    assert isinstance(images, FolderImages)
    paths = sorted([*pictures.rglob("[0-9]*.jpg"), *pictures.rglob("*.png")])
    assert [images.image_id(index) for index in range(len(images))] == [
        path.relative_to(pictures).as_posix() for path in paths
    ]
    assert len(images) == 12
    for index, path in enumerate(paths):
        np.testing.assert_array_equal(images.pixels(index), np.asarray(Image.open(path).convert("RGB")))
        assert images.size(index) == images.pixels(index).shape[:2]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images)).pixels(3), images.pixels(3))


def test_random_regions_are_new_in_every_epoch_and_depend_on_nothing_else(pictures: Path):
    images, again, other = (FolderImages(pictures, seed=seed) for seed in (4, 4, 5))
    assert images.region_source == "random"
    again.boxes(7, 0), again.boxes(1, 2)
    boxes = images.boxes(3, 2)
    assert boxes.shape == (16, 4) and boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2:] > boxes[:, :2]).all()
    np.testing.assert_array_equal(boxes, again.boxes(3, 2))
    for different in (images.boxes(3, 1), images.boxes(4, 2), other.boxes(3, 2)):
        assert np.abs(boxes - different).max() > 0.05
    assert "random boxes" in describe_regions(images.region_source, "auto") and "auto" in describe_regions(
        images.region_source, "auto"
    )
    assert "auto" not in describe_regions(images.region_source, "random")


def test_a_grid_stays(pictures: Path):
    images = open_images(pictures, region_source="grid")
    np.testing.assert_array_equal(images.boxes(0, 0), images.boxes(5, 9))


def test_the_fingerprint_is_of_the_files_not_of_the_place(pictures: Path, tmp_path: Path):
    before = FolderImages(pictures).fingerprint
    shutil.copytree(pictures, tmp_path / "copy")
    assert FolderImages(tmp_path / "copy").fingerprint == before
    (pictures / "notes.txt").unlink()
    assert FolderImages(pictures).fingerprint == before
    (pictures / "a/02.jpg").rename(pictures / "a/03.jpg")
    renamed = FolderImages(pictures).fingerprint
    with (pictures / "a/03.jpg").open("ab") as file:
        file.write(b"longer")
    assert len({before, renamed, FolderImages(pictures).fingerprint}) == 3


def test_links_are_followed_but_not_in_circles(pictures: Path, tmp_path: Path):
    save_pictures(tmp_path / "elsewhere", ["x.png"])
    (pictures / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(pictures, target_is_directory=True)
    (pictures / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (pictures / "itself.jpg").symlink_to("itself.jpg")
    (pictures / "notes").symlink_to("nowhere.txt")
    images = FolderImages(pictures)
    names = [images.image_id(i) for i in range(len(images))]
    assert names[-1] == "linked/x.png"
    assert len(images) == 15
    for name in ("dangling.jpg", "itself.jpg"):  # counted with the images that cannot be read
        with pytest.raises(BrokenImage, match=name):
            images.pixels(names.index(name))
        with pytest.raises(BrokenImage, match=name):
            images.size(names.index(name))


def test_wrong_folders_are_explained(pictures: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has the split 'train' only, not 'validation'"):
        open_images(pictures, "validation")
    with pytest.raises(ValueError, match=r"region_source is 'objects'.*expected auto, random or grid"):
        open_images(pictures, region_source="objects")
    (tmp_path / "texts").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no Parquet file and no picture .*it has no file at all"):
        open_images(tmp_path / "texts")
    (tmp_path / "texts/a.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"it has a.txt"):
        open_images(tmp_path / "texts")
    with pytest.raises(FileNotFoundError, match=r"a.txt is a file; give the folder"):
        open_images(tmp_path / "texts/a.txt")
    for name in ("b.jpg", "c.png"):
        (tmp_path / "texts" / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of the 2 pictures in .*texts can be read.*\s.*image b.jpg"):
        open_images(tmp_path / "texts")


def test_files_that_vanish_or_are_empty_are_broken_images(pictures: Path):
    images = FolderImages(pictures)
    (pictures / "a/00.png").unlink()
    (pictures / "a/02.jpg").write_bytes(b"")
    for index, reason in ((0, "cannot be read: No such file"), (1, "is an empty file")):
        with pytest.raises(BrokenImage, match=reason):
            images.pixels(index)
        with pytest.raises(BrokenImage):
            images.size(index)


@pytest.mark.parametrize("path", ["data/scenes", "./scenes", "somewhere/else/scenes"])
def test_missing_scenes_come_with_the_command_that_draws_them(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # where there is no such folder
    with pytest.raises(FileNotFoundError, match=f"prepare scenes --output {path}"):
        open_images(path)


@pytest.mark.parametrize("path", ["data/photos", "photos"])
def test_other_missing_folders_are_no_question_for_the_hub(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.data.sources.load_split", lambda *_: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match="Give a folder of pictures"):
        open_images(path)


# --- any rows

box_numbers = st.sampled_from([0, 1, 2.5, 5, 9, 10, 20, -3, 1e6, float("nan"), float("inf")])
good_boxes = st.sampled_from([[1, 2, 10, 5], [0, 0, 20, 10], [3.5, 1, 4, 4], [-2, 0, 9, 9]])
box_lists = st.lists(good_boxes, max_size=3) | st.none()
odd_boxes = (
    st.lists(st.lists(box_numbers, min_size=4, max_size=4), max_size=3)
    | st.lists(st.lists(box_numbers | st.none(), max_size=5) | st.none(), max_size=3)
    | st.sampled_from([7, "1 2 3 4", [1.0, 2.0, 3.0, 4.0], ["1", "2", "3", "4"], [["1", "2", "3", "4"]], [[[1, 2]]]])
)
categories = st.lists(st.integers(-1, 5) | st.none(), max_size=3) | st.sampled_from([None, 3, "cat", [0.5], ["cat"]])
crowds = st.lists(st.booleans(), max_size=3) | st.lists(st.sampled_from([0, 1, None]), max_size=3) | st.none()
objects = st.fixed_dictionaries(
    {"bbox": box_lists | odd_boxes}, optional={"category": categories, "iscrowd": crowds, "area": st.just([1.0])}
) | st.sampled_from([None, {}, [], 5, "none"])
plain_objects = st.lists(good_boxes, min_size=1, max_size=3).map(lambda own: {"bbox": own, "category": [0] * len(own)})


def open_rows(rows: list[dict[str, Any]], region_source: str) -> ParquetImages:
    """Rows as `open_images` opens them, in whatever types Arrow finds for them; a file each would take minutes."""
    try:
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        reject()  # no Parquet file can hold these
    held = datasets.Dataset(pq.read_table(file)).cast_column("image", datasets.Image(decode=False))
    images = ParquetImages(held, "folder", "train", region_source)
    images.check_boxes()
    return images


def expected_boxes(own: Any) -> list[list[float]]:
    """What a row's objects give as regions: no crowds, and none that are no boxes."""
    boxes, crowd = (own or {}).get("bbox") or [], (own or {}).get("iscrowd") or []
    kept = [box for number, box in enumerate(boxes) if not (crowd and crowd[number])]
    shown = []
    for x, y, w, h in kept:
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, 20), min(y + h, 10)
        if w >= 1 and h >= 1 and right > left and bottom > top and 2 * (right - left) * (bottom - top) >= w * h:
            shown.append([left / 20, top / 10, right / 20, bottom / 10])
    return shown


@settings(max_examples=60)
@given(st.lists(plain_objects | objects, min_size=2, max_size=4), st.sampled_from(["auto", "objects"]))
def test_any_objects_are_read_and_drawn_or_named(given_objects: list[Any], region_source: str):
    rows = [row(number, objects=own) for number, own in enumerate(given_objects)]
    try:
        images = open_rows(rows, region_source)
    except (ValueError, UnusableData) as refused:
        said = str(refused)
        assert said.startswith("folder [train]") and "objects" in said
        assert re.search(r"column objects|has no regions|(image |of image )id-\d", said), said
        return
    dataset = RegionDataset(images, ViewArguments(view_size_px=32, cut_grid_px=16), ["whole_cut", "repositioned"])
    for index, own in enumerate(given_objects):
        np.testing.assert_allclose(images.boxes(index, 0), np.reshape(expected_boxes(own), (-1, 4)), atol=1e-6)
        known = images.classes(index)
        assert known is None or len(known) == len(images.boxes(index, 0))
        batch = dataset[(0, index)]
        assert batch.image_ids == [f"id-{index}"] and not batch.broken
        for view in batch.views.values():
            assert view.pixel_values.isfinite().all() and view.boxes[view.valid_regions].isfinite().all()
