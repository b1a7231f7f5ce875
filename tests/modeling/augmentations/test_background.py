"""Background: region pixels stay, everything else shows the donor."""

import numpy as np
import pytest
import torch

from modeling_decodepos.augmentations.background import foreground_mask, limit_coverage, replace_background
from modeling_decodepos.augmentations.region_cutout import sample_region_cut
from modeling_decodepos.regions import boxes_to_pixels, rasterise

BOXES = np.array([[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8]])


def test_the_foreground_stays_bit_for_bit_and_the_donor_shows_elsewhere() -> None:
    pixels, donor = torch.randn(2, 3, 40, 40)
    before, donor_before = pixels.clone(), donor.clone()
    foreground = torch.from_numpy(foreground_mask(boxes_to_pixels(BOXES, (40, 40)), (40, 40)))
    mixed = replace_background(pixels, donor, foreground)
    inside = foreground.expand_as(mixed)
    assert torch.equal(mixed[inside], pixels[inside])
    assert torch.equal(mixed[~inside], donor[~inside])
    assert 0 < foreground.sum() < foreground.numel()
    assert torch.equal(pixels, before)
    assert torch.equal(donor, donor_before)


def test_one_mask_per_image_of_a_batch() -> None:
    pixels, donor = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    foreground = torch.zeros(2, 4, 4, dtype=torch.bool)
    foreground[0, 0, 0] = True
    foreground[1, 3, 3] = True
    mixed = replace_background(pixels, donor, foreground)
    assert (mixed == 0).nonzero()[:, [0, 2, 3]].unique(dim=0).tolist() == [[0, 0, 0], [1, 3, 3]]


def test_cuts_inside_the_regions_show_the_donor(rng: np.random.Generator) -> None:
    size = (60, 60)
    pixel_boxes = boxes_to_pixels(BOXES, size)
    cut = sample_region_cut(BOXES, size, 0.3, rng)
    foreground = foreground_mask(pixel_boxes, size, cut)
    union = rasterise(pixel_boxes, size)
    np.testing.assert_array_equal(foreground, union & ~cut)
    pixels, donor = torch.zeros(3, *size), torch.ones(3, *size)
    mixed = replace_background(pixels, donor, torch.from_numpy(foreground))
    np.testing.assert_array_equal(mixed[0].bool().numpy(), cut | ~union)
    assert (cut & union).any()


def test_a_donor_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"background has shape \(3, 8, 6\), expected \(3, 8, 8\)"):
        replace_background(torch.rand(3, 8, 8), torch.rand(3, 8, 6), torch.ones(8, 8, dtype=torch.bool))


def test_coverage_is_limited_by_dropping_the_largest_boxes_first() -> None:
    size = (100, 100)
    boxes = np.array([[10, 10, 30, 30], [0, 0, 100, 95], [40, 40, 100, 100], [0, 0, 0, 50]])
    np.testing.assert_array_equal(limit_coverage(boxes, size, 1.0), [True] * 4)
    np.testing.assert_array_equal(limit_coverage(boxes, size, 0.9), [True, False, True, True])
    np.testing.assert_array_equal(limit_coverage(boxes, size, 0.3), [True, False, False, True])
    assert not rasterise(boxes[limit_coverage(boxes, size, 0.0)], size).any()


def test_coverage_is_that_of_the_union_not_of_the_sum() -> None:
    boxes = np.array([[0, 0, 60, 60]] * 4)  # four times 36 %, but the same 36 %
    assert limit_coverage(boxes, (100, 100), 0.4).all()


def test_the_limit_holds_for_any_boxes(rng: np.random.Generator) -> None:
    for _ in range(200):
        boxes = boxes_to_pixels(np.sort(rng.uniform(0, 1, (5, 2, 2)), axis=1).reshape(5, 4), (32, 32))
        most = rng.uniform(0.1, 0.95)
        keep = limit_coverage(boxes, (32, 32), most)
        assert rasterise(boxes[keep], (32, 32)).mean() <= most
        if not keep.all():  # nothing was dropped without need: with the last one dropped, the limit is broken
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            last = min(np.flatnonzero(~keep), key=lambda i: (areas[i], -i))
            keep[last] = True
            assert rasterise(boxes[keep], (32, 32)).mean() > most
    assert limit_coverage(np.zeros((0, 4), dtype=int), (32, 32), 0.5).shape == (0,)
