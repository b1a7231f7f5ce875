import importlib.util
import random

import pytest

from training.evaluation.coco_ap import ImageDetections, ImageTruth, average_precision, check_tools

needs_tools = pytest.mark.skipif(not importlib.util.find_spec("pycocotools"), reason="needs pycocotools")


def overlap(one, other, crowd=False):
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / (one[2] * one[3] if crowd else one[2] * one[3] + other[2] * other[3] - both)


def slow_ap(truth, detections, threshold):
    """Average precision at 101 recalls, mean over classes that occur; greedy matches, best score first."""
    values = []
    for label in sorted(
        {c for image in truth for c, crowd in zip(image.classes, image.crowd, strict=True) if not crowd}
    ):
        rows, known = [], 0
        for image, found in zip(truth, detections, strict=True):
            boxes = [
                (box, crowd)
                for box, c, crowd in zip(image.boxes, image.classes, image.crowd, strict=True)
                if c == label
            ]
            known += sum(not crowd for _, crowd in boxes)
            taken = set()
            ranked = sorted(zip(found.scores, found.boxes, found.classes, strict=True), reverse=True)
            for score, box, c in ranked:
                if c != label:
                    continue
                free = [(overlap(box, b), n) for n, (b, crowd) in enumerate(boxes) if not crowd and n not in taken]
                best = max(free, default=(0.0, -1))
                if best[0] >= threshold:
                    taken.add(best[1])
                    rows.append((score, True))
                elif not any(crowd and overlap(box, b, True) >= threshold for b, crowd in boxes):
                    rows.append((score, False))
        rows.sort(key=lambda row: -row[0])
        right, points = 0, []
        for number, (_, good) in enumerate(rows):
            right += good
            points.append((right / known, right / (number + 1)))
        recalls = [n / 100 for n in range(101)]
        values.append(sum(max((p for r, p in points if r >= at - 1e-9), default=0.0) for at in recalls) / 101)
    return sum(values) / len(values)


def random_case(seed):
    draw = random.Random(seed)
    truth, detections = [], []
    for _ in range(12):
        boxes = [
            [draw.uniform(0, 60), draw.uniform(0, 60), draw.uniform(8, 40), draw.uniform(8, 40)] for _ in range(4)
        ]
        classes = [draw.randrange(3) for _ in boxes]
        truth.append(ImageTruth(100, 100, boxes, classes, [draw.random() < 0.15 for _ in boxes]))
        found = [
            [v + draw.gauss(0, 3) for v in box[:2]] + [v * draw.uniform(0.8, 1.2) for v in box[2:]] for box in boxes
        ]
        found += [[draw.uniform(0, 60), draw.uniform(0, 60), 20, 20] for _ in range(3)]
        labels = [c if draw.random() < 0.8 else draw.randrange(3) for c in [*classes, 0, 1, 2]]
        detections.append(ImageDetections(found, labels, [draw.random() for _ in found]))
    return truth, detections


@needs_tools
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_reference(seed):
    truth, detections = random_case(seed)
    found = average_precision(truth, detections, 3)
    assert found["ap50"] == pytest.approx(slow_ap(truth, detections, 0.5), abs=1e-6)
    assert found["ap75"] == pytest.approx(slow_ap(truth, detections, 0.75), abs=1e-6)
    every = [slow_ap(truth, detections, 0.5 + 0.05 * n) for n in range(10)]
    assert found["ap"] == pytest.approx(sum(every) / 10, abs=1e-6)
    assert 0.1 < found["ap50"] < 0.95


@needs_tools
def test_the_order_of_images_changes_nothing_and_perfection_is_one():
    truth, detections = random_case(7)
    order = [5, 3, 11, 0, 7, 1, 2, 10, 4, 9, 8, 6]
    shuffled = average_precision([truth[n] for n in order], [detections[n] for n in order], 3)
    assert shuffled == pytest.approx(average_precision(truth, detections, 3))
    perfect = [ImageDetections(image.boxes, image.classes, [1.0] * 4) for image in truth]
    assert average_precision(truth, perfect, 3)["ap"] == pytest.approx(1.0)
    nothing = [ImageDetections([], [], []) for _ in truth]
    assert average_precision(truth, nothing, 3)["ap"] == 0


def test_what_cannot_be_measured_is_refused(monkeypatch):
    empty = [ImageTruth(9, 9, [], [], [])]
    with pytest.raises(ValueError, match="no image has an annotated box"):
        average_precision(empty, [ImageDetections([], [], [])], 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs pycocotools, not installed here: pip install"):
        check_tools()
