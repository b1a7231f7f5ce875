import io
import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from dataset_scripts.build.parquet import load_manifest
from dataset_scripts.check import check_dataset
from dataset_scripts.prepare import main
from dataset_scripts.sources.voc import VOC_CLASSES
from tests.dataset_scripts.small_sources import picture, put
from training.data.decoding import decode_image


def build(kind, source, output, *flags):
    return main([kind, "--source", str(source), "--output", str(output), "--workers", "1", *flags])


def refusal(kind, source, tmp_path, capsys, *flags):
    assert build(kind, source, tmp_path / "refused", *flags) in (1, 2)  # in a row, or before any
    return capsys.readouterr().err


def rows_of(folder, *splits):
    paths = [p for split in splits or ("train", "validation") for p in sorted((folder / "data").glob(f"{split}-*"))]
    return {row["image_id"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def saved(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------ prepare folder


@pytest.fixture
def pictures(tmp_path):
    """Names, kinds and modes of all sorts, and files that are no pictures."""
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    put(folder, "a b/ü ☃.jpg", picture(30, 20))
    put(folder, "deep/er/x.JPEG", picture(30, 20, orientation=6))
    put(folder, "palette.png", saved(rgb[..., 0], "PNG"))
    put(folder, "wide.png", saved(rng.integers(0, 65536, (20, 30)).astype(np.uint16), "PNG"))
    buffer = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(buffer, "JPEG")
    put(folder, "cmyk.jpg", buffer.getvalue())
    put(folder, "alpha.webp", saved(np.dstack([rgb, rgb[..., 0]]), "WEBP", lossless=True))
    put(folder, "turned.tif", picture(30, 20, orientation=8, kind="TIFF"))
    put(folder, "notes.txt", b"no picture")
    put(folder, ".hidden/y.jpg", b"not looked at")
    return folder


def test_a_folder_of_all_sorts_of_pictures(pictures, tmp_path):
    (pictures / "loop").symlink_to(pictures)
    assert build("folder", pictures, tmp_path / "built") == 0
    assert check_dataset(tmp_path / "built") == []
    rows = rows_of(tmp_path / "built")
    assert set(rows) == {
        "a b/ü ☃.jpg",
        "deep/er/x.JPEG",
        "palette.png",
        "wide.png",
        "cmyk.jpg",
        "alpha.webp",
        "turned.tif",
    }
    for name, row in rows.items():
        data = (pictures / name).read_bytes()
        assert row["image"]["bytes"] == data
        # The trainer's decoder sees the size that the row states.
        assert decode_image(data, name).shape == (row["height"], row["width"], 3)
        assert row["objects"]["bbox"] == []
        assert row["segmentation"] is None
    assert (rows["deep/er/x.JPEG"]["width"], rows["deep/er/x.JPEG"]["height"]) == (20, 30)
    dataset = load_dataset(str(tmp_path / "built"), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.features["objects"]["category"].feature.names == ["object"]


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_a_name_that_is_not_utf8(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.png"), "wb") as file:
        file.write(picture(9, 9, kind="PNG"))
    assert build("folder", folder, tmp_path / "built") == 0
    assert list(rows_of(tmp_path / "built")) == ["caf\\xe9.png"]


def test_the_split_goes_by_the_name_alone(tmp_path):
    folder = tmp_path / "pictures"
    data = picture(8, 8, kind="PNG")
    for k in range(200):
        put(folder, f"{k:03d}.png", data)
    assert build("folder", folder, tmp_path / "first", "--validation-share", "0.3") == 0
    before = set(rows_of(tmp_path / "first", "validation"))
    assert 35 <= len(before) <= 85
    for k in range(0, 200, 2):
        (folder / f"{k:03d}.png").unlink()
    for k in range(200, 250):
        put(folder, f"{k:03d}.png", data)
    assert build("folder", folder, tmp_path / "second", "--validation-share", "0.3") == 0
    after = set(rows_of(tmp_path / "second", "validation"))
    kept = {f"{k:03d}.png" for k in range(1, 200, 2)}
    assert after & kept == before & kept
    assert build("folder", folder, tmp_path / "none", "--validation-share", "0") == 0
    assert list(load_manifest(tmp_path / "none")["splits"]) == ["train"]


def test_a_single_picture_is_for_training(tmp_path):
    put(tmp_path / "one", "x.png", picture(8, 8, kind="PNG"))
    assert build("folder", tmp_path / "one", tmp_path / "built", "--validation-share", "0.999") == 0
    assert load_manifest(tmp_path / "built")["splits"] == {"train": 1}


def bomb():
    """A small PNG that says it has 3,600,000,000 pixels."""
    small = saved(np.zeros((10, 10), np.uint8), "PNG")
    head = small[12:16] + (60000).to_bytes(4, "big") * 2 + small[24:29]
    return small[:12] + head + zlib.crc32(head).to_bytes(4, "big") + small[33:]


def broken_files(folder):
    whole = picture(60, 60)
    put(folder, "cut.jpg", whole[: len(whole) // 2])
    put(folder, "empty.png", b"")
    put(folder, "page.jpg", b"<html>404</html>")
    put(folder, "float.tiff", saved(np.zeros((4, 4), np.float32), "TIFF"))
    put(folder, "bomb.png", bomb())
    return ["bomb.png", "cut.jpg", "empty.png", "float.tiff", "page.jpg"]


@pytest.mark.parametrize("name", ["bomb.png", "cut.jpg", "empty.png", "float.tiff", "page.jpg"])
def test_a_picture_that_cannot_be_decoded_is_named(tmp_path, capsys, name):
    broken_files(tmp_path / "all")
    put(tmp_path / "some", name, (tmp_path / "all" / name).read_bytes())
    assert f"{name} cannot be decoded" in refusal("folder", tmp_path / "some", tmp_path, capsys)


def test_broken_pictures_are_left_out_if_asked(pictures, tmp_path, capsys):
    names = broken_files(pictures)
    assert build("folder", pictures, tmp_path / "built") == 1
    assert "leave such pictures out with --skip_broken" in capsys.readouterr().err
    assert build("folder", pictures, tmp_path / "built", "--skip-broken") == 0  # in the folder that has no shard yet
    error = capsys.readouterr().err
    assert all(f"left out: image {name} cannot be decoded" in error for name in names)
    assert len(rows_of(tmp_path / "built")) == 7
    assert load_manifest(tmp_path / "built")["recipe"]["broken"] == 5
    assert "5 pictures that cannot be decoded" in (tmp_path / "built" / "README.md").read_text()
    shutil.rmtree(pictures)
    broken_files(pictures)
    assert "None of the 5 pictures" in refusal("folder", pictures, tmp_path, capsys, "--skip-broken")


def test_a_link_to_nowhere_is_a_picture_that_cannot_be_read(tmp_path, capsys):
    put(tmp_path / "some", "a.jpg", picture(8, 8))
    (tmp_path / "some" / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "b.jpg cannot be read: No such file" in refusal("folder", tmp_path / "some", tmp_path, capsys)
    assert build("folder", tmp_path / "some", tmp_path / "built", "--skip-broken") == 0
    assert list(rows_of(tmp_path / "built")) == ["a.jpg"]


def test_a_folder_without_pictures_is_explained(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "holds no picture" in (message := refusal("folder", tmp_path / "empty", tmp_path, capsys))
    assert "no file at all" in message
    put(tmp_path, "texts/a.txt", b"")
    assert "1 other files, such as a.txt" in refusal("folder", tmp_path / "texts", tmp_path, capsys)
    assert "is not there, expected a folder" in refusal("folder", tmp_path / "no", tmp_path, capsys)
    assert "is a file" in refusal("folder", tmp_path / "texts" / "a.txt", tmp_path, capsys)
    put(tmp_path, "some/a.jpg", picture(8, 8))
    message = refusal("folder", tmp_path / "some", tmp_path, capsys, "--validation-share", "1")
    assert "--validation_share is 1.0" in message


def test_a_changed_folder_is_another_recipe(tmp_path, capsys):
    put(tmp_path / "some", "a.jpg", picture(8, 8))
    assert build("folder", tmp_path / "some", tmp_path / "refused") == 0
    put(tmp_path / "some", "b.jpg", picture(8, 8, seed=1))
    assert "built with another recipe" in refusal("folder", tmp_path / "some", tmp_path, capsys)
    assert build("folder", tmp_path / "some", tmp_path / "refused", "--overwrite") == 0
    assert len(rows_of(tmp_path / "refused")) == 2


# ------------------------------------------------------------------------------------------------- prepare imagefolder

OBJECTS = {
    "cats/1.jpg": {"bbox": [[1, 2, 10, 8], [4, 4, 3, 3], [50, 50, 2, 2]], "categories": ["cat", "dog", "dog"]},
    "2.jpg": {"bbox": [], "categories": []},
}


def write_metadata(folder, kind, entries):
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(entries), folder / "metadata.parquet")
    elif kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        text = "".join(
            f'{e["file_name"]},"{json.dumps(e["objects"]).replace(chr(34), chr(34) * 2)}"\n' for e in entries
        )
        (folder / "metadata.csv").write_text("file_name,objects\n" + text)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_imagefolder_with_boxes(tmp_path, kind):
    source = tmp_path / "source"
    for split in ("train", "val"):
        for name in ["cats/1.jpg", "2.jpg", "unlisted.jpg"]:
            put(source / split, name, picture(30, 20))
        write_metadata(source / split, kind, [{"file_name": n, "objects": o} for n, o in OBJECTS.items()])
    assert build("imagefolder", source, tmp_path / "built") == 0
    assert check_dataset(tmp_path / "built") == []
    manifest = load_manifest(tmp_path / "built")
    assert manifest["splits"] == {"train": 3, "validation": 3}
    assert manifest["class_names"] == ["cat", "dog"]
    assert manifest["recipe"]["left_out"]["annotations outside the image"] == 2
    row = rows_of(tmp_path / "built")["val/cats/1.jpg"]
    assert row["objects"] == {
        "bbox": [[1, 2, 10, 8], [4, 4, 3, 3]],
        "category": [0, 1],
        "area": [80, 9],
        "iscrowd": [False, False],
    }
    assert row["regions"]["bbox"] == row["objects"]["bbox"]


def test_imagefolder_with_a_folder_per_class(tmp_path):
    source = tmp_path / "source"
    for name in ["dog/1.jpg", "dog/more/3.jpg", "cat/2.jpg"]:
        put(source, name, picture(30, 20, orientation=6 if name == "dog/1.jpg" else 1))
    assert build("imagefolder", source, tmp_path / "built", "--validation-share", "0") == 0
    assert check_dataset(tmp_path / "built") == []
    names = load_manifest(tmp_path / "built")["class_names"]
    rows = rows_of(tmp_path / "built")
    assert {name: names[row["objects"]["category"][0]] for name, row in rows.items()} == {
        "dog/1.jpg": "dog",
        "dog/more/3.jpg": "more",
        "cat/2.jpg": "cat",
    }
    assert rows["dog/1.jpg"]["objects"]["bbox"] == [[0, 0, 20, 30]]


def test_imagefolder_with_labels(tmp_path, capsys):
    source = tmp_path / "source"
    put(source, "1.jpg", picture(30, 20))
    (source / "metadata.csv").write_text("file_name,label\n1.jpg,fern\n")
    assert build("imagefolder", source, tmp_path / "built") == 0
    assert load_manifest(tmp_path / "built")["class_names"] == ["fern"]
    put(source, "2.jpg", picture(30, 20))
    names = put(tmp_path, "names.txt", b"moss\nfern\n")
    (source / "metadata.csv").write_text("file_name,label\n1.jpg,1\n2.jpg,\n")
    assert build("imagefolder", source, tmp_path / "numbers", "--class-names", str(names)) == 0
    categories = {name: row["objects"]["category"] for name, row in rows_of(tmp_path / "numbers").items()}
    assert categories == {"1.jpg": [1], "2.jpg": []}
    (source / "metadata.csv").unlink()
    (source / "metadata.jsonl").write_text('{"file_name": "1.jpg", "label": 1}')
    assert "nothing names them" in refusal("imagefolder", source, tmp_path, capsys)
    assert build("imagefolder", source, tmp_path / "named", "--class-names", str(names)) == 0
    assert rows_of(tmp_path / "named")["1.jpg"]["objects"]["category"] == [1]
    names.write_text("moss\n")
    message = refusal("imagefolder", source, tmp_path, capsys, "--class-names", str(names))
    assert "Category 1 occurs, but there are only 1 class names" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "../2.jpg"}', "leaves the folder"),
        ('{"file_name": "C:\\\\2.jpg"}', "leaves the folder"),
        ('{"file_name": 3}', "expected a relative path"),
        ('{"file_name": "2.jpg"}', "1 pictures in the metadata are not in"),
        ('{"file_name": "1.jpg"}\n{"file_name": "./1.jpg"}', "1.jpg is listed twice"),
        ('{"name": "1.jpg"}', "has name, expected a column file_name"),
        ('["1.jpg"]', "expected a column file_name"),
        ('{"file_name": "1.jpg', "no valid JSON"),
        ('{"file_name": "1.jpg", "objects": {"bbox": [[1, 1, 2, 2]]}}', "1 boxes and 0 values of category"),
        ('{"file_name": "1.jpg", "objects": {"bbox": 5}}', "bbox of objects is '5', expected a list"),
        (
            '{"file_name": "1.jpg", "objects": {"bbox": [[1, 1, 2, 2]], "category": [0], "iscrowd": [0, 0]}}',
            "1 boxes and 2 values of iscrowd",
        ),
        (
            '{"file_name": "1.jpg", "objects": {"bbox": [[0.1, 0.1, 0.5, 0.5]], "category": ["cat"]}}',
            "fractions of the image",
        ),
        (
            '{"file_name": "1.jpg", "objects": {"bbox": [[20, 10, 28, 18]], "category": ["cat"]}}',
            "Say --box_format xyxy, or correct them",
        ),
        ('{"file_name": "1.jpg", "objects": 7}', "objects is '7'"),
        ('{"file_name": "1.jpg", "objects": {"bbox": [[1, 1, 2, 2]], "category": [-1]}}', "category -1"),
        ('{"file_name": "1.jpg", "objects": {"bbox": [[1, 1, 2, 2]], "category": [null]}}', "category None"),
    ],
)
def test_metadata_that_cannot_be_used_is_explained(tmp_path, capsys, text, message):
    put(tmp_path / "source", "1.jpg", picture(30, 20))
    put(tmp_path / "source", "metadata.jsonl", text.encode())
    assert message in refusal("imagefolder", tmp_path / "source", tmp_path, capsys)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("metadata.csv", b"file_name,label\n\xff.jpg,1\n", "cannot be read: 'utf-8' codec"),
        ("metadata.csv", b"file_name,objects\n1.jpg," + b"7" * 200_000, "cannot be read: field larger than"),
        ("metadata.csv", b'file_name,objects\n1.jpg,"{"\n', "no valid JSON"),
        ("metadata.csv", b"1.jpg;7\n2.jpg;8\n", "expected a column file_name"),
        ("metadata.parquet", b"PAR1", "Parquet file size is 4 bytes"),
    ],
)
def test_metadata_that_cannot_be_read_is_explained(tmp_path, capsys, name, data, message):
    put(tmp_path / "source", "1.jpg", picture(30, 20))
    put(tmp_path / "source", name, data)
    error = refusal("imagefolder", tmp_path / "source", tmp_path, capsys)
    assert message in error
    assert name in error


def test_boxes_given_by_corners(tmp_path):
    source = tmp_path / "source"
    put(source, "1.jpg", picture(30, 20))
    write_metadata(source, "jsonl", [{"file_name": "1.jpg", "objects": {"bbox": [[20, 10, 28, 18]], "label": ["a"]}}])
    assert build("imagefolder", source, tmp_path / "built", "--box-format", "xyxy") == 0
    assert rows_of(tmp_path / "built")["1.jpg"]["objects"]["bbox"] == [[20, 10, 8, 8]]


def test_an_imagefolder_of_neither_kind_is_explained(tmp_path, capsys):
    put(tmp_path / "source", "1.jpg", picture(30, 20))
    assert "in no folder of a class" in refusal("imagefolder", tmp_path / "source", tmp_path, capsys)
    put(tmp_path / "source", "train/cat/1.jpg", picture(30, 20))
    assert "1.jpg is in none of them" in refusal("imagefolder", tmp_path / "source", tmp_path, capsys)


# --------------------------------------------------------------------------------------------------------- prepare voc


def annotation(objects, width=30, height=20):
    parts = [
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox><part><name>head</name></part></object>"
        for name, (x1, y1, x2, y2), difficult in objects
    ]
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>../../etc/passwd</filename>{size}{''.join(parts)}</annotation>".encode()


@pytest.fixture
def voc(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for k in range(4):
        put(folder, f"JPEGImages/2007_{k}.jpg", picture(30, 20, seed=k))
        objects = [("dog", (1, 1, 10, 5), 0), ("cat", (3.5, 4, 30, 20), 1)]
        put(folder, f"Annotations/2007_{k}.xml", annotation(objects))
    labels = np.zeros((20, 30), np.uint8)
    labels[:5, :10], labels[3:, 5:], labels[8, 8] = 12, 8, 255
    palette = Image.fromarray(labels)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    put(folder, "SegmentationClass/2007_1.png", buffer.getvalue())
    put(folder, "SegmentationObject/2007_1.png", buffer.getvalue())
    put(folder, "ImageSets/Main/train.txt", b"2007_2\n2007_0\n")
    put(folder, "ImageSets/Main/val.txt", b"2007_1\n")
    put(folder, "ImageSets/Main/dog_train.txt", b"2007_2 1\n2007_0 -1\n")
    return folder


def test_voc_is_read_with_its_splits_and_maps(voc, tmp_path):
    for source in (voc, voc.parent, voc.parent.parent):
        output = tmp_path / "built" / source.name
        assert build("voc", source, output) == 0
        assert check_dataset(output) == []
        manifest = load_manifest(output)
        assert manifest["splits"] == {"train": 2, "validation": 1}
        assert manifest["class_names"] == list(VOC_CLASSES)
        assert manifest["recipe"]["left_out"] == {"pictures in no image set": 1}
    rows = rows_of(output)
    assert list(rows) == ["2007_2", "2007_0", "2007_1"]
    row = rows["2007_1"]
    assert row["objects"] == {
        "bbox": [[0, 0, 10, 5], [2.5, 3, 27.5, 17]],  # pixel 1 to pixel 10 is ten pixels, from 0 on
        "category": [11, 7],
        "area": [50, 467.5],
        "iscrowd": [False, True],
    }
    assert row["regions"]["bbox"] == [[0, 0, 10, 5]]
    with Image.open(io.BytesIO(row["segmentation"]["bytes"])) as image:
        assert image.mode == "L"
        assert {value: count for count, value in image.getcolors()}[255] == 1
        with Image.open(voc / "SegmentationClass" / "2007_1.png") as original:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(original))
    assert rows["2007_0"]["segmentation"] is None


def test_xml_files_beside_pictures(tmp_path):
    source = tmp_path / "source"
    put(source, "a/1.png", picture(30, 20, kind="PNG"))
    put(source, "a/1.xml", annotation([("crane", (1, 1, 5, 5), 0)], width=0, height=0))
    put(source, "b/1.png", picture(30, 20, kind="PNG"))
    put(source, "b/1.xml", annotation([("heron", (1, 1, 5, 5), 0), ("heron", (9, 9, 8, 8), 0)]))
    put(source, "later.png", picture(30, 20, kind="PNG"))
    assert build("voc", source, tmp_path / "built") == 0
    manifest = load_manifest(tmp_path / "built")
    assert manifest["class_names"] == ["crane", "heron"]
    assert manifest["recipe"]["left_out"] == {"pictures without an XML file": 1, "annotations without area": 1}
    assert set(rows_of(tmp_path / "built")) == {"a/1", "b/1"}


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BOMB, "defines a DOCTYPE or an ENTITY"),
        (BOMB.decode().encode("utf-16"), "is not UTF-8"),
        (b"<annotation><object>", "is no whole XML file"),
        (b"<kml></kml>", "holds <kml>, expected <annotation>"),
        (b"<annotation><object><bndbox/></object></annotation>", "an object has no name"),
        (annotation([], width=99), "is 30 x 20 px, but its annotations are for 99 x 20 px"),
    ],
)
def test_xml_that_cannot_be_used_is_explained(tmp_path, capsys, data, message):
    put(tmp_path / "source", "1.jpg", picture(30, 20))
    put(tmp_path / "source", "1.xml", data)
    assert message in refusal("voc", tmp_path / "source", tmp_path, capsys)


def test_voc_that_cannot_be_used_is_explained(voc, tmp_path, capsys):
    shutil.copytree(voc, voc.parent / "VOC2007")
    assert "has VOC2007 and VOC2012; give one of them" in refusal("voc", voc.parent, tmp_path, capsys, "--overwrite")
    put(voc, "SegmentationClass/2007_1.png", saved(np.zeros((20, 31), np.uint8), "PNG"))
    assert "is 31 x 20 px, but its picture is 30 x 20 px" in refusal("voc", voc, tmp_path, capsys, "--overwrite")
    put(voc, "SegmentationClass/2007_1.png", saved(np.full((20, 30), 21, np.uint8), "PNG"))
    assert "has the value 21, expected 0 to 20 or 255" in refusal("voc", voc, tmp_path, capsys, "--overwrite")
    put(voc, "SegmentationClass/2007_1.png", saved(np.zeros((20, 30, 3), np.uint8), "PNG"))
    assert "has mode RGB" in refusal("voc", voc, tmp_path, capsys, "--overwrite")
    put(voc, "SegmentationClass/2007_1.png", bomb())
    assert "2007_1.png cannot be decoded" in refusal("voc", voc, tmp_path, capsys, "--overwrite")
    put(voc, "ImageSets/Main/test.txt", b"../../2007_1\n")
    assert "the first is ../../2007_1" in refusal("voc", voc, tmp_path, capsys, "--overwrite")
    put(voc, "ImageSets/Main/test.txt", b"2007_1\n")
    assert "2007_1 is in validation and in test" in refusal("voc", voc, tmp_path, capsys, "--overwrite")
    put(voc, "ImageSets/Main/test.txt", b"2009_1\n")
    assert "1 annotated pictures are not in" in refusal("voc", voc, tmp_path, capsys, "--overwrite")
    put(tmp_path, "plain/1.jpg", picture(8, 8))
    assert "has no XML file" in refusal("voc", Path(tmp_path / "plain"), tmp_path, capsys, "--overwrite")
