"""Region augmentation: how much is cut, where, and what the cut shows."""

import numpy as np
import pytest
import torch
from torch import nn

from modeling_decodepos.augmentations.region_cutout import (
    CUT_FORMS,
    GRID_BOX_AREA,
    cut_regions,
    enlarge_cut,
    sample_grid_boxes,
    sample_region_cut,
)
from modeling_decodepos.regions import boxes_to_pixels, flip_boxes, rasterise

FORMS = list(CUT_FORMS)


def shares(cut: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return np.array([cut[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in boxes_to_pixels(boxes, cut.shape)])


def simulate(ratio: float, form: str, side: int, draws: int) -> tuple[float, float, float]:
    """Share cut from the whole view, mean share per box, mean share of the worst box, for nine overlapping boxes."""
    rng = np.random.default_rng(7)
    rows = []
    for _ in range(draws):
        boxes = sample_grid_boxes(rng)
        cut = sample_region_cut(boxes, (side, side), ratio, rng, form)
        per_box = shares(cut, boxes)
        rows.append((cut.mean(), per_box.mean(), per_box.max()))
    return tuple(np.mean(rows, axis=0))


# From an independent simulation with 600 draws per row on a 224 x 224 grid.
SHARES = {
    ("collaborative", 0.2): (0.21, 0.22, 0.32),
    ("collaborative", 0.3): (0.31, 0.33, 0.45),
    ("collaborative", 0.4): (0.41, 0.43, 0.57),
    ("collaborative", 0.5): (0.50, 0.53, 0.68),
    ("independent", 0.2): (0.29, 0.32, 0.46),
    ("independent", 0.3): (0.43, 0.46, 0.63),
    ("independent", 0.4): (0.55, 0.59, 0.75),
    ("independent", 0.5): (0.66, 0.70, 0.85),
}


@pytest.mark.parametrize(("form", "ratio"), SHARES)
def test_shares_are_those_of_the_method(form: str, ratio: float) -> None:
    np.testing.assert_allclose(simulate(ratio, form, 224, 250), SHARES[form, ratio], atol=0.02)


def test_collaborative_cutout_is_no_hard_cap_and_independent_cutout_cuts_too_much() -> None:
    _, mean, worst = simulate(0.3, "collaborative", 224, 150)
    assert mean == pytest.approx(0.3, rel=0.15)
    assert worst > 1.3 * 0.3
    _, independent_mean, _ = simulate(0.3, "independent", 224, 150)
    assert independent_mean > 1.35 * mean


def test_shares_on_a_patch_grid() -> None:
    np.testing.assert_allclose(simulate(0.3, "collaborative", 14, 400), (0.33, 0.34, 0.48), atol=0.025)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("form", ["collaborative", "independent"])
def test_one_box_loses_its_ratio(ratio: float, form: str, rng: np.random.Generator) -> None:
    boxes = np.array([[0.1, 0.2, 0.7, 0.9]])
    for _ in range(50):
        cut = sample_region_cut(boxes, (200, 200), ratio, rng, form)
        assert shares(cut, boxes)[0] == pytest.approx(ratio, abs=0.015)
        assert not (cut & ~rasterise(boxes_to_pixels(boxes, cut.shape), cut.shape)).any()


def test_the_cut_is_one_rectangle_of_the_boxs_own_shape(rng: np.random.Generator) -> None:
    lefts = []
    for _ in range(300):
        cut = sample_region_cut(np.array([[0.1, 0.1, 0.9, 0.5]]), (100, 100), 0.25, rng)  # 80 x 40 pixels
        rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
        assert len(rows) in (19, 20, 21)
        assert len(columns) in (39, 40, 41)
        assert cut.sum() == len(rows) * len(columns)
        assert rows[-1] - rows[0] + 1 == len(rows)
        lefts.append(columns[0])
    # Uniform over 10 … 50, wholly inside the box.
    assert min(lefts) in (10, 11)
    assert max(lefts) in (49, 50)
    assert np.mean(lefts) == pytest.approx(30, abs=2)
    assert np.std(lefts) == pytest.approx(40 / np.sqrt(12), rel=0.1)


def test_the_smallest_box_has_the_last_word(rng: np.random.Generator) -> None:
    # Nested; a version that goes from small to large, or never restores, cuts most of the inner box now and then.
    boxes = np.array([[0.3, 0.3, 0.6, 0.6], [0.05, 0.05, 0.95, 0.95], [0.25, 0.2, 0.7, 0.75]])
    inner = [shares(sample_region_cut(boxes, (160, 160), 0.3, rng), boxes)[0] for _ in range(300)]
    assert max(inner) <= 0.3 + 0.02
    assert np.mean(inner) == pytest.approx(0.3, abs=0.015)
    independent = [shares(sample_region_cut(boxes, (160, 160), 0.3, rng, "independent"), boxes)[0] for _ in range(300)]
    assert max(independent) > 0.6
    assert np.mean(independent) > 0.45


def test_order_of_the_boxes_does_not_matter(rng: np.random.Generator) -> None:
    boxes = sample_grid_boxes(rng)
    one = sample_region_cut(boxes, (64, 64), 0.3, np.random.default_rng(3))
    other = sample_region_cut(boxes[::-1], (64, 64), 0.3, np.random.default_rng(3))
    np.testing.assert_array_equal(one, other)


def test_touching_and_equal_boxes(rng: np.random.Generator) -> None:
    touching = np.array([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
    equal = np.array([[0.1, 0.1, 0.8, 0.8]] * 3)
    for _ in range(100):
        np.testing.assert_allclose(
            shares(sample_region_cut(touching, (120, 120), 0.4, rng), touching), 0.4, atol=0.015
        )
        np.testing.assert_allclose(shares(sample_region_cut(equal, (120, 120), 0.4, rng), equal), 0.4, atol=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_degenerate_boxes_are_ignored(form: str) -> None:
    box = np.array([[0.2, 0.2, 0.6, 0.7]])
    degenerate = np.array([[0.5, 0.5, 0.5, 0.5], [0.1, 0.3, 0.9, 0.3], [0.8, 0.8, 0.3, 0.3], [1.5, 1.5, 2.0, 2.0]])
    alone = sample_region_cut(box, (50, 50), 0.3, np.random.default_rng(1), form)
    among = sample_region_cut(np.concatenate([degenerate, box]), (50, 50), 0.3, np.random.default_rng(1), form)
    np.testing.assert_array_equal(alone, among)
    assert alone.any()
    for nothing in (degenerate, np.zeros((0, 4))):
        assert not sample_region_cut(nothing, (50, 50), 0.3, np.random.default_rng(1), form).any()


@pytest.mark.parametrize("form", FORMS)
def test_a_ratio_of_zero_cuts_nothing(form: str, rng: np.random.Generator) -> None:
    assert not sample_region_cut(sample_grid_boxes(rng), (64, 64), 0.0, rng, form).any()


def test_bad_arguments_are_named(rng: np.random.Generator) -> None:
    boxes = sample_grid_boxes(rng)
    for ratio in (1.0, -0.1, 30, float("nan")):
        with pytest.raises(ValueError, match="cut ratio is"):
            sample_region_cut(boxes, (8, 8), ratio, rng)
    with pytest.raises(ValueError, match="'rcc' is unknown; expected one of collaborative"):
        sample_region_cut(boxes, (8, 8), 0.3, rng, "rcc")
    with pytest.raises(ValueError, match="not finite"):
        sample_region_cut(np.full((1, 4), np.nan), (8, 8), 0.3, rng)


def test_a_cut_depends_on_its_generator_only(rng: np.random.Generator) -> None:
    boxes = sample_grid_boxes(rng)
    first, again, other = (sample_region_cut(boxes, (64, 64), 0.3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_spilling_form_reaches_the_surroundings(rng: np.random.Generator) -> None:
    box = np.array([[0.4, 0.4, 0.6, 0.6]])
    outside, whole = 0, []
    for _ in range(200):
        cut = sample_region_cut(box, (100, 100), 0.3, rng, "spilling")
        outside += (cut & ~rasterise(boxes_to_pixels(box, cut.shape), cut.shape)).any()
        whole.append(cut.sum() / 400)
    assert outside > 100
    assert np.mean(whole) == pytest.approx(0.3, abs=0.03)  # always a full rectangle of the ratio
    # An equal second box finds its share within 0.8 to 1.2 of the ratio, or restores and cuts anew: never both cuts.
    twice = [sample_region_cut(np.repeat(box, 2, 0), (100, 100), 0.3, rng, "spilling") for _ in range(200)]
    assert max(shares(cut, box)[0] for cut in twice) < 0.45


def test_a_cut_drawn_for_flipped_boxes_lies_in_the_mirrored_region(rng: np.random.Generator) -> None:
    boxes = np.array([[0.0, 0.25, 0.375, 0.75]])
    cut = sample_region_cut(flip_boxes(boxes), (64, 64), 0.5, rng)
    assert cut[:, 40:].sum() == cut.sum() > 0
    unflipped_region = rasterise(boxes_to_pixels(boxes, (64, 64)), (64, 64))
    assert not (cut & unflipped_region).any()


# --- applying a cut


def test_only_the_cut_pixels_change(rng: np.random.Generator) -> None:
    pixels = torch.rand(2, 3, 16, 16)
    before = pixels.clone()
    cut = torch.from_numpy(rng.random((2, 16, 16)) < 0.4)
    filled = cut_regions(pixels, cut, torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(pixels, before)
    everywhere = cut[:, None].expand_as(pixels)
    assert torch.equal(filled[~everywhere], pixels[~everywhere])
    for channel, value in enumerate((0.1, 0.2, 0.3)):
        assert (filled[:, channel][cut] == torch.tensor(value)).all()
    assert (cut_regions(pixels, cut)[everywhere] == 0).all()


def test_raw_8_bit_pixels_stay_8_bit() -> None:
    pixels = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    cut = torch.zeros(4, 4, dtype=torch.bool)
    cut[1, 2] = True
    filled = cut_regions(pixels, cut, torch.tensor([123.0, 116.0, 103.0]))
    assert filled.dtype == torch.uint8
    assert filled[:, 1, 2].tolist() == [123, 116, 103]
    assert (filled == 200).sum() == 45


def test_random_boxes_around_the_cells_of_a_grid() -> None:
    rng = np.random.default_rng(0)
    boxes = np.stack([sample_grid_boxes(rng) for _ in range(400)])
    assert boxes.shape == (400, 9, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    sides = boxes[..., 2:] - boxes[..., :2]
    assert (sides > 0).all()
    assert sides.prod(-1).max() <= GRID_BOX_AREA[1] + 1e-9
    whole = ((boxes > 0) & (boxes < 1)).all(-1)  # not clipped
    assert sides[whole].prod(-1).min() >= GRID_BOX_AREA[0] - 1e-9
    aspects = sides[whole][:, 0] / sides[whole][:, 1]
    assert aspects.min() >= 0.5 - 1e-9
    assert aspects.max() <= 2 + 1e-9
    centres = (boxes[..., 2:] + boxes[..., :2]) / 2
    cells = np.stack(np.meshgrid(np.arange(3), np.arange(3)), -1).reshape(9, 2)
    inside_cell = (centres * 3 - cells)[whole]
    assert inside_cell.min() >= 0.25 - 1e-9
    assert inside_cell.max() <= 0.75 + 1e-9


# --- whole patches, for ViTs


def test_an_enlarged_cut_takes_whole_patches(rng: np.random.Generator) -> None:
    grid = sample_region_cut(sample_grid_boxes(rng), (14, 14), 0.3, rng)
    pixels = enlarge_cut(grid, 16)
    assert pixels.shape == (224, 224)
    np.testing.assert_array_equal(pixels, np.kron(grid, np.ones((16, 16), dtype=bool)))
    np.testing.assert_array_equal(enlarge_cut(grid, 1), grid)


def test_small_regions_of_a_patch_grid_keep_patches(rng: np.random.Generator) -> None:
    for cells in (1, 2, 3, 5):
        box = np.array([[0.25, 0.25, 0.25 + cells / 16, 0.25 + cells / 16]])
        drawn = [shares(sample_region_cut(box, (16, 16), 0.3, rng), box)[0] for _ in range(500)]
        assert np.mean(np.equal(drawn, 1)) < 0.05
        assert np.mean(drawn) == pytest.approx(0 if cells == 1 else 0.3, abs=0.05)


def test_showing_the_donor_in_whole_patches_replaces_patch_embeddings(rng: np.random.Generator) -> None:
    """The follow-up swaps tokens after the patch projection; on pixels, cutting whole patches is the same."""
    projection = nn.Conv2d(3, 24, kernel_size=8, stride=8)
    image, donor = torch.randn(2, 1, 3, 64, 64)
    grid = sample_region_cut(sample_grid_boxes(rng), (8, 8), 0.3, rng)
    tokens = torch.from_numpy(grid)
    mixed = torch.where(torch.from_numpy(enlarge_cut(grid, 8)), donor, image)
    with torch.no_grad():
        replaced = torch.where(tokens, projection(donor), projection(image))
        torch.testing.assert_close(projection(mixed), replaced)
        # A cut that does not follow the patch grid mixes both images in one token, which no swap of tokens can do.
        off_grid = torch.where(torch.from_numpy(np.roll(enlarge_cut(grid, 8), 3, axis=1)), donor, image)
        off = projection(off_grid)
        from_one = torch.isclose(off, projection(donor), atol=1e-5) | torch.isclose(off, projection(image), atol=1e-5)
    assert 0 < tokens.sum() < 64
    assert not from_one.all()
