"""The folder that keeps proposals."""

import multiprocessing

import numpy as np
import pytest

from dataset_scripts.build.parquet import recipe_sha256
from dataset_scripts.proposals import Proposals, add_regions, cache, recipe_of
from dataset_scripts.proposals.cache import cached
from tests.dataset_scripts.proposals.pictures_of_regions import encode, noise, row

BOXES = np.array([[1, 2, 3.1415927, 4]], np.float32)
SIZE = (5, 4)


def never():
    raise AssertionError("computed again")


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("scores", [None, np.array([0.3], np.float32)])
def test_what_is_known_is_not_computed_again(tmp_path, scores):
    first = cached(tmp_path, {"a": 1}, b"image", SIZE, lambda: (BOXES, scores))
    boxes, again = cached(tmp_path, {"a": 1}, b"image", SIZE, never)
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes, first[0])
    assert (again is None) == (scores is None)
    if scores is not None:
        np.testing.assert_array_equal(again, scores)
    known = {"a": 1}
    for recipe, image, size in (({"a": 2}, b"image", SIZE), (known, b"other", SIZE), (known, b"image", (4, 5))):
        with pytest.raises(AssertionError, match="computed again"):
            cached(tmp_path, recipe, image, size, never)


def test_no_region_is_known_too(tmp_path):
    cached(tmp_path, "a", b"image", SIZE, lambda: (np.zeros((0, 4), np.float32), None))
    assert cached(tmp_path, "a", b"image", SIZE, never)[0].shape == (0, 4)


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-3], lambda data: data[:50] + b"?" + data[51:]]
)
def test_a_damaged_entry_is_replaced(tmp_path, damage):
    cached(tmp_path, "a", b"image", SIZE, lambda: (BOXES, None))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    boxes, _ = cached(tmp_path, "a", b"image", SIZE, lambda: (BOXES, None))
    np.testing.assert_array_equal(boxes, BOXES)
    assert path.read_bytes() == whole


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        cached(tmp_path, "a", b"image", SIZE, lambda: (BOXES, None))
    assert files(tmp_path) == []


def write_many(folder):
    for number in range(200):
        wanted = BOXES * (number % 20 + 1)
        boxes, _ = cached(folder, "a", str(number % 20).encode(), SIZE, lambda wanted=wanted: (wanted, None))
        np.testing.assert_array_equal(boxes, wanted)


def test_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    others = [context.Process(target=write_many, args=(tmp_path,)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0, 0]
    assert len(files(tmp_path)) == 20


def test_rows_are_the_same_with_a_cache(tmp_path, monkeypatch):
    entry = row(encode(noise()), 200, 150)
    chosen = Proposals("selective", cache=str(tmp_path))
    plain = add_regions(entry, "selective")
    assert add_regions(entry, chosen) == plain
    monkeypatch.setattr("dataset_scripts.proposals.selective.segment_image", lambda *_: never())
    assert add_regions({**entry, "image_id": "another"}, chosen)["regions"] == plain["regions"]
    with pytest.raises(AssertionError, match="computed again"):
        add_regions(entry, "selective")
    assert [path.name for path in tmp_path.iterdir()] == [recipe_sha256(recipe_of("selective"))[:16]]
    assert add_regions(entry, Proposals("grid", cache=str(tmp_path)))["regions"]["bbox"]
    assert len(files(tmp_path)) == 1
