import io

import numpy as np
import pytest
from PIL import Image

from dataset_scripts.pictures.encoded import encode_png
from dataset_scripts.prepare import main as prepare
from dataset_scripts.preview import TILE_PX, choose_rows, class_colour, describe_row, draw_row, main
from tests.dataset_scripts.small_sources import annotation_entry, coco, image_entry, picture, put

NAMES = ["cat", "dog"]


def row(width=TILE_PX, height=144, boxes=(), crowds=None, regions=(), labels=None, orientation=1):
    """A white picture with these annotations; as long as a tile, so that pixels are pixels."""
    stored = (height, width) if orientation >= 5 else (width, height)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", stored, "white").save(buffer, "PNG", exif=exif)
    return {
        "image": {"bytes": buffer.getvalue(), "path": "x.png"},
        "image_id": "x",
        "width": width,
        "height": height,
        "objects": {
            "bbox": list(boxes),
            "category": [k % 2 for k in range(len(boxes))],
            "area": [1.0] * len(boxes),
            "iscrowd": crowds or [False] * len(boxes),
        },
        "regions": {"bbox": list(regions), "score": None, "source": ["grid"] * len(regions)},
        "segmentation": None if labels is None else {"bytes": encode_png(labels), "path": "y.png"},
    }


def is_coloured(tile, colour):
    return (np.asarray(tile) == colour).all(axis=2)


def frame(x, y, w, h):
    """Pixels of the rectangle, two wide, inside the box."""
    mask = np.zeros((144, TILE_PX), bool)
    mask[y : y + h, x : x + w] = True
    mask[y + 2 : y + h - 2, x + 2 : x + w - 2] = False
    return mask


def test_regions_are_drawn_where_they_are():
    _, _, regions = draw_row(row(regions=[[10, 20, 60, 50], [100, 30, 40, 30]]), NAMES)
    np.testing.assert_array_equal(is_coloured(regions, class_colour(0)), frame(10, 20, 60, 50))
    np.testing.assert_array_equal(is_coloured(regions, class_colour(1)), frame(100, 30, 40, 30))


def test_objects_have_the_colours_of_their_classes_and_crowds_none():
    boxes = [[10, 40, 60, 50], [100, 40, 40, 30], [200, 40, 40, 30]]
    objects, _, _ = draw_row(row(boxes=boxes, crowds=[False, False, True]), NAMES)
    for box, colour in ((boxes[0], class_colour(0)), (boxes[1], class_colour(1))):
        assert is_coloured(objects, colour)[frame(*box)].all()
    left_edge = np.asarray(objects)[40:70, 200]
    assert (np.ptp(left_edge.astype(int), axis=1) == 0).all()


def test_boxes_beyond_the_image_are_cut_at_its_border():
    boxes = [[-500, -500, 2000, 2000], [280, 140, 0.1, 0.1], [-5, 130, 9, 90]]
    objects, _, regions = draw_row(row(boxes=boxes, regions=boxes), NAMES)
    assert is_coloured(regions, class_colour(0))[0].all()
    assert objects.size == regions.size == (TILE_PX, 144)


def test_the_map_lies_over_the_picture():
    labels = np.zeros((144, TILE_PX), np.uint8)
    labels[10:50, 20:70], labels[60:100, 100:200] = 2, 255
    shown = np.asarray(draw_row(row(labels=labels), NAMES)[1]).astype(int)
    assert (shown[labels == 0] == 255).all()
    expected = np.rint(0.4 * 255 + 0.6 * np.array(class_colour(1)))
    assert (shown[labels == 2] == expected).all()
    assert set(np.unique(shown[labels == 255])) == {102, 255}


def test_a_large_picture_that_is_turned_keeps_its_shape():
    tiles = draw_row(row(600, 1000, boxes=[[0, 500, 600, 500]], orientation=6), NAMES)
    assert {tile.size for tile in tiles} == {(round(TILE_PX * 0.6), TILE_PX)}
    edge = is_coloured(tiles[0], class_colour(0))[:, 0]
    assert edge[TILE_PX // 2 :].all()
    assert not edge[: TILE_PX // 2 - 20].any()


def test_classes_next_to_each_other_do_not_look_alike():
    colours = np.array([class_colour(k) for k in range(254)], int)
    assert len({tuple(colour) for colour in colours}) == 254
    assert (np.abs(np.diff(colours, axis=0)).sum(axis=1) > 100).all()


def test_descriptions_count_what_is_there():
    boxes = [[0, 0, 5, 5]] * 3
    assert describe_row(row(boxes=boxes, crowds=[False, False, True])) == (
        "288 x 144 px · 2 objects and 1 crowd · no map · 0 regions · x"
    )
    assert "60 regions (40 shown) from grid" in describe_row(row(regions=[[0, 0, 5, 5]] * 60))


@pytest.fixture
def built(tmp_path):
    images = [image_entry(k) for k in range(1, 26)]
    annotations = [annotation_entry(k, k, [2, 2, 20, 10], (3, 7, 90)[k % 3]) for k in range(1, 26)]
    source = coco(tmp_path / "source", images, annotations)
    command = ["coco", "--source", str(source), "--output", str(tmp_path / "built"), "--workers", "1"]
    assert prepare(command) == 0
    return tmp_path / "built"


def test_images_are_taken_from_all_over_the_data(built):
    rows, class_names = choose_rows(built, 10)
    assert [int(row["image_id"]) for row in rows] == [1, 3, 6, 8, 11, 13, 16, 18, 21, 23]
    assert class_names == ["cat", "dog", "bird"]
    assert len(choose_rows(built, 100)[0]) == 25


def test_a_picture_and_a_page_are_written(built, tmp_path):
    for name in ("one.png", "two.png", "deep/er/page.html"):
        assert main([str(built), "--output", str(tmp_path / name), "--count", "3"]) == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.width > 6 * TILE_PX  # two images side by side, thrice each
        assert image.height > 2 * TILE_PX * 3 / 4
    assert "data:image/png;base64," in (tmp_path / "deep" / "er" / "page.html").read_text()


def test_what_cannot_be_drawn_is_explained(tmp_path, capsys):
    put(tmp_path, "photos/a.jpg", picture(8, 8))
    assert main([str(tmp_path / "photos"), "--output", str(tmp_path / "x.png")]) == 2
    assert "python -m dataset_scripts.prepare --help" in capsys.readouterr().err
    (tmp_path / "photos" / "data").mkdir()
    put(tmp_path, "photos/data/train.parquet", b"PAR1")
    assert main([str(tmp_path / "photos"), "--output", str(tmp_path / "x.png")]) == 2


def test_an_output_of_no_known_kind_is_explained(built, tmp_path, capsys):
    assert main([str(built), "--output", str(tmp_path / "x.picture")]) == 2
    assert "unknown file extension" in capsys.readouterr().err
