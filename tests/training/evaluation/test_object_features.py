import numpy as np
import pytest
import torch

from tests.training.evaluation.conftest import SIDE, FakeModel, inside, write_squares
from training.evaluation.annotated_images import AnnotatedImages
from training.evaluation.object_features import (
    embed_objects,
    embed_shown,
    roll_elsewhere,
    show_as_they_are,
    show_recontextualised,
    show_repositioned,
)


def test_rolling_moves_the_object_uncut_and_changes_no_pixel_of_the_image():
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, 32, 32), dtype=np.uint8))
    for _ in range(200):
        x, y, w, h = rng.integers(0, 20), rng.integers(0, 20), rng.integers(3, 13), rng.integers(3, 13)
        box = np.array([x, y, x + w, y + h], dtype=np.float32) / 32
        rolled, moved = roll_elsewhere(pixels, box, rng)
        x1, y1, x2, y2 = (moved * 32).round().astype(int).tolist()
        assert (x2 - x1, y2 - y1) == (w, h)
        assert (x1, y1) != (x, y)
        assert 0 <= x1 < x2 <= 32
        assert 0 <= y1 < y2 <= 32
        assert torch.equal(rolled[:, y1:y2, x1:x2], pixels[:, y : y + h, x : x + w])
        assert torch.equal(rolled.flatten(1).sort(1).values, pixels.flatten(1).sort(1).values)


def test_a_box_without_room_stays():
    pixels = torch.zeros((3, 16, 16), dtype=torch.uint8)
    rolled, moved = roll_elsewhere(pixels, np.array([0, 0, 1, 1], dtype=np.float32), np.random.default_rng(0))
    assert torch.equal(rolled, pixels)
    assert moved.tolist() == [0, 0, 1, 1]


def test_places_are_drawn_from_all_that_there_are():
    pixels, box = torch.zeros((3, 16, 16), dtype=torch.uint8), np.array([0, 0.25, 0.5, 1], dtype=np.float32)
    rng = np.random.default_rng(0)
    places = {tuple((roll_elsewhere(pixels, box, rng)[1] * 16).astype(int)[:2].tolist()) for _ in range(600)}
    assert places == {(x, y) for x in range(9) for y in range(5)} - {(0, 4)}


def test_recontextualised_objects_keep_their_pixels_and_nothing_else(squares):
    images = AnnotatedImages(str(squares), "validation")
    picture = images.picture(3, SIDE)
    shown = show_recontextualised(images, 0)(picture)
    assert len(shown.pixels) == len(shown.boxes) == 2
    for pixels, box in zip(shown.pixels, shown.boxes, strict=True):
        x1, y1, x2, y2 = (box * SIDE).round().int().tolist()
        assert torch.equal(pixels[:, y1:y2, x1:x2], picture.pixels[:, y1:y2, x1:x2])
        outside = torch.ones((SIDE, SIDE), dtype=torch.bool)
        outside[y1:y2, x1:x2] = False
        assert (pixels != picture.pixels)[:, outside].float().mean() > 0.9
        others = [images.picture(place, SIDE).pixels for place in range(len(images)) if place != 3]
        assert any(torch.equal(other[:, outside], pixels[:, outside]) for other in others)


def test_what_is_drawn_depends_on_seed_and_id_only(squares, tmp_path):
    backwards = write_squares(tmp_path / "backwards", lambda rows: rows[::-1])
    sides = [AnnotatedImages(str(path), "validation") for path in (squares, backwards)]
    assert sides[0].ids == sides[1].ids
    for show in (show_recontextualised, lambda images, seed: show_repositioned(seed)):
        one, two, other = (
            show(images, seed)(images.picture(5, SIDE)).pixels
            for images, seed in ((sides[0], 0), (sides[1], 0), (sides[0], 1))
        )
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


def test_small_and_crowd_objects_do_not_count(tmp_path, evaluation):
    def change(rows):
        rows[0]["objects"]["bbox"][0] = [3.0, 3.0, 4.0, 30.0]
        rows[1]["objects"]["iscrowd"][1] = True
        rows[2]["objects"] = {"bbox": [], "category": [], "area": [], "iscrowd": []}
        return rows

    data = write_squares(tmp_path / "changed", change)
    found = evaluation(FakeModel(inside), data)
    objects = embed_objects(found, found.images("validation"), "objects")
    assert len(objects) == 2 * 12 - 4
    assert objects.owners.tolist()[:3] == [0, 1, 3]
    assert len(show_as_they_are(found.images("validation").picture(0, SIDE)).boxes) == 1


def test_an_image_that_cannot_be_read_is_named_and_left_out(tmp_path, evaluation):
    def change(rows):
        rows[1]["image"] = {"bytes": b"no picture", "path": None}
        return rows

    found = evaluation(FakeModel(inside), write_squares(tmp_path / "broken", change))
    images = found.images("validation")
    objects = embed_objects(found, images, "objects")
    assert len(objects) == 22
    assert 1 not in objects.owners
    assert "1 images of" in found.notes[0] and "validation-001" in found.notes[0]
    again, moved = embed_shown(found, images, "both", [show_as_they_are, show_recontextualised(images, 0)])
    assert torch.equal(again.features, objects.features)
    assert torch.equal(moved.numbers, objects.numbers)


def test_ragged_annotations_are_refused_by_name(tmp_path):
    def change(rows):
        rows[4]["objects"]["category"] = [1]
        return rows

    folder = str(write_squares(tmp_path / "ragged", change))
    with pytest.raises(ValueError, match="validation-004: the lists of objects differ in length: {'bbox': 2, 'ca"):
        AnnotatedImages(folder, "validation")


def test_a_limit_takes_the_same_images_whatever_their_order(squares, tmp_path):
    backwards = write_squares(tmp_path / "backwards", lambda rows: rows[::-1])
    few = [AnnotatedImages(str(path), "train", limit=7).ids for path in (squares, backwards)]
    assert few[0] == few[1] == sorted(few[0])
    assert len(few[0]) == 7
    assert few[0] != AnnotatedImages(str(squares), "train").ids[:7]
