import json
from pathlib import Path

import pytest

from training.data.broken_images import BrokenImages
from training.errors import RunStopped


def lines(path: Path) -> list[tuple[str, str]]:
    return [tuple(json.loads(line).values()) for line in path.read_text().splitlines()]


def test_every_image_is_listed_once(tmp_path: Path):
    path = tmp_path / "run/broken_images.jsonl"
    broken = BrokenImages(100, 0.5, path)
    assert broken.add([("a", "cut"), ("b", "gone"), ("a", "cut")]) == 2
    assert broken.add([("b", "another reason"), ("ü\nx", "odd")]) == 1
    assert broken.add([]) == 0
    assert lines(path) == [("a", "cut"), ("b", "gone"), ("ü\nx", "odd")]
    assert len(broken) == 3


def test_a_resumed_run_goes_on_with_its_list(tmp_path: Path):
    path = tmp_path / "broken_images.jsonl"
    BrokenImages(100, 0.5, path).add([("a", "cut"), ("b", "gone")])
    with path.open("a") as file:
        file.write('{"image_id": "c", "rea')  # killed while writing
    broken = BrokenImages(100, 0.5, path, resume=True)
    assert broken.add([("a", "cut"), ("c", "cut"), ("d", "cut")]) == 2
    assert lines(path) == [("a", "cut"), ("b", "gone"), ("c", "cut"), ("d", "cut")]
    assert len(BrokenImages(100, 0.5, path, resume=False)) == 0
    assert lines(path) == []


def test_more_than_the_share_stops_the_run_and_names_five(tmp_path: Path):
    path = tmp_path / "broken_images.jsonl"
    broken = BrokenImages(200, 0.03, path)
    broken.add((f"id-{n}", f"reason {n}") for n in range(6))  # exactly the share is allowed
    with pytest.raises(RunStopped, match=r"7 of 200 images .*max_broken_share 0.03") as error:
        broken.add([("id-6", "reason 6")])
    assert "id-0: reason 0" in str(error.value) and "id-4: reason 4" in str(error.value)
    assert "id-5" not in str(error.value) and str(path) in str(error.value)
    assert len(lines(path)) == 7
    with pytest.raises(RunStopped):  # a resumed run does not begin to count anew
        BrokenImages(200, 0.03, path, resume=True).add([])


def test_a_process_that_does_not_write_comes_to_the_same_verdict(tmp_path: Path):
    path = tmp_path / "broken_images.jsonl"
    BrokenImages(10, 0.2, path).add([("a", "cut"), ("b", "cut")])
    before = path.read_bytes()
    other = BrokenImages(10, 0.2, path, resume=True, writes=False)
    assert other.add([("b", "cut")]) == 0
    with pytest.raises(RunStopped, match="3 of 10"):
        other.add([("c", "cut")])
    assert path.read_bytes() == before
    assert len(BrokenImages(10, 0.2, path, writes=False)) == 0
