import numpy as np
import pytest
import torch

from modeling_decodepos.diagnosis.data.exchange import (
    draw_changes,
    exchange_content,
    exchange_surroundings,
    move_elsewhere,
    show_alone,
)
from modeling_decodepos.diagnosis.data.probe import RegionImages
from modeling_decodepos.regions import boxes_to_pixels, rasterise

SIZE = 32
BOX, OTHER_BOX = np.array([0.25, 0.5, 0.75, 1.0]), np.array([0.0, 0.0, 0.5, 0.25])


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def inside(box):
    return torch.from_numpy(rasterise(boxes_to_pixels(box[None], (SIZE, SIZE)), (SIZE, SIZE)))


def test_other_surroundings_keep_the_region_and_nothing_else(pictures):
    pixels, other = pictures
    exchanged = exchange_surroundings(pixels, BOX, other)
    assert torch.equal(exchanged[:, 16:32, 8:24], pixels[:, 16:32, 8:24])
    assert torch.equal(exchanged[:, ~inside(BOX)], other[:, ~inside(BOX)])


def test_a_region_alone_holds_nothing_but_itself(pictures):
    pixels, other = pictures
    assert torch.equal(show_alone(pixels, BOX, 16), pixels[:, 16:32, 8:24])
    around = pixels.clone()
    around[:, ~inside(BOX)] = other[:, ~inside(BOX)]
    assert torch.equal(show_alone(around, BOX, 40), show_alone(pixels, BOX, 40))
    assert show_alone(pixels, BOX, 40).shape == (3, 40, 40)


def test_other_content_fills_the_box_and_nothing_else(pictures):
    pixels, other = pictures
    before = pixels.clone()
    other[:, 0:8, 0:16] = torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None]
    exchanged = exchange_content(pixels, BOX, other, OTHER_BOX)
    assert (exchanged[:, 16:32, 8:24] == torch.tensor([10, 200, 30])[:, None, None]).all()
    assert torch.equal(exchanged[:, ~inside(BOX)], before[:, ~inside(BOX)])
    assert torch.equal(pixels, before)


def test_other_content_of_the_same_size_is_copied_exactly(pictures):
    pixels, other = pictures
    exchanged = exchange_content(pixels, BOX, other, BOX - [0.25, 0.5, 0.25, 0.5])
    assert torch.equal(exchanged[:, 16:32, 8:24], other[:, 0:16, 0:16])


@pytest.mark.parametrize("seed", range(5))
def test_a_moved_region_is_alone_and_where_its_box_says(pictures, seed):
    pixels, other = pictures
    pixels[:] = 7
    other[:] = 200
    pixels[:, 16:32, 8:24] = 90
    moved, box = move_elsewhere(pixels, BOX, other, np.random.default_rng(seed))
    assert box.min() >= 0 and box.max() <= 1
    assert torch.equal(moved[0] != 200, inside(box))
    # Half a pixel of what lies around the region may be seen at its rim, where it was made smaller.
    assert (moved[0][inside(box)] == 90).float().mean() > 0.5
    assert (box[2:] - box[:2] < [0.46, 0.46]).all()
    again, same_box = move_elsewhere(pixels, BOX, other, np.random.default_rng(seed))
    assert torch.equal(again, moved)
    assert (same_box == box).all()


@pytest.mark.parametrize("count", [2, 5])
def test_an_object_is_changed_twice_around_and_once_in_place(count):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    boxes = [torch.from_numpy(BOX[None]).float()] * count
    images = RegionImages(pixels, boxes, None)
    changed, places = draw_changes(images, list(range(count)), np.random.default_rng(0))
    assert changed.shape == (count, 3, 3, SIZE, SIZE) and places.shape == (count, 3, 4)
    for number in range(count):
        for view in (0, 1):
            lender = (number + 1 + view % (count - 1)) % count
            assert torch.equal(changed[number, view], exchange_surroundings(pixels[number], BOX, pixels[lender]))
            assert places[number, view].tolist() == BOX.tolist()
        assert places[number, 2].tolist() != BOX.tolist()
        assert places[number, 2].min() >= 0 and places[number, 2].max() <= 1
