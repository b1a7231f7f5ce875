"""Boxes and masks: checks, padding, and the way to pixels."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_decodepos import View
from modeling_decodepos.regions import (
    boxes_in_window,
    boxes_to_pixels,
    check_regions,
    flip_boxes,
    masks_to_boxes,
    pad_regions,
    rasterise,
)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)


def test_flipping_twice_changes_nothing(rng: np.random.Generator) -> None:
    boxes = random_boxes(rng, 50)
    np.testing.assert_allclose(flip_boxes(flip_boxes(boxes)), boxes, atol=1e-12)


def test_flipped_boxes_hold_the_mirrored_pixels(rng: np.random.Generator) -> None:
    for _ in range(50):
        boxes = np.round(random_boxes(rng, 3) * 32) / 32
        mirrored = rasterise(boxes_to_pixels(boxes, (32, 32)), (32, 32))[:, ::-1]
        np.testing.assert_array_equal(rasterise(boxes_to_pixels(flip_boxes(boxes), (32, 32)), (32, 32)), mirrored)


def test_boxes_in_a_window_by_hand() -> None:
    window = np.array([0.25, 0.5, 0.75, 1.0])
    boxes = np.array([[0.25, 0.5, 0.75, 1.0], [0.5, 0.75, 0.625, 0.875], [0.0, 0.0, 0.5, 0.75], [0.8, 0.0, 0.9, 0.4]])
    expected = [[0, 0, 1, 1], [0.5, 0.5, 0.75, 0.75], [0, 0, 0.5, 0.5], [1, 0, 1, 0]]
    np.testing.assert_allclose(boxes_in_window(boxes, window), expected, atol=1e-12)


def test_clipping_to_a_window_never_grows_a_box(rng: np.random.Generator) -> None:
    for window in random_boxes(rng, 100):
        extent = np.tile(window[2:] - window[:2], 2)
        boxes = random_boxes(rng, 20)
        back = boxes_in_window(boxes, window) * extent + np.tile(window[:2], 2)  # in the image again
        visible = (back[:, 2:] > back[:, :2]).all(1)
        assert (back[visible, :2] >= boxes[visible, :2] - 1e-9).all()
        assert (back[visible, 2:] <= boxes[visible, 2:] + 1e-9).all()
        inside = (boxes[:, :2] >= window[:2]).all(1) & (boxes[:, 2:] <= window[2:]).all(1)
        np.testing.assert_allclose(back[inside], boxes[inside], atol=1e-9)


def test_pixel_boxes_round_to_the_nearest_edge_on_a_non_square_grid() -> None:
    boxes = [[0.1, 0.1, 0.52, 0.52], [0.0, 0.0, 1.0, 1.0]]
    np.testing.assert_array_equal(boxes_to_pixels(np.array(boxes), (10, 20)), [[2, 1, 10, 5], [0, 0, 20, 10]])


def test_touching_boxes_share_no_pixel_and_leave_no_gap(rng: np.random.Generator) -> None:
    for _ in range(200):
        edges = np.sort(rng.uniform(0.1, 0.9, 2))
        if edges[1] - edges[0] < 0.05:
            continue
        cuts = [0.0, *edges, 1.0]
        boxes = np.array([[a, 0.0, b, 1.0] for a, b in pairwise(cuts)])
        masks = [rasterise(boxes_to_pixels(box[None], (7, 40)), (7, 40)) for box in boxes]
        np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks), 1)


def test_a_thin_box_covers_one_cell_and_stays_on_the_grid() -> None:
    thin = np.array(
        [[0.51, 0.2, 0.515, 0.8], [0.999, 0.0, 1.0, 1.0], [0.0, 0.0, 0.001, 0.001], [0.0, 0.9999, 1.0, 1.0]]
    )
    pixels = boxes_to_pixels(thin, (14, 14))
    assert ((pixels[:, 2:] - pixels[:, :2]) >= 1).all()
    assert pixels.min() >= 0
    assert pixels.max() <= 14
    assert (pixels[0] == [7, 3, 8, 11]).all()


def test_boxes_without_area_or_outside_the_view_have_no_cells() -> None:
    boxes = np.array([[0.5, 0.1, 0.5, 0.9], [0.2, 0.2, 0.2, 0.2], [1.2, 0.1, 1.5, 0.4], [0.6, 0.1, 0.4, 0.9]])
    assert not rasterise(boxes_to_pixels(boxes, (20, 20)), (20, 20)).any()


def test_pixel_boxes_refuse_nan() -> None:
    with pytest.raises(ValueError, match="not finite"):
        boxes_to_pixels(np.array([[0.0, 0.0, np.nan, 1.0]]), (8, 8))


def test_what_sticks_out_of_the_grid_is_left_out() -> None:
    expected = np.zeros((4, 4), dtype=bool)
    expected[:2, 2:] = True
    np.testing.assert_array_equal(rasterise(np.array([[2, -3, 9, 2]]), (4, 4)), expected)
    assert not rasterise(np.array([[-3, -3, -1, -1]]), (4, 4)).any()


# --- checking


BOX = [0.1, 0.2, 0.5, 0.6]


def test_a_list_and_a_padded_tensor_mean_the_same() -> None:
    ragged = [torch.tensor([BOX, [0.0, 0.0, 1.0, 1.0]]), torch.zeros(0, 4), torch.tensor([BOX])]
    from_list = check_regions(ragged, 3)
    padded, valid = pad_regions(ragged)
    assert valid.tolist() == [[True, True], [False, False], [True, False]]
    from_tensor = check_regions(padded, 3, valid)
    assert torch.equal(from_list.boxes, from_tensor.boxes)
    assert torch.equal(from_list.valid, from_tensor.valid)
    for image, boxes in enumerate(ragged):
        assert torch.equal(from_list.boxes[image, from_list.valid[image]], boxes)


def test_what_hides_in_padding_rows_is_replaced() -> None:
    garbage = torch.full((1, 3, 4), float("nan"))
    garbage[0, 1] = torch.tensor([-50.0, float("inf"), -60.0, 0.0])
    garbage[0, 2] = torch.tensor(BOX)
    checked = check_regions(garbage, 1, torch.tensor([[False, False, True]]))
    assert checked.boxes.isfinite().all()
    assert checked.boxes.aminmax() == (0.0, 1.0)
    assert torch.equal(checked.boxes[0, 2], torch.tensor(BOX))


def test_rounding_noise_outside_the_image_is_clipped() -> None:
    checked = check_regions([torch.tensor([[-0.0005, 0.0, 1.0005, 1.0]])], 1)
    assert checked.boxes.tolist() == [[[0.0, 0.0, 1.0, 1.0]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_boxes_are_at_least_float32(dtype: torch.dtype) -> None:
    checked = check_regions([torch.tensor([[0, 0, 1, 1]], dtype=dtype)], 1)
    assert checked.boxes.dtype == torch.float32


NAN = float("nan")
BAD_BOXES = {
    "nan": ([[0.1, 0.1, NAN, 0.5]], "box 0 of image 1 .*not finite"),
    "infinite": ([[0.1, 0.1, float("inf"), 0.5]], "not finite"),
    "pixels": ([BOX, [10.0, 20.0, 50.0, 60.0]], "box 1 of image 1 .*divide pixel boxes"),
    "xywh pixels": ([[100.0, 50.0, 30.0, 20.0]], "divide pixel boxes by width and height"),
    "xywh units": ([[0.6, 0.6, 0.3, 0.3]], "no area.*width, height"),
    "reversed": ([[0.5, 0.1, 0.2, 0.6]], "no area"),
    "zero area": ([[0.5, 0.1, 0.5, 0.6]], "no area"),
    "sticks out": ([[0.5, 0.1, 1.2, 0.6]], "leaves the image"),
    "negative": ([[-0.2, 0.1, 0.5, 0.6]], "leaves the image"),
    "outside by a hair": ([[1.0002, 0.1, 1.0008, 0.6]], "no area"),
}


@pytest.mark.parametrize("name", BAD_BOXES)
def test_a_bad_box_is_named(name: str) -> None:
    boxes, message = BAD_BOXES[name]
    with pytest.raises(ValueError, match=message):
        check_regions([torch.tensor([BOX]), torch.tensor(boxes)], 2)


def test_bad_forms_are_refused() -> None:
    boxes, masks = torch.tensor([BOX]), torch.ones(1, 8, 8, dtype=torch.bool)
    bad = {
        "3 images, but pixel_values holds 2": ([boxes] * 3,),
        "empty list": ([],),
        "regions[1] is (4,)": ([boxes, boxes[0]],),
        "regions[0] is (4,)": ([boxes[0], boxes[0]],),
        "regions[1] is (1, 8, 8)": ([boxes, masks],),
        "regions[1] is (1, 4, 4)": ([masks, masks[:, :4, :4]],),
        "regions[0] is a list, not a torch tensor": ([[BOX], [BOX]],),
        "regions[1] is a ndarray": ([boxes, boxes.numpy()],),
        "boxes have 5 numbers": ([torch.rand(1, 5)] * 2,),
        "regions has shape (2, 4)": (torch.rand(2, 4),),
        "valid_regions has shape (2, 3)": (boxes.expand(2, 1, 4), torch.ones(2, 3)),
        "a list says it by its lengths": ([boxes, boxes], torch.ones(2, 1)),
        "masks are torch.float32": ([masks.float() * 0.3] * 2,),
    }
    for message, (regions, *valid) in bad.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            check_regions(regions, 2, *valid)


# --- masks


def test_the_box_of_a_mask_is_tight() -> None:
    masks = torch.zeros(2, 8, 16, dtype=torch.bool)
    masks[0, 2:5, 4:12] = True
    masks[0, 3, 5] = False
    masks[1, 7, 0] = True  # two far pixels
    masks[1, 0, 15] = True
    assert masks_to_boxes(masks).tolist() == [[4 / 16, 2 / 8, 12 / 16, 5 / 8], [0.0, 0.0, 1.0, 1.0]]


def test_masks_are_checked_and_padded() -> None:
    masks = [torch.zeros(2, 8, 8, dtype=torch.bool), torch.zeros(1, 8, 8, dtype=torch.uint8)]
    masks[0][:, 2:4, 1:7] = True
    with pytest.raises(ValueError, match="mask 0 of image 1 is empty"):
        check_regions(masks, 2)
    masks[1][0, 0, 0] = 255
    checked = check_regions(masks, 2)
    assert checked.valid.tolist() == [[True, True], [True, False]]
    assert checked.masks is not None
    assert checked.boxes[0, 0].tolist() == [1 / 8, 2 / 8, 7 / 8, 4 / 8]
    assert checked.boxes[1, 0].tolist() == [0, 0, 1 / 8, 1 / 8]


def test_a_view_moves_as_a_whole() -> None:
    view = View(torch.rand(1, 3, 4, 4), torch.rand(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), torch.tensor([3]))
    moved = view.to("meta")
    assert {part.device.type for part in (moved.pixel_values, moved.boxes, moved.valid_regions, moved.rows)} == {
        "meta"
    }
    assert view.to("cpu").rows.tolist() == [3]


# ------------------------------------------------------------------------------------------------ any boxes and masks

near = st.floats(-0.25, 1.25, width=32)
corners = st.tuples(near, near, near, near)
whatever = st.tuples(*[st.floats(width=32) | near] * 4)
grids = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(st.lists(st.lists(whatever | corners, max_size=3), min_size=1, max_size=3))
def test_any_boxes_are_taken_as_they_are_or_named(images: list[list[tuple[float, ...]]]) -> None:
    given_boxes = [torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) for boxes in images]

    def sound(box: torch.Tensor) -> bool:
        inside = bool(((box >= -1e-3) & (box <= 1 + 1e-3)).all())
        x1, y1, x2, y2 = box.clamp(0, 1).tolist()
        return inside and x1 < x2 and y1 < y2

    faulty = [(image, row) for image, own in enumerate(given_boxes) for row, box in enumerate(own) if not sound(box)]
    if faulty:
        with pytest.raises(ValueError, match="^box") as refused:
            check_regions(given_boxes, len(images))
        named = re.match(r"box (\d+) of image (\d+) is \[.*\]: [^.]", str(refused.value))
        assert named and (int(named[2]), int(named[1])) in faulty
        return
    checked = check_regions(given_boxes, len(images))
    for boxes, found, valid in zip(given_boxes, checked.boxes, checked.valid, strict=True):
        assert valid.tolist() == [True] * len(boxes) + [False] * (len(valid) - len(boxes))
        assert torch.equal(found[valid], boxes.clamp(0, 1))


@given(corners, grids)
def test_any_box_covers_the_cells_that_lie_in_it(box: tuple[float, ...], size: tuple[int, int]) -> None:
    height, width = size
    ((left, top, right, bottom),) = boxes_to_pixels(np.array([box]), size).tolist()
    x1, y1, x2, y2 = (min(max(side, 0.0), 1.0) * scale for side, scale in zip(box, (width, height) * 2, strict=True))
    if x2 <= x1 or y2 <= y1:
        assert left == right and top == bottom
        return
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    for low, high, start, end in ((left, right, x1, x2), (top, bottom, y1, y2)):
        for cell in range(max(width, height)):
            if start <= cell and cell + 1 <= end:  # wholly inside
                assert low <= cell < high
            elif high - low > 1 and not start <= cell + 0.5 <= end:  # its centre is outside
                assert not low <= cell < high
    assert rasterise(np.array([[left, top, right, bottom]]), size).sum() == (right - left) * (bottom - top)


@given(grids, st.data())
def test_any_mask_has_the_box_of_its_cells(size: tuple[int, int], data: st.DataObject) -> None:
    height, width = size
    cells = data.draw(st.sets(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), max_size=5))
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    for row, column in cells:
        mask[0, 0, row, column] = True
    if not cells:
        with pytest.raises(ValueError, match="mask 0 of image 0 is empty; drop it"):
            check_regions(mask, 1)
        return
    rows, columns = zip(*cells, strict=True)
    expected = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
    found = check_regions(mask, 1)
    np.testing.assert_array_equal(boxes_to_pixels(found.boxes[0].numpy(), size), [expected])
    mirrored = check_regions(mask.flip(-1), 1).boxes[0].numpy()
    np.testing.assert_allclose(mirrored, flip_boxes(found.boxes[0].numpy()), atol=1e-6)
