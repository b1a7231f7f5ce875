import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from dataset_scripts.sources.openimage_mini.tables import (
    BOX,
    _order,
    id_text,
    read_boxes,
    read_classes,
    read_image_list,
    read_labels,
    read_masks,
    read_parents,
)

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
CLASSES = {"/m/a": 0, "/m/b": 1}
A, B, C = "00000000000000aa", "fffffffffffffffe", "0123456789abcdef"


def box(image=A, label="/m/a", x1=0.1, x2=0.4, y1=0.2, y2=0.3, source="xclick", flags="0,0,0,0,0"):
    return f"{image},{source},{label},1,{x1},{x2},{y1},{y2},{flags}"


def table(path: Path, rows: list[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def as_tuples(boxes) -> list[tuple]:
    return [
        (id_text(image), int(category), *(round(float(value), 6) for value in corners))
        for image, category, corners in boxes
    ]


def test_corners_are_taken_by_name_and_not_by_place(tmp_path):
    """Open Images writes XMin,XMax,YMin,YMax; read as x1,y1,x2,y2 every box would be another."""
    boxes, _ = read_boxes(table(tmp_path / "b.csv", [box(x1=0.1, x2=0.4, y1=0.2, y2=0.3)]), CLASSES)
    np.testing.assert_allclose(boxes["corners"], [[0.1, 0.2, 0.4, 0.3]], rtol=1e-6)
    assert id_text(boxes["image"][0]) == A


def test_reordered_and_further_columns_do_not_matter(tmp_path):
    rows = [box(), box(B, "/m/b", 0, 1, 0, 1)]
    plain, _ = read_boxes(table(tmp_path / "a.csv", rows), CLASSES)
    names = HEADER.split(",")
    order = random.Random(0).sample(range(len(names)), len(names))
    mixed = [",".join([*(row.split(",")[k] for k in order), "0.5"]) for row in rows]
    header = ",".join([*(names[k] for k in order), "XClick1X"])
    again, _ = read_boxes(table(tmp_path / "b.csv", mixed, header), CLASSES)
    assert as_tuples(plain) == as_tuples(again) == [(A, 0, 0.1, 0.2, 0.4, 0.3), (B, 1, 0, 0, 1, 1)]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.replace("XMax", "xmax"), "no column XMax. Found ImageID, .*xmax.*expected at least ImageID"),
        (HEADER.replace(",IsInside", ""), "no column IsInside"),
        (HEADER.replace("YMin", "XMin"), "no column YMin"),
        (HEADER.replace("Confidence", "XMin"), "column XMin twice"),
        (HEADER.replace(",", ";"), "no column ImageID, LabelName, XMin"),
        ("", "an empty file"),
    ],
)
def test_a_header_that_does_not_fit_is_named(tmp_path, header, message):
    with pytest.raises(ValueError, match="b.csv: .*" + message):
        read_boxes(table(tmp_path / "b.csv", [box()], header), CLASSES)


def test_a_row_that_was_cut_off_is_an_error(tmp_path):
    path = table(tmp_path / "b.csv", [box(), box(B)[:40]])
    with pytest.raises(ValueError, match="b.csv: a row cannot be read .*delete it"):
        read_boxes(path, CLASSES)


@pytest.mark.parametrize("image", ["../../etc/passwd", "..", "00000000000000AA", "aa", "/0000000000000aa", ""])
def test_an_id_that_is_no_id_is_refused(tmp_path, image):
    with pytest.raises(ValueError, match="is no Open Images id"):
        read_boxes(table(tmp_path / "b.csv", [box(), box(image)]), CLASSES)


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    rows = [
        box(),
        box(flags="1,1,0,0,0"),  # occluded and truncated: kept, but the box is that of the first row
        box(flags="0,0,1,0,0"),
        box(flags="0,0,0,1,0"),
        box(flags="0,0,0,0,1"),
        box(B, flags="-1,-1,-1,-1,-1"),  # unknown is not 1
        box(label="/m/zzz"),
        box(x1=0.4, x2=0.4),
        box(x1=-0.25, x2=0.5),  # clipped
        box(x1="nan"),
        *(box(image=f"{k:016x}", x2=0.5 + k / 100) for k in range(40)),
    ]
    boxes, counts = read_boxes(table(tmp_path / "b.csv", rows), CLASSES)
    assert counts == {
        "rows": 50, "group of": 1, "depiction": 1, "inside": 1, "not drawn by hand": 0, "unknown class": 1,
        "outside": 1, "degenerate": 2, "duplicate": 1, "kept": 43,
    }  # fmt: skip
    found = as_tuples(boxes)
    assert found.count((A, 0, 0.1, 0.2, 0.4, 0.3)) == 1
    assert (A, 0, 0.0, 0.2, 0.5, 0.3) in found
    assert (B, 0, 0.1, 0.2, 0.4, 0.3) in found


def test_boxes_not_drawn_by_hand_can_be_left_out(tmp_path):
    path = table(tmp_path / "b.csv", [box(), box(B, source="activemil")])
    boxes, counts = read_boxes(path, CLASSES, hand_drawn=True)
    assert [id_text(image) for image in boxes["image"]] == [A]
    assert counts["not drawn by hand"] == 1
    assert len(read_boxes(path, CLASSES)[0]) == 2


def test_coordinates_in_pixels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 of 2 boxes lie outside .0, 1. or have no area"):
        read_boxes(table(tmp_path / "b.csv", [box(x1=10, x2=200), box(x1=4, x2=70)]), CLASSES)


def test_swapped_columns_are_refused(tmp_path):
    header = HEADER.replace("XMin,XMax,YMin,YMax", "XMax,XMin,YMax,YMin")
    with pytest.raises(ValueError, match="have no area"):
        read_boxes(table(tmp_path / "b.csv", [box(), box(B)], header), CLASSES)


def test_duplicates_are_found_among_many_boxes_and_in_any_order(tmp_path):
    rng = random.Random(1)
    values = [0.1, 0.2, 0.3, 0.4]
    pairs = list(itertools.combinations(values, 2))
    rows = [
        box(rng.choice([A, B, C]), rng.choice(["/m/a", "/m/b"]), *rng.choice(pairs), *rng.choice(pairs))
        for _ in range(600)
    ]
    boxes, counts = read_boxes(table(tmp_path / "a.csv", rows), CLASSES)
    assert counts["kept"] == len(set(rows)) == len(set(as_tuples(boxes))) == len(boxes)
    assert counts["duplicate"] == 600 - len(set(rows)) > 100
    again, _ = read_boxes(table(tmp_path / "b.csv", rng.sample(rows, 600)), CLASSES)
    assert as_tuples(again) == as_tuples(boxes)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3000])
def test_boxes_are_in_the_order_of_all_they_are(count, shuffled):
    rng = np.random.default_rng(count)
    boxes = np.zeros(count, BOX)
    images = rng.integers(0, 2**64, 200, dtype=np.uint64)
    boxes["image"] = rng.choice(images, count)
    boxes["category"] = rng.integers(0, 3, count)
    boxes["corners"] = rng.choice(np.float32([0.0, -0.0, 1e-40, 0.1, 0.25, 1.0]), (count, 4))
    if not shuffled:
        boxes = boxes[np.argsort(boxes["image"])]
    x1, y1, x2, y2 = boxes["corners"].T
    expected = boxes[np.lexsort((y2, x2, y1, x1, boxes["category"], boxes["image"]))]
    assert (boxes[_order(boxes)] == expected).all()


def test_a_table_is_read_in_blocks(tmp_path, monkeypatch):
    rows = [box(f"{k:016x}", x2=0.2 + (k % 70) / 100) for k in range(5000)]
    whole, _ = read_boxes(table(tmp_path / "b.csv", rows), CLASSES)
    monkeypatch.setattr("dataset_scripts.sources.openimage_mini.tables.BLOCK_BYTES", 4096)
    pieces, counts = read_boxes(tmp_path / "b.csv", CLASSES)
    assert counts["rows"] == 5000
    assert as_tuples(pieces) == as_tuples(whole)


def test_class_names_with_and_without_header(tmp_path):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text('/m/a,Apple\n/m/b,"Box, wooden"\n')
    new.write_text('DisplayName,LabelName\n"Box, wooden",/m/b\nApple,/m/a\n')
    assert read_classes(old) == read_classes(new) == {"/m/a": "Apple", "/m/b": "Box, wooden"}
    old.write_text("/m/a,Bat\n/m/b,Bat\n/m/a,Bat\n")
    assert read_classes(old) == {"/m/a": "Bat (/m/a)", "/m/b": "Bat (/m/b)"}
    old.write_text("/m/a,Bat\n/m/a,Ball\n")
    with pytest.raises(ValueError, match="is 'Bat' and 'Ball'"):
        read_classes(old)
    old.write_text("name,id\nBat,/m/a\n")
    with pytest.raises(ValueError, match="found the row 'name,id'"):
        read_classes(old)


def test_leaves_are_classes_without_subcategories(tmp_path):
    path = tmp_path / "h.json"
    path.write_text(
        '{"LabelName": "/m/top", "Subcategory": ['
        '{"LabelName": "/m/fruit", "Subcategory": [{"LabelName": "/m/apple"}]},'
        '{"LabelName": "/m/car", "Part": [{"LabelName": "/m/wheel", "Subcategory": [{"LabelName": "/m/spare"}]}]}]}'
    )
    assert read_parents(path) == {"/m/top", "/m/fruit", "/m/wheel"}
    path.write_text("[1]")
    with pytest.raises(ValueError, match="no LabelName at the top"):
        read_parents(path)
    path.write_text("/m/a\n/m/b\n")
    assert read_labels(path) == {"/m/a", "/m/b"}
    with pytest.raises(ValueError, match="is not JSON"):
        read_parents(path)


LIST_HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation"
)


def test_attribution_comes_in_the_order_of_the_ids(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(
        f"{LIST_HEADER}\n"
        f'{B},train,u-b,l-b,by,p,"Bo, B.","a title\nof two lines",10,aGk=,t,270.0\n'
        f"{C},train,u-c,l-c,by,p,Cy,t,11,aGk=,t,nan\n"
        f"{B},train,u-a,l-a,by,p,Bo,t,10,aGk=,t,0.0\n"
    )
    rows, counts = read_image_list(path, [C, A, B])
    assert counts == {"listed": 2, "not listed": 1, "listed twice": 1}
    assert rows.to_pylist()[0] == {
        "license": "by", "author": "Cy", "original_url": "u-c", "landing_url": "l-c", "rotation": None,
        "original_size": 11, "original_md5": "aGk=",
    }  # fmt: skip
    assert set(rows.to_pylist()[1].values()) == {None}
    # Listed twice: the first in alphabetical order of licence, author, …, in any order of rows.
    assert rows.to_pylist()[2]["author"] == "Bo"
    assert rows.to_pylist()[2]["rotation"] == 0


def test_masks_come_largest_first_and_bad_names_are_refused(tmp_path):
    header = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
    path = tmp_path / "m.csv"
    names = [f"{A}_ma_0{k}.png" for k in range(3)]
    path.write_text(
        f"{header}\n{names[0]},{A},/m/a,00,0.1,0.2,0.1,0.2,0.9,\n{names[1]},{A},/m/b,01,0,1,0,1,0.9,\n"
        f"{names[2]},{A},/m/zz,02,0,1,0,1,0.9,\n{names[0]},{A},/m/a,00,0.1,0.2,0.1,0.2,0.9,\n"
    )
    assert read_masks(path, [B, A], CLASSES) == ([[], [(names[1], 1), (names[0], 0)]], 1)
    for name in (f"../{names[0]}", f"{B}_ma_00.png", f"{A}_ma/../../x_00.png", "/etc/passwd"):
        path.write_text(f"{header}\n{name},{A},/m/a,00,0.1,0.2,0.1,0.2,0.9,\n")
        with pytest.raises(ValueError, match="Nothing was opened"):
            read_masks(path, [B, A], CLASSES)
