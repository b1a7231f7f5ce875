import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image, ImageOps

from dataset_scripts.build.parquet import build_dataset, load_manifest
from dataset_scripts.check import check_dataset
from dataset_scripts.files import lock_folder
from dataset_scripts.pictures.boxes import choose_box_format
from dataset_scripts.prepare import main
from dataset_scripts.sources.coco.builder import OFFICIAL_CATEGORIES, coco_source, draw_map
from dataset_scripts.sources.coco.parquet import parquet_source
from tests.dataset_scripts.small_sources import annotation_entry, coco, image_entry, picture, put
from tests.real_data import COCO_MULTIOBJECT as MULTIOBJECT
from tests.real_data import COCO_SAMPLE as SAMPLE


def build(source, output, *flags, kind="coco"):
    command = [kind, "--source", str(source), "--output", str(output), *flags]
    return main(command if "--workers" in flags else [*command, "--workers", "1"])


def rows_of(folder, split="validation"):
    paths = sorted((folder / "data").glob(f"{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def labels_of(row):
    return np.asarray(Image.open(io.BytesIO(row["segmentation"]["bytes"])))


@pytest.fixture
def small(tmp_path):
    """Two images, listed in falling order of their ids; annotations of both, a crowd, and useless ones."""
    images = [
        image_entry(20, license=4, flickr_url="http://farm.example/20_z.jpg", coco_url="http://images.example/20.jpg"),
        image_entry(5, 20, 16, coco_url="http://images.example/5.jpg"),
    ]
    crowd = {"size": [30, 40], "counts": [0, 30 * 20, 30 * 20]}  # the left half
    annotations = [
        annotation_entry(1, 20, [2, 3, 30, 20], 7),
        annotation_entry(2, 5, [1, 1, 4, 4], 90),
        annotation_entry(3, 20, [4, 5, 6, 7], 3, area=11.5),
        annotation_entry(4, 20, [0, 0, 20, 30], 7, iscrowd=1, segmentation=crowd),
        annotation_entry(5, 20, [3, 3, 0, 5]),
        annotation_entry(6, 20, [300, 3, 5, 5]),
        annotation_entry(7, 99, [3, 3, 5, 5]),
        annotation_entry(8, 20, [3, 3, 5, 5], 12),
        {**annotation_entry(9, 20, [3, 3, 5, 5]), "bbox": [1, 2, 3]},
        annotation_entry(10, 20, [30.5, 20, 12, 12], 90),  # beyond the image, in part
    ]
    licenses = [{"id": 4, "url": "http:\\/\\/creativecommons.org\\/by\\/2.0\\/", "name": "Attribution"}]
    return coco(tmp_path / "small", images, annotations, licenses=licenses)


def test_rows_say_what_the_json_says(small, tmp_path):
    assert build(small, tmp_path / "built") == 0
    assert check_dataset(tmp_path / "built") == []
    assert not list(tmp_path.glob(".built.index/*.tmp"))
    first, second = rows_of(tmp_path / "built")
    assert (first["image_id"], second["image_id"]) == ("5", "20")
    assert (second["width"], second["height"]) == (40, 30)
    assert second["image"]["bytes"] == (small / "val2017" / "000000000020.jpg").read_bytes()
    assert second["objects"] == {
        "bbox": [[2, 3, 30, 20], [4, 5, 6, 7], [0, 0, 20, 30], [30.5, 20, 12, 12]],
        "category": [1, 0, 1, 2],  # ids 3, 7, 90 in the order of the ids, not of the list
        "area": [600, 11.5, 600, 144],
        "iscrowd": [False, False, True, False],
    }
    assert second["regions"]["bbox"] == [[2, 3, 30, 20], [4, 5, 6, 7], [30.5, 20, 9.5, 10]]  # no crowd, clipped
    assert (second["license"], second["original_url"]) == (
        "http://creativecommons.org/by/2.0/",
        "http://farm.example/20_z.jpg",
    )
    assert (first["license"], first["original_url"]) == (None, "http://images.example/5.jpg")
    (part,) = load_manifest(tmp_path / "built")["recipe"]["parts"].values()
    assert part["dropped"] == {
        "of a category that is not listed": 1,
        "of an image that is not listed": 1,
        "outside the image": 1,
        "without area": 1,
        "without four finite numbers as box": 1,
    }
    dataset = load_dataset(str(tmp_path / "built"), split="validation", cache_dir=str(tmp_path / "cache"))
    assert dataset.features["objects"]["category"].feature.names == ["cat", "dog", "bird"]


def test_smaller_objects_are_seen_over_larger_ones_and_crowds_are_ignored(small, tmp_path):
    assert build(small, tmp_path / "built") == 0
    labels = labels_of(rows_of(tmp_path / "built")[1])
    expected = np.zeros((30, 40), np.uint8)
    expected[:, :20] = 255
    expected[3:23, 2:32] = 2  # 600 pixels each: the dog comes first in the file, so the crowd is drawn over it
    expected[:, :20] = 255
    expected[5:12, 4:10] = 1
    expected[20:, 30:] = np.where(np.arange(30, 40) >= 31, 3, expected[20:, 30:])
    np.testing.assert_array_equal(labels[:, :30], expected[:, :30])
    assert labels[25, 35] == 3


def test_an_object_without_an_outline_is_ignored_in_the_map():
    annotations = [annotation_entry(1, 1, [2, 2, 4, 3], segmentation=[]), annotation_entry(2, 1, [8, 2, 2, 2])]
    labels = draw_map(annotations, {3: 0}, 12, 8)
    expected = np.zeros((8, 12), np.uint8)
    expected[2:5, 2:6], expected[2:4, 8:10] = 255, 1
    np.testing.assert_array_equal(labels, expected)


def test_boxes_alone_give_no_map(tmp_path):
    source = coco(tmp_path / "boxes", [image_entry(1)], [annotation_entry(1, 1, [1, 1, 5, 5], segmentation=None)])
    assert build(source, tmp_path / "built") == 0
    assert rows_of(tmp_path / "built")[0]["segmentation"] is None
    assert "There is no `segmentation`" in (tmp_path / "built" / "README.md").read_text()


@pytest.fixture(scope="module")
def real_sample(tmp_path_factory):
    """The folder that is built from the real sample, and the annotations of each image."""
    if not SAMPLE.is_dir():
        pytest.skip("the COCO sample is not on this machine")
    output = tmp_path_factory.mktemp("sample") / "coco"
    build_dataset(output, coco_source(SAMPLE, tmp_path_factory.mktemp("work")), 1, rows_per_shard=10)
    content = json.loads((SAMPLE / "annotations" / "instances_val2017.json").read_text())
    of_image = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    return output, of_image


@pytest.mark.slow
def test_the_real_sample_does_not_depend_on_workers(real_sample, tmp_path):
    build_dataset(tmp_path / "2", coco_source(SAMPLE, tmp_path), 2, rows_per_shard=10)
    assert load_manifest(tmp_path / "2") == load_manifest(real_sample[0])


@pytest.mark.slow
def test_parquet_does_not_depend_on_workers(tmp_path):
    rows, _ = parquet_rows()
    source = tmp_path / "parquet"
    source.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), source / "train.parquet", row_group_size=7)
    for workers in (1, 2):
        build_dataset(tmp_path / str(workers), parquet_source(source, "a test"), workers, rows_per_shard=4)
    assert load_manifest(tmp_path / "1") == load_manifest(tmp_path / "2")


def test_the_real_sample_is_built(real_sample):
    output, of_image = real_sample
    assert check_dataset(output) == []
    assert "val2017 is partial: 44 of 5,000 images, 350 of 36,781" in (output / "README.md").read_text()
    rows = rows_of(output)
    assert [int(row["image_id"]) for row in rows] == sorted(of_image)
    for row in rows:
        annotations = of_image[int(row["image_id"])]
        numbers = [OFFICIAL_CATEGORIES.index(annotation["category_id"]) for annotation in annotations]
        assert row["objects"]["category"] == numbers
        boxes = np.array([annotation["bbox"] for annotation in annotations], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(np.array(row["objects"]["bbox"], np.float32).reshape(-1, 4), boxes)
        assert sum(row["objects"]["iscrowd"]) == sum(annotation["iscrowd"] for annotation in annotations)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_maps_of_the_real_sample_agree_with_pycocotools(real_sample):
    mask_tools = pytest.importorskip("pycocotools.mask")
    output, of_image = real_sample
    for row in rows_of(output):
        expected = np.zeros((row["height"], row["width"]), np.uint8)
        masks = []
        for annotation in of_image[int(row["image_id"])]:
            number = OFFICIAL_CATEGORIES.index(annotation["category_id"])
            runs = mask_tools.frPyObjects(annotation["segmentation"], row["height"], row["width"])
            mask = mask_tools.decode(mask_tools.merge(runs) if isinstance(runs, list) else runs).astype(bool)
            masks.append((mask, 255 if annotation["iscrowd"] else number + 1))
        for mask, value in sorted(masks, key=lambda pair: -pair[0].sum()):
            expected[mask] = value
        np.testing.assert_array_equal(labels_of(row), expected)


CLEAN_PROCESS = """
import socket
def refuse(*args): raise AssertionError("load_dataset reached for the network")
socket.socket.connect = refuse
from datasets import load_dataset
row = load_dataset("coco", split="validation")[1]
names = load_dataset("coco", split="validation").features["objects"]["category"].feature.names
print(row["image"].size == (row["width"], row["height"]), [names[k] for k in row["objects"]["category"]])
"""


def test_load_dataset_reads_it_from_a_clean_process_offline(small, tmp_path):
    assert build(small, tmp_path / "coco") == 0
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "True ['dog', 'cat', 'dog', 'bird']\n", done.stderr


# ----------------------------------------------------------------------------------------------------------- bad input


def change(source, **changes):
    path = source / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_nothing_is_left_beside_what_is_built(small, tmp_path):
    """Not even after a build that was killed."""
    before = files_below(small)
    put(tmp_path, "built/.work/killed.records", b"half")
    put(tmp_path, "built/.work/deeper/x", b"half")
    assert build(small, tmp_path / "built") == 0
    assert build(small, tmp_path / "built") == 0
    assert files_below(tmp_path / "built") == [
        ".lock",
        "README.md",
        "data/validation-00000-of-00001.parquet",
        "manifest.json",
    ]
    assert files_below(small) == before and not [path.name for path in tmp_path.iterdir() if path.name[0] == "."]


def test_a_refused_build_leaves_nothing(small, tmp_path):
    (small / "val2017" / "000000000005.jpg").unlink()
    assert build(small, tmp_path / "built") == 2
    assert not (tmp_path / "built").exists()
    put(tmp_path, "mine/thesis.txt", b"years of work")
    assert build(small, tmp_path / "mine", "--allow-missing") == 2
    assert files_below(tmp_path / "mine") == ["thesis.txt"]


def test_two_builds_do_not_share_a_work_folder(small, tmp_path, capsys):
    put(tmp_path, "built/.work/other.records", b"of the other")
    with lock_folder(tmp_path / "built" / ".work"):
        assert "in use by another build" in refusal(small, tmp_path, capsys)
        assert (tmp_path / "built" / ".work" / "other.records").exists()
    assert build(small, tmp_path / "built") == 0


def refusal(source, tmp_path, capsys, *flags):
    assert build(source, tmp_path / "built", *flags) in (1, 2)  # in a row, or before any
    return capsys.readouterr().err


def test_missing_pictures_are_an_error_unless_allowed(small, tmp_path, capsys):
    (small / "val2017" / "000000000005.jpg").unlink()
    message = refusal(small, tmp_path, capsys)
    assert "1 of the 2 pictures in instances_val2017.json" in message
    assert "the first is 000000000005.jpg" in message
    assert build(small, tmp_path / "built", "--allow-missing") == 0
    assert [row["image_id"] for row in rows_of(tmp_path / "built")] == ["20"]
    assert load_manifest(tmp_path / "built")["recipe"]["parts"]["validation"]["missing"] == 1
    shutil.rmtree(small / "val2017")
    (small / "val2017").mkdir()
    assert "Download them." in refusal(small, tmp_path, capsys, "--allow-missing")


def test_a_split_without_pictures_is_left_out_and_said_so(small, tmp_path, capsys):
    shutil.copy(small / "annotations" / "instances_val2017.json", small / "annotations" / "instances_train2017.json")
    assert build(small, tmp_path / "built") == 0
    assert "the split train is left out" in capsys.readouterr().out
    assert list(load_manifest(tmp_path / "built")["splits"]) == ["validation"]
    shutil.copytree(small / "val2017", small / "images" / "train2017")
    assert build(small, tmp_path / "both") == 0
    assert load_manifest(tmp_path / "both")["splits"] == {"train": 2, "validation": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "has the keys info, images, annotations, licenses, and categories is missing"),
        ({"images": []}, "lists 0 images and 3 categories"),
        ({"images": [image_entry(5), image_entry(5)]}, "image id 5 appears twice"),
        ({"images": [{**image_entry(5), "file_name": "../../etc/passwd"}]}, "leaves the folder"),
        ({"images": [{**image_entry(5), "file_name": "..\\x.jpg"}]}, "leaves the folder"),
        ({"images": [{**image_entry(5), "file_name": "/etc/x.jpg"}]}, "leaves the folder"),
        ({"images": [{**image_entry(5), "file_name": None}]}, "file name None, expected a relative path"),
        ({"images": [{**image_entry(5), "id": "five"}]}, "id is 'five', expected a whole number"),
        ({"images": [{**image_entry(5), "width": 0}]}, "width and height are .0, 30."),
        (
            {"images": [image_entry(5, 21, 16)], "annotations": []},
            "is 20 x 16 px, but its annotations are for 21 x 16",
        ),
        ({"annotations": [{"segments_info": [], "image_id": 5}]}, "category_id is None, expected a whole number"),
        ({"annotations": [1]}, "annotations holds 1, not objects"),
        ({"categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]}, "both have the category id 3"),
        ({"images": [image_entry(2**63)]}, "expected a whole number"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "cat"}]}, "two categories are called 'cat'"),
        (
            {"annotations": [annotation_entry(8, 5, [1, 1, 5, 5], segmentation={"size": [9, 9], "counts": [81]})]},
            "annotation 8: run lengths are for height and width",
        ),
    ],
)
def test_a_json_that_cannot_be_used_is_explained(small, tmp_path, capsys, changes, message):
    change(small, **changes)
    assert re.search(message, refusal(small, tmp_path, capsys))


def test_what_is_no_coco_folder_is_explained(tmp_path, capsys):
    assert "is not there" in refusal(tmp_path / "nothing", tmp_path, capsys)
    put(tmp_path, "empty/notes.txt", b"")
    assert "it has notes.txt" in refusal(tmp_path / "empty", tmp_path, capsys)
    put(tmp_path, "captions/annotations/captions_val2017.json", b"{}")
    assert "has captions_val2017.json, expected instances_train2017" in refusal(
        tmp_path / "captions", tmp_path, capsys
    )


@pytest.mark.parametrize("content", [b"", b"[1]", b"<html>", b'{"images": [{"id": 1}', b'{"images": [{"id": 1}, x]}'])
def test_a_cut_or_foreign_json_is_explained(tmp_path, capsys, content):
    put(tmp_path, "cut/annotations/instances_val2017.json", content)
    (tmp_path / "cut" / "val2017").mkdir()
    message = refusal(tmp_path / "cut", tmp_path, capsys)
    assert "instances_val2017.json" in message
    assert "expected an object" in message or "cut short or edited" in message or "expected a relative path" in message


def test_a_picture_that_cannot_be_decoded_is_named(small, tmp_path, capsys, monkeypatch):
    path = small / "val2017" / "000000000020.jpg"
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the picture has 1,200: so few are a bomb now
        message = refusal(small, tmp_path, capsys)
        assert "000000000020.jpg cannot be decoded" in message
        assert "decompression bomb" in message
    path.write_bytes(path.read_bytes()[:-200])
    assert "000000000020.jpg cannot be decoded" in refusal(small, tmp_path, capsys, "--overwrite")


# ----------------------------------------------------------------------------------------------------- turned pictures


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_maps_follow_a_picture_that_is_turned(tmp_path, orientation):
    """A dark rectangle in a light picture: decoded as `datasets` does, it lies in the box and under the map."""
    pixels = np.full((24, 40, 3), 250, np.uint8)
    pixels[4:14, 6:30] = 0
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))))
    frames = {"upright": upright}
    if orientation >= 5:  # else the size cannot tell, and upright is the rule
        frames["stored"] = pixels
    for frame, seen in frames.items():
        ys, xs = np.nonzero(seen[..., 0] == 0)
        box = [int(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)]
        source = coco(tmp_path / frame, [image_entry(1, seen.shape[1], seen.shape[0])], [annotation_entry(1, 1, box)])
        put(source, "val2017/000000000001.jpg", buffer.getvalue())
        assert build(source, tmp_path / f"{frame}-built") == 0
        assert check_dataset(tmp_path / f"{frame}-built") == []
        row = load_dataset(str(tmp_path / f"{frame}-built"), split="validation", cache_dir=str(tmp_path / "c"))[0]
        assert row["image"].size == (row["width"], row["height"])
        np.testing.assert_array_equal(np.asarray(row["segmentation"]) == 1, np.asarray(row["image"])[..., 0] == 0)
        x, y, w, h = (int(v) for v in row["objects"]["bbox"][0])
        assert (np.asarray(row["image"])[y : y + h, x : x + w] == 0).all()
        assert w * h == 240


# ------------------------------------------------------------------------------------------------------------- Parquet


def parquet_rows(box_format="xyxy", as_list=False, count=30, **changes):
    rng = np.random.default_rng(3)
    rows, truth = [], []
    for k in range(count):
        corner = rng.integers(0, 20, (3, 2))
        side = rng.integers(4, 12, (3, 2))
        xywh = np.concatenate([corner, side], axis=1).astype(float)
        boxes = xywh if box_format == "xywh" else np.concatenate([corner, corner + side], axis=1).astype(float)
        categories = [["cat", "dog", "eel"][c] for c in rng.integers(0, 3, 3)]
        objects = {"bbox_id": [0, 1, 2], "category": categories, "bbox": boxes.tolist(), "area": [1.0, 2.0, 3.0]}
        if as_list:
            objects = [{key: values[i] for key, values in objects.items()} for i in range(3)]
        image = {"bytes": picture(33, 32, seed=k), "path": None}
        rows.append({"image": image, "image_id": k, "width": 33, "height": 32, "objects": objects, **changes})
        truth.append((xywh.tolist(), categories))
    return rows, truth


@pytest.mark.parametrize("box_format", ["xywh", "xyxy"])
@pytest.mark.parametrize("as_list", [False, True])
def test_coco_type_parquet_is_read_whatever_its_boxes(tmp_path, box_format, as_list):
    rows, truth = parquet_rows(box_format, as_list)
    source = tmp_path / "parquet"
    (source / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:20]), source / "data" / "train-00000-of-00001.parquet", row_group_size=7)
    pq.write_table(pa.Table.from_pylist(rows[20:]), source / "data" / "val-00000-of-00001.parquet")
    assert build(source, tmp_path / "built") == 0
    manifest = load_manifest(tmp_path / "built")
    assert manifest["recipe"]["box_format"] == box_format
    assert manifest["class_names"] == ["cat", "dog", "eel"]
    assert check_dataset(tmp_path / "built") == []
    built = [*rows_of(tmp_path / "built", "train"), *rows_of(tmp_path / "built")]
    assert [row["image_id"] for row in built] == [str(k) for k in range(30)]
    for row, source_row, (boxes, categories) in zip(built, rows, truth, strict=True):
        assert row["image"]["bytes"] == source_row["image"]["bytes"]
        assert row["objects"]["bbox"] == boxes
        assert [manifest["class_names"][c] for c in row["objects"]["category"]] == categories
        assert row["objects"]["area"] == [1.0, 2.0, 3.0]


def test_rows_of_parquet_may_be_asked_for_in_any_order(tmp_path):
    rows, _ = parquet_rows(count=25)
    for k in range(5):
        part = pa.Table.from_pylist(rows[5 * k : 5 * k + 5])
        pq.write_table(part, tmp_path / f"part-{k}.parquet", row_group_size=2)
    source = parquet_source(tmp_path, "a test")
    for number in [24, 0, 3, 2, 13, 13, 7, 8, 9, 1]:
        assert source.make_row("train", number)["image_id"] == str(number)


def test_boxes_that_may_be_either_are_not_guessed():
    sizes = np.full((10, 2), 100.0)
    with pytest.raises(ValueError, match="--box_format"):
        choose_box_format(np.tile([10.0, 10, 20, 20], (10, 1)), sizes)
    with pytest.raises(ValueError, match="fractions of the image"):
        choose_box_format(np.tile([0.1, 0.1, 0.5, 0.5], (10, 1)), sizes)
    assert choose_box_format(np.tile([60.0, 60, 90, 90], (10, 1)), sizes) == "xyxy"
    assert choose_box_format(np.tile([60.0, 60, 30, 30], (10, 1)), sizes) == "xywh"
    assert choose_box_format(np.zeros((0, 4)), np.zeros((0, 2))) == "xywh"


def test_parquet_that_cannot_be_used_is_explained(tmp_path, capsys):
    rows, _ = parquet_rows()
    for row in rows:
        row["objects"]["category"] = [0, 1, 2]
    folder = tmp_path / "numbers"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    assert "nothing names them" in refusal(folder, tmp_path, capsys)
    names = put(tmp_path, "names.txt", b"cat\ndog\n")
    assert "Category 2 occurs, but there are only 2" in refusal(folder, tmp_path, capsys, "--class-names", str(names))
    names.write_text("cat\ndog\nyak\n")
    assert build(folder, tmp_path / "named", "--class-names", str(names)) == 0
    paths = [row | {"image": {"bytes": None, "path": "x.jpg"}} for row in rows]
    pq.write_table(pa.Table.from_pylist(paths), folder / "train.parquet")
    assert "holds no bytes" in refusal(folder, tmp_path, capsys, "--class-names", str(names))
    pq.write_table(pa.table({"pixels": [1]}), folder / "train.parquet")
    assert "has the columns pixels; image and objects is missing" in refusal(folder, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.skipif(not MULTIOBJECT.is_dir(), reason="the COCO development set is not on this machine")
def test_a_real_parquet_set_is_read(tmp_path):
    assert build(MULTIOBJECT, tmp_path / "built") == 0
    assert check_dataset(tmp_path / "built") == []
    manifest = load_manifest(tmp_path / "built")
    assert manifest["splits"] == {"train": 1530, "validation": 420}
    assert manifest["recipe"]["box_format"] == "xywh"
    assert len(manifest["class_names"]) == 80
