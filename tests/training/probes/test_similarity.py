"""Where a region is found again: the right picture is searched, for the right region, and drawn with its answer."""

import numpy as np
import pytest
import torch

from modeling_decodepos.diagnosis.data.probe import Swaps
from modeling_decodepos.drawing.sheet import BOX, SCALE
from tests.training.probes.test_during import Oracle
from training.probes.during import MeasuredImages, OnlineMeasures
from training.probes.search import ANSWER, overlaps
from training.probes.similarity import cover_like, draw_similarity, find_moved, shown_exchanges

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def planted(labels: torch.Tensor | None = None) -> OnlineMeasures:
    """Four grey pictures with a square of their own colour, which elsewhere lies before grey again."""
    boxes = torch.tensor([[0.125, 0.125, 0.5, 0.5]]).repeat(4, 1)
    moved = torch.tensor([[0.625, 0.5, 0.875, 0.75]]).repeat(4, 1) - torch.arange(4)[:, None] / 16
    here, there = (torch.full((4, 3, 64, 64), 90, dtype=torch.uint8) for _ in range(2))
    for number, color in enumerate(COLORS):
        for pixels, box in ((here, boxes), (there, moved)):
            x1, y1, x2, y2 = (box[number] * 64).long().tolist()
            pixels[number, :, y1:y2, x1:x2] = torch.tensor(color, dtype=torch.uint8)[:, None, None]
    numbers = torch.arange(4)
    gallery, queries = (
        MeasuredImages(pixels, list(rows[:, None]), labels, "planted", None, numbers.tolist())
        for pixels, rows in ((there, moved), (here, boxes))
    )
    return OnlineMeasures(gallery, queries, Swaps(numbers, numbers, boxes, here, here, there, moved), None)


def mean_colour(picture, box):
    x1, y1, x2, y2 = box
    return picture[:, y1:y2, x1:x2].mean((1, 2))


def test_a_network_that_sees_the_object_alone_finds_each_where_it_is():
    online = planted()
    answers = find_moved(online, Oracle(mean_colour), [0, 1, 2, 3])
    for number, (similarity, itself) in enumerate(answers):
        target = online.exchanges.moved_boxes[number]
        assert itself == pytest.approx(1.0, abs=1e-4)
        assert overlaps(cover_like(target), target)[similarity.argmax()] > 0.8


def test_a_network_that_sees_the_place_alone_finds_it_where_it_was():
    online = planted()
    for number, (similarity, itself) in enumerate(
        find_moved(online, Oracle(lambda picture, box: torch.tensor(box).float() / 64), [0, 1, 2, 3])
    ):
        assert itself < similarity.max() - 1e-3, number


def test_the_same_rule_chooses_as_for_neighbours():
    assert shown_exchanges(planted()) == [0, 1, 2, 3]
    assert shown_exchanges(planted(torch.tensor([5, 5, 6, 5]))) == [0, 2]


def test_the_picture_has_a_row_for_each_and_both_boxes_where_they_are():
    online = planted()
    drawn = draw_similarity(online, Oracle(lambda picture, box: torch.tensor(box).float() / 64), Oracle(mean_colour))
    pixels = np.asarray(drawn)
    colours = {tuple(int(code[k : k + 2], 16) for k in (1, 3, 5)): code for code in (BOX, ANSWER)}
    columns = np.array_split(np.arange(pixels.shape[1]), 4)
    seen = [{code for rgb, code in colours.items() if (pixels[:, part] == rgb).all(2).any()} for part in columns]
    assert seen == [{BOX}, set(), {BOX, ANSWER}, {BOX, ANSWER}]
    assert drawn.height == SCALE * (30 + 4 * (190 + 26))
    assert draw_similarity(OnlineMeasures(online.gallery, online.queries, None, None), None, None) is None
