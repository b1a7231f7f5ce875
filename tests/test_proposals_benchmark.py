"""The benchmark of region proposals: its measures against plain ones, and that it runs."""

import json

import numpy as np
import pytest
import torch

import benchmarks.proposals
from benchmarks.proposals import Photo, difference, measure, overlaps
from tests.dataset_scripts.proposals.pictures_of_regions import clutter, encode


def slow_overlap(one, other):
    def cells(box):
        x, y, w, h = map(int, box)
        return {(a, b) for a in range(x, x + w) for b in range(y, y + h)}

    return len(cells(one) & cells(other)) / len(cells(one) | cells(other))


def test_overlaps_are_those_of_counted_pixels():
    rng = np.random.default_rng(0)
    boxes, objects = (rng.integers(1, 12, (count, 4)).astype(float) for count in (7, 5))
    wanted = [[slow_overlap(box, one) for one in objects] for box in boxes]
    np.testing.assert_allclose(overlaps(boxes, objects), wanted)


def test_recall_counts_large_objects_and_the_share_counts_boxes():
    objects = np.array([[0, 0, 50, 50], [60, 60, 40, 40], [0, 90, 5, 5]], float)
    photo = Photo("a", b"", 100, 100, objects)
    boxes = np.array([[0, 0, 50, 45], [0, 0, 50, 45], [0, 90, 5, 5], [50, 0, 40, 40]], float)
    found = measure([photo], lambda _: boxes)
    assert found.recall == 0.5  # the third object is too small to count
    assert found.share == 0.75
    assert found.unique == [3]
    np.testing.assert_allclose(found.best[0], [0.9, 0])


def test_the_interval_of_a_difference_is_over_photos():
    rng = np.random.default_rng(0)
    theirs = [rng.random(4) < 0.5 for _ in range(200)]
    same = difference(theirs, theirs)
    assert (same.median, same.low, same.high) == (0, 0, 0)
    ours = [one | (rng.random(4) < 0.2) for one in theirs]
    found = difference(ours, theirs)
    assert found.median == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert 0 < found.low < found.median < found.high < 0.2


def test_it_runs_on_coco_and_ends_with_its_result(tmp_path, monkeypatch, capsys):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "photos").mkdir()
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 200, "height": 150} for number in (1, 2)]
    for image in images:
        (tmp_path / "photos" / image["file_name"]).write_bytes(encode(clutter(seed=image["id"]), "JPEG"))
    annotations = [{"image_id": number, "bbox": [10, 10, 90, 80], "iscrowd": 0} for number in (1, 2)]
    content = {"images": images, "annotations": annotations}
    (tmp_path / "annotations" / "instances_photos.json").write_text(json.dumps(content))
    monkeypatch.setattr(
        benchmarks.proposals, "package_boxes", lambda photo: photo.objects
    )  # the peer is not installed
    options = ["--data", str(tmp_path), "--timed", "1", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["benchmark", *options])
    threads = torch.get_num_threads()
    try:
        benchmarks.proposals.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    numbers = result["methods"][tmp_path.name]
    assert numbers["selectivesearch 0.4"]["recall"] == 1
    assert numbers["selective"]["kept"] >= 1
    assert "masks" not in numbers  # COCO's boxes come without maps
    assert result["ratio"] == numbers["selective_320"]["ratio"]
