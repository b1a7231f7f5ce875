"""Re-positioning: one shift for all regions, inside the view, and pixels that move with their boxes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from modeling_decodepos.augmentations.background import foreground_mask, replace_background
from modeling_decodepos.augmentations.repositioning import (
    FOREGROUND_SCALES,
    LEAST_SLACK,
    Placement,
    place_boxes,
    placed_pixel_boxes,
    reposition_foreground,
    sample_placement,
)
from modeling_decodepos.regions import boxes_to_pixels

VIEW = 64


def random_boxes(rng: np.random.Generator, count: int = 3) -> np.ndarray:
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1)
    corners[:, 1] = np.minimum(np.maximum(corners[:, 1], corners[:, 0] + 0.02), 1.0)
    return corners.reshape(count, 4)


@pytest.mark.parametrize("scale", FOREGROUND_SCALES)
def test_every_box_stays_in_the_view(scale: str, rng: np.random.Generator) -> None:
    for _ in range(600):
        boxes = random_boxes(rng)
        placement = sample_placement(boxes, VIEW, FOREGROUND_SCALES[scale], rng)
        placed, pixels = place_boxes(boxes, placement, VIEW), placed_pixel_boxes(boxes, placement)
        assert placed.min() >= -1e-9
        assert placed.max() <= 1 + 1e-9
        assert pixels.min() >= 0
        assert pixels.max() <= VIEW
        # The unit boxes and the pixel boxes are the same boxes, but for rounding.
        np.testing.assert_allclose(placed * VIEW, pixels, atol=1.0)


@pytest.mark.parametrize("scale", FOREGROUND_SCALES)
def test_all_boxes_move_by_one_vector_and_nesting_stays(scale: str, rng: np.random.Generator) -> None:
    nested = np.array([[0.1, 0.1, 0.6, 0.7], [0.2, 0.3, 0.4, 0.5], [0.3, 0.35, 0.8, 0.75]])
    for _ in range(100):
        placement = sample_placement(nested, VIEW, FOREGROUND_SCALES[scale], rng)
        placed = place_boxes(nested, placement, VIEW)
        factor = placement.side_px / VIEW
        shifts = placed - nested * factor
        np.testing.assert_allclose(
            shifts, np.tile([placement.left_px, placement.top_px] * 2, (3, 1)) / VIEW, atol=1e-9
        )
        assert (placed[1, :2] > placed[0, :2]).all()
        assert (placed[1, 2:] < placed[0, 2:]).all()
        if scale == "paper":
            assert factor == 1
            np.testing.assert_allclose(placed[:, 2:] - placed[:, :2], nested[:, 2:] - nested[:, :2], atol=1e-9)


def moved_view(boxes: np.ndarray, placement: Placement, donor: Tensor) -> tuple[Tensor, Tensor]:
    pixels = torch.rand(3, placement.side_px, placement.side_px)
    placed = placed_pixel_boxes(boxes, placement)
    foreground = torch.from_numpy(foreground_mask(placed, (VIEW, VIEW)))
    return pixels, replace_background(reposition_foreground(pixels, placement, donor), donor, foreground)


@pytest.mark.parametrize("scale", FOREGROUND_SCALES)
def test_pixels_move_exactly_with_their_boxes(scale: str, rng: np.random.Generator) -> None:
    for _ in range(60):
        boxes = random_boxes(rng)
        placement = sample_placement(boxes, VIEW, FOREGROUND_SCALES[scale], rng)
        donor = torch.full((3, VIEW, VIEW), -1.0)
        pixels, view = moved_view(boxes, placement, donor)
        before = boxes_to_pixels(boxes, (placement.side_px, placement.side_px))
        outside = torch.ones(VIEW, VIEW, dtype=torch.bool)
        for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(before, placed_pixel_boxes(boxes, placement), strict=True):
            assert torch.equal(view[:, v1:v2, u1:u2], pixels[:, y1:y2, x1:x2])
            outside[v1:v2, u1:u2] = False
        assert (view[:, outside] == -1).all()


def test_the_canvas_is_left_alone() -> None:
    canvas = torch.zeros(3, 8, 8)
    moved = reposition_foreground(torch.ones(3, 8, 8), Placement(8, 3, -2), canvas)
    assert not canvas.any()
    assert moved[0].nonzero().aminmax().max == 7
    assert torch.equal(
        moved[0] == 1, torch.ones(8, 8).bool() & (torch.arange(8) >= 3) & (torch.arange(8) < 6)[:, None]
    )


def test_without_slack_nothing_moves_at_the_papers_scale(rng: np.random.Generator) -> None:
    full = np.array([[0.0, 0.2, 0.7, 0.6], [0.4, 0.0, 1.0, 1.0]])
    for _ in range(20):
        placement = sample_placement(full, VIEW, FOREGROUND_SCALES["paper"], rng)
        assert (placement.side_px, placement.left_px, placement.top_px) == (VIEW, 0, 0)
        assert placement.slack == (0.0, 0.0)
        assert not placement.can_move
    # One free axis is enough, and only that one is used.
    tops = set()
    for _ in range(200):
        placement = sample_placement(np.array([[0.0, 0.0, 1.0, 0.5]]), VIEW, FOREGROUND_SCALES["paper"], rng)
        assert placement.left_px == 0
        assert placement.slack == (0.0, 0.5)
        assert placement.can_move
        tops.add(placement.top_px)
    assert (min(tops), max(tops)) == (0, 32)


@pytest.mark.parametrize("view_px", [32, 64, 224])
def test_the_shipped_scale_always_leaves_room(view_px: int, rng: np.random.Generator) -> None:
    full = np.array([[0.0, 0.0, 1.0, 1.0]])
    drawn = [sample_placement(full, view_px, FOREGROUND_SCALES["scaled"], rng) for _ in range(300)]
    assert min(min(placement.slack) for placement in drawn) >= 0.1 - 0.5 / view_px  # 0.1, rounded to whole pixels
    assert all(placement.can_move for placement in drawn)
    sides = np.array([placement.side_px for placement in drawn]) / view_px
    assert sides.min() == pytest.approx(0.45, abs=0.03)
    assert sides.max() == pytest.approx(0.9, abs=0.03)
    assert sides.mean() == pytest.approx(0.675, abs=0.03)


def test_shifts_are_uniform_over_all_that_fit(rng: np.random.Generator) -> None:
    boxes = np.array([[0.25, 0.5, 0.5, 1.0]])
    drawn = [sample_placement(boxes, VIEW, FOREGROUND_SCALES["paper"], rng) for _ in range(4000)]
    for shifts, (low, high) in (([p.left_px for p in drawn], (-16, 32)), ([p.top_px for p in drawn], (-32, 0))):
        values, counts = np.unique(shifts, return_counts=True)
        np.testing.assert_array_equal(values, np.arange(low, high + 1))  # both ends are reached
        expected = 4000 / len(values)
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert chi_squared < len(values) + 4 * np.sqrt(2 * len(values))
    horizontal, vertical = np.array([(p.left_px, p.top_px) for p in drawn]).T
    assert abs(np.corrcoef(horizontal, vertical)[0, 1]) < 0.06


def test_slack_is_the_free_share_beside_the_union(rng: np.random.Generator) -> None:
    boxes = np.array([[0.125, 0.25, 0.5, 0.5], [0.25, 0.375, 0.75, 0.625]])
    assert sample_placement(boxes, VIEW, (1.0, 1.0), rng).slack == (1 - 0.625, 1 - 0.375)
    assert sample_placement(boxes, VIEW, (0.5, 0.5), rng).slack == (1 - 0.3125, 1 - 0.1875)
    assert Placement(VIEW, 0, 0, (LEAST_SLACK, 0.0)).can_move
    assert not Placement(VIEW, 0, 0, (LEAST_SLACK - 1e-6, 0.0)).can_move


def test_a_placement_depends_on_its_generator_only() -> None:
    boxes = np.array([[0.2, 0.2, 0.6, 0.7]])
    first, again, other = (
        sample_placement(boxes, VIEW, (0.45, 0.9), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first == again != other


def test_bad_arguments_are_named(rng: np.random.Generator) -> None:
    boxes = np.array([[0.2, 0.2, 0.6, 0.7]])
    with pytest.raises(ValueError, match="no box to place"):
        sample_placement(np.zeros((0, 4)), VIEW, (1.0, 1.0), rng)
    for scales in ((0.0, 1.0), (0.9, 0.45), (0.5, 1.5), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="scale range is"):
            sample_placement(boxes, VIEW, scales, rng)
    with pytest.raises(ValueError, match="not finite"):
        sample_placement(np.full((1, 4), np.nan), VIEW, (1.0, 1.0), rng)
    with pytest.raises(ValueError, match=r"pixels are \(64, 64\), but the placement is for a side of "):
        reposition_foreground(torch.rand(3, 64, 64), Placement(40, 0, 0), torch.rand(3, 64, 64))
