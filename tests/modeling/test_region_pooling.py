"""Region pooling is RoIAlign: against stored values of the C++ operator, a slow obvious version, and arithmetic."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from modeling_decodepos.region_pooling import average_in_bins, cell_offset, pool_regions
from modeling_decodepos.regions import flip_boxes

# Written by `python -m benchmarks.golden_roi_align`.
GOLDEN = Path(__file__).with_name("golden_roi_align.safetensors")
GOLDEN_VALUES = load_file(GOLDEN)
GOLDEN_CASES = sorted(key for key in GOLDEN_VALUES if key.count(".") == 2)  # map.bins.sampling_ratio
# What golden values of the adaptive mode must tell apart; the names are the slow version's flags.
WRONG_RULES = ("aligned", "clamp_to_border", "zero_far_outside", "adapt_samples")


def reference_pool(
    feature_map: Tensor,
    boxes: Tensor,
    bins: int,
    sampling_ratio: int = 0,
    *,
    aligned: bool = True,
    clamp_to_border: bool = True,
    zero_far_outside: bool = True,
    adapt_samples: bool = True,
) -> Tensor:
    """RoIAlign sample by sample, in float64; each flag set to False gives a plausible wrong version."""
    feature_map = feature_map.double()
    batch, channels, height, width = feature_map.shape

    def positions(start: float, end: float, size: int, place: int) -> list[float]:
        half = 0.5 if aligned else 0.0
        low, extent = start * size - half, (end - start) * size
        count = sampling_ratio or (math.ceil(round(extent / bins, 6)) if adapt_samples else 1)
        return [low + (place + (sample + 0.5) / max(count, 1)) * extent / bins for sample in range(max(count, 1))]

    def sample(image: Tensor, y: float, x: float) -> Tensor:
        tolerance = 1e-6  # the operator works in float32
        if zero_far_outside and not (
            -1 - tolerance <= y <= height + tolerance and -1 - tolerance <= x <= width + tolerance
        ):
            return torch.zeros(channels, dtype=torch.float64)
        if clamp_to_border:
            y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        value = torch.zeros(channels, dtype=torch.float64)
        for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= row < height and 0 <= column < width:
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
        return value

    pooled = torch.zeros(batch, boxes.shape[1], channels, bins, bins, dtype=torch.float64)
    for image, region, i, j in itertools.product(range(batch), range(boxes.shape[1]), range(bins), range(bins)):
        x1, y1, x2, y2 = boxes[image, region].tolist()
        rows, columns = positions(y1, y2, height, i), positions(x1, x2, width, j)
        samples = [sample(feature_map[image], y, x) for y in rows for x in columns]
        pooled[image, region, :, i, j] = torch.stack(samples).mean(0)
    return pooled


def golden(case: str) -> tuple[Tensor, Tensor, int, int, Tensor]:
    name, bins, sampling_ratio = case.split(".")
    return (
        GOLDEN_VALUES[f"{name}.map"],
        GOLDEN_VALUES[f"{name}.boxes"],
        int(bins),
        int(sampling_ratio),
        GOLDEN_VALUES[case],
    )


def random_map(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_boxes(batch: int, regions: int, seed: int = 0) -> Tensor:
    """Boxes inside the map, sides 0.1 to 0.9 of it."""
    generator = torch.Generator().manual_seed(seed)
    sides = 0.1 + 0.8 * torch.rand(batch, regions, 2, generator=generator)
    start = (1 - sides) * torch.rand(batch, regions, 2, generator=generator)
    return torch.cat([start, start + sides], dim=-1)


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_equals_the_stored_values_of_the_operator(case: str) -> None:
    feature_map, boxes, bins, sampling_ratio, expected = golden(case)
    pooled = pool_regions(feature_map, boxes, bins, sampling_ratio)
    torch.testing.assert_close(pooled, expected, atol=5e-6, rtol=0)
    channels_last = feature_map.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pool_regions(channels_last, boxes, bins, sampling_ratio), expected, atol=5e-6, rtol=0)


def test_stored_values_say_where_they_come_from() -> None:
    with safe_open(GOLDEN, framework="pt") as file:
        assert file.metadata()["operator"].startswith("torchvision ")
    assert GOLDEN.stat().st_size < 60_000
    assert len(GOLDEN_CASES) == 18


@pytest.mark.parametrize("wrong", WRONG_RULES)
def test_stored_values_tell_a_wrong_rule_apart(wrong: str) -> None:
    feature_map, boxes, bins, sampling_ratio, expected = golden("odd.3.0")
    right = reference_pool(feature_map, boxes, bins, sampling_ratio)
    torch.testing.assert_close(right, expected.double(), atol=5e-6, rtol=0)
    mistaken = reference_pool(feature_map, boxes, bins, sampling_ratio, **{wrong: False})
    assert (mistaken - expected).abs().max() > 1e-2


@pytest.mark.parametrize(("bins", "sampling_ratio"), [(1, 0), (2, 0), (5, 0), (3, 1), (2, 3)])
def test_equals_a_slow_obvious_version(bins: int, sampling_ratio: int) -> None:
    feature_map, boxes = random_map(2, 2, 7, 11), random_boxes(2, 2)
    boxes[0, 0] += 0.3  # over the border
    pooled = pool_regions(feature_map.double(), boxes.double(), bins, sampling_ratio)
    torch.testing.assert_close(
        pooled, reference_pool(feature_map, boxes.double(), bins, sampling_ratio), atol=1e-10, rtol=0
    )


def test_gradient_is_that_of_the_formula() -> None:
    feature_map = random_map(2, 2, 5, 4, dtype=torch.float64).requires_grad_()
    boxes = torch.cat([random_boxes(2, 2), torch.tensor([-0.2, 0.5, 0.4, 1.3]).expand(2, 1, 4)], dim=1).double()
    for sampling_ratio in (0, 2):
        assert torch.autograd.gradcheck(lambda m, s=sampling_ratio: pool_regions(m, boxes, 3, s), feature_map)


def test_boxes_take_no_gradient() -> None:
    feature_map, boxes = random_map(1, 2, 6, 6).requires_grad_(), random_boxes(1, 2).requires_grad_()
    pool_regions(feature_map, boxes, 2).sum().backward()
    assert feature_map.grad is not None
    assert boxes.grad is None


def test_a_constant_map_gives_that_constant() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.2, 0.31, 0.83, 0.77], [-0.03, 0.4, 0.5, 1.03]]])
    pooled = pool_regions(torch.full((1, 2, 9, 12), 3.5), boxes, 4)
    torch.testing.assert_close(pooled, torch.full_like(pooled, 3.5))


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_a_ramp_gives_the_bin_centres(sampling_ratio: int) -> None:
    height, width, bins = 8, 12, 4
    # Every cell holds its own centre, in [0, 1] of the image.
    y, x = ((torch.arange(size) + 0.5) / size for size in (height, width))
    ramp = torch.stack([y[:, None].expand(-1, width), x.expand(height, -1)])[None]
    box = torch.tensor([0.15, 0.2, 0.8, 0.9])
    pooled = pool_regions(ramp, box[None, None], bins, sampling_ratio)[0, 0]
    centres = (torch.arange(bins) + 0.5) / bins
    torch.testing.assert_close(pooled[0], (0.2 + 0.7 * centres)[:, None].expand(-1, bins))
    torch.testing.assert_close(pooled[1], (0.15 + 0.65 * centres).expand(bins, -1))


@pytest.mark.parametrize("halvings", [1, 3])
def test_centred_cells_read_the_place_that_padded_convolutions_show(halvings: int) -> None:
    # Each convolution hands on the pixel under the middle of its kernel, so a map of a ramp says where cells look.
    size, stride = 64, 2**halvings
    x = torch.arange(size) + 0.5
    ramp = torch.stack([x[:, None].expand(-1, size), x.expand(size, -1)])[None]
    middle = torch.zeros(2, 1, 3, 3)
    middle[:, :, 1, 1] = 1
    feature_map = ramp
    for _ in range(halvings):
        feature_map = torch.nn.functional.conv2d(feature_map, middle, stride=2, padding=1, groups=2)
    box = torch.tensor([16.0, 20.0, 40.0, 36.0])
    boxes = box[None, None] / size
    centred = pool_regions(feature_map, boxes, 4, offset=cell_offset(stride)).mean((3, 4))[0, 0]
    torch.testing.assert_close(centred, torch.tensor([28.0, 28.0]))  # the centre of the box: y, x
    plain = pool_regions(feature_map, boxes, 4).mean((3, 4))[0, 0]
    torch.testing.assert_close(plain, torch.tensor([28.0, 28.0]) - (stride - 1) / 2)


def test_an_offset_is_a_shift_of_the_boxes() -> None:
    feature_map, boxes = random_map(2, 3, 8, 12), torch.tensor([[[0.1, 0.2, 0.6, 0.7]], [[0.3, 0.1, 0.5, 0.9]]])
    shifted = boxes + 0.4 / torch.tensor([12.0, 8.0, 12.0, 8.0])
    torch.testing.assert_close(pool_regions(feature_map, boxes, 3, offset=0.4), pool_regions(feature_map, shifted, 3))


def test_whole_map_with_a_bin_per_cell_is_the_map() -> None:
    feature_map = random_map(2, 3, 14, 14)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2, 1, 4)
    torch.testing.assert_close(pool_regions(feature_map, whole, 14)[:, 0], feature_map)


class TestBorder:
    """A sample up to one cell outside takes the border's value, one further away counts as zero."""

    FEATURE_MAP = torch.arange(1.0, 9.0).expand(1, 1, 8, 8)  # the value is the column's number

    def pool_columns(self, x1: float, x2: float) -> float:
        # One bin of one cell holds one sample, at its centre.
        return pool_regions(self.FEATURE_MAP, torch.tensor([[[x1, 0.25, x2, 0.375]]]), 1).item()

    def test_up_to_one_cell_outside_takes_the_border(self) -> None:
        assert self.pool_columns(-1 / 8, 0.0) == 1.0  # the sample lies exactly one cell outside the first cell
        assert self.pool_columns(1.0, 9 / 8) == 8.0  # and the last one
        assert self.pool_columns(-0.5 / 8, 0.5 / 8) == 1.0

    def test_further_outside_is_zero(self) -> None:
        assert self.pool_columns(-1.02 / 8, -0.02 / 8) == 0.0
        assert self.pool_columns(8.02 / 8, 9.02 / 8) == 0.0

    def test_zeros_outside_count_in_the_average(self) -> None:
        # Two samples in one bin: column 1, and one far outside.
        assert self.pool_columns(-1.5 / 8, 0.5 / 8) == 0.5

    def test_a_box_far_outside_is_zero_and_passes_no_gradient(self) -> None:
        feature_map = random_map(1, 2, 6, 6).requires_grad_()
        pooled = pool_regions(feature_map, torch.tensor([[[1.5, 0.1, 1.9, 0.6]]]), 3)
        pooled.sum().backward()
        assert pooled.abs().max() == 0
        assert feature_map.grad.abs().max() == 0


class TestAdaptiveSampling:
    """One sample per started cell of a bin and axis, at most what a box as large as the map needs."""

    @pytest.mark.parametrize(("cells", "samples"), [(1.0, 1), (1.5, 2), (2.0, 2), (2.1, 3), (4.0, 4)])
    def test_number_of_samples_per_bin(self, cells: float, samples: int) -> None:
        feature_map = random_map(1, 3, 16, 16)
        start = 2.0625 / 16  # samples on both sides of cell centres, where their number makes a difference
        box = torch.tensor([[[start, start, start + 2 * cells / 16, start + 2 * cells / 16]]])
        adaptive = pool_regions(feature_map, box, 2)
        torch.testing.assert_close(adaptive, pool_regions(feature_map, box, 2, samples))
        for other in {1, 2, 3, 4} - {samples}:
            assert not torch.allclose(adaptive, pool_regions(feature_map, box, 2, other), atol=1e-3)

    def test_axes_and_boxes_adapt_on_their_own(self) -> None:
        feature_map = random_map(1, 1, 16, 16)
        flat = torch.tensor([0.1, 0.4, 0.9, 0.5])  # 12.8 x 1.6 cells: 4 x 1 samples per bin at 4 bins
        together = pool_regions(feature_map, torch.stack([flat, flat[[1, 0, 3, 2]]])[None], 4)
        for region, box in enumerate((flat, flat[[1, 0, 3, 2]])):
            torch.testing.assert_close(
                together[:, region : region + 1].double(),
                reference_pool(feature_map, box[None, None], 4),
                atol=5e-6,
                rtol=0,
            )
        assert not torch.allclose(together[:, :1], pool_regions(feature_map, flat[None, None], 4, 4), atol=1e-3)

    def test_a_box_larger_than_the_map_takes_no_more_samples_than_the_map(self) -> None:
        feature_map = random_map(1, 2, 8, 8)
        large = torch.tensor([[[-0.5, -0.5, 1.5, 1.5]]])
        torch.testing.assert_close(pool_regions(feature_map, large, 4), pool_regions(feature_map, large, 4, 2))

    def test_a_box_without_area_is_finite(self) -> None:
        point = torch.tensor([[[0.5, 0.5, 0.5, 0.5]]])
        assert pool_regions(random_map(1, 2, 8, 8), point, 4).isfinite().all()


def test_bf16_is_within_half_a_per_cent() -> None:
    feature_map, boxes = random_map(4, 64, 14, 14), random_boxes(4, 4)
    half = feature_map.bfloat16()
    exact = pool_regions(feature_map, boxes, 14)
    pooled = pool_regions(half, boxes, 14)
    assert pooled.dtype == torch.bfloat16
    assert (pooled.float() - exact).pow(2).mean().sqrt() <= 0.005 * exact.pow(2).mean().sqrt()


def test_bf16_maps_keep_box_coordinates_exact() -> None:
    # Coordinates rounded to bf16 would move a sample on a 56-cell map by up to a tenth of a cell.
    size = 56
    ramp = torch.arange(float(size)).expand(1, 1, size, size)
    box = torch.tensor([[[0.701, 0.703, 0.899, 0.897]]])
    exact = pool_regions(ramp, box, 7)
    torch.testing.assert_close(pool_regions(ramp.bfloat16(), box, 7).float(), exact, atol=0, rtol=2**-7)


def test_regions_do_not_know_their_neighbours() -> None:
    feature_map, boxes = random_map(3, 4, 9, 7), random_boxes(3, 5)
    pooled = pool_regions(feature_map, boxes, 3)
    shuffled, images = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1])
    torch.testing.assert_close(pool_regions(feature_map, boxes[:, shuffled], 3), pooled[:, shuffled])
    torch.testing.assert_close(pool_regions(feature_map[images], boxes[images], 3), pooled[images])
    torch.testing.assert_close(pool_regions(feature_map[1:2], boxes[1:2, 2:3], 3), pooled[1:2, 2:3])


def test_rows_and_columns_are_not_exchanged() -> None:
    feature_map, boxes = random_map(1, 2, 6, 10), random_boxes(1, 3)
    transposed = pool_regions(feature_map.mT, boxes[..., [1, 0, 3, 2]], 4)
    torch.testing.assert_close(transposed, pool_regions(feature_map, boxes, 4).mT)


def test_output_lies_in_channels_last_memory() -> None:
    pooled = pool_regions(random_map(2, 8, 6, 6), random_boxes(2, 3), 4)
    assert pooled.permute(0, 1, 3, 4, 2).is_contiguous()


def test_no_boxes_give_no_regions() -> None:
    feature_map = random_map(2, 4, 6, 6).requires_grad_()
    pooled = pool_regions(feature_map, torch.zeros(2, 0, 4), 3)
    assert pooled.shape == (2, 0, 4, 3, 3)
    pooled.sum().backward()
    assert feature_map.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("map_shape", "boxes_shape", "bins", "sampling_ratio", "message"),
    [
        ((3, 6, 6), (1, 2, 4), 3, 0, "feature_map has shape"),
        ((2, 3, 6, 6), (2, 4), 3, 0, "boxes have shape"),
        ((2, 3, 6, 6), (2, 2, 5), 3, 0, "boxes have shape"),
        ((2, 3, 6, 6), (3, 2, 4), 3, 0, r"expected \(2, R, 4\)"),
        ((2, 3, 6, 6), (2, 2, 4), 0, 0, "bins is 0"),
        ((2, 3, 6, 6), (2, 2, 4), 3, -1, "sampling_ratio -1"),
    ],
)
def test_wrong_input_is_refused(
    map_shape: tuple[int, ...], boxes_shape: tuple[int, ...], bins: int, sampling_ratio: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pool_regions(torch.zeros(map_shape), torch.zeros(boxes_shape), bins, sampling_ratio)


class TestAverageInBins:
    def test_a_mask_that_fills_its_box_gives_ones(self) -> None:
        boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.13, 0.21, 0.68, 0.94], [0.5, 0.5, 0.51, 0.52]]])
        covered = average_in_bins(torch.ones(1, 3, 32, 48), boxes, 7)
        torch.testing.assert_close(covered, torch.ones(1, 3, 7, 7))

    def test_nothing_outside_the_box_counts(self) -> None:
        # A mask that is true in its box only; bilinear sampling would mix in the zeros around it.
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., 4:12, 2:10] = 1
        box = torch.tensor([[[2 / 16, 4 / 16, 10 / 16, 12 / 16]]])
        torch.testing.assert_close(average_in_bins(mask, box, 5), torch.ones(1, 1, 5, 5))
        assert pool_regions(mask, box, 5).min() < 1

    def test_half_a_mask_gives_the_exact_shares(self) -> None:
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., :8] = 1
        covered = average_in_bins(mask, torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), 3)
        # The middle bin spans the edge evenly.
        torch.testing.assert_close(covered[0, 0], torch.tensor([1.0, 0.5, 0.0]).expand(3, 3))
        shifted = average_in_bins(mask, torch.tensor([[[0.25, 0.0, 0.85, 1.0]]]), 2)
        torch.testing.assert_close(shifted[0, 0], torch.tensor([0.25 / 0.3, 0.0]).expand(2, 2))

    def test_equals_counting_pixels(self) -> None:
        masks = (random_map(2, 3, 24, 36) > 0).float()
        boxes = torch.tensor([[6, 4, 30, 20], [0, 0, 36, 24], [12, 8, 24, 16]]) / torch.tensor([36, 24, 36, 24])
        covered = average_in_bins(masks, boxes.expand(2, 3, 4), 4)
        # Bins of whole pixels: 6 x 4, 9 x 6 and 3 x 2 of them.
        for region, (x, y, w, h) in enumerate([(6, 4, 24, 16), (0, 0, 36, 24), (12, 8, 12, 8)]):
            counted = masks[:, region, y : y + h, x : x + w].unflatten(1, (4, -1)).unflatten(3, (4, -1)).mean((2, 4))
            torch.testing.assert_close(covered[:, region], counted)


# ------------------------------------------------------------------------------------------------------- any boxes


@st.composite
def any_boxes(draw: st.DrawFn, least_side: int = -30) -> Tensor:
    """(1, R, 4) float64 boxes: over every border, without area, inverted, as large as the map.

    Corners lie between the lines of a fine grid: a sample on the very edge of the map is within it or not by rounding.
    """
    sides = st.integers(least_side, 997)
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        x, y, width, height = draw(st.tuples(st.integers(-900, 1200), st.integers(-900, 1200), sides, sides))
        boxes.append([x, y, x + width, y + height])
    return (torch.tensor([boxes], dtype=torch.float64) + 0.37) / 997


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=120)
@given(any_boxes(), sizes, st.integers(1, 4), st.integers(0, 3), st.integers(0, 99))
def test_any_boxes_are_pooled_as_the_slow_version_does(
    boxes: Tensor, size: tuple[int, int], bins: int, sampling_ratio: int, seed: int
) -> None:
    feature_map = random_map(1, 2, *size, seed=seed, dtype=torch.float64)
    expected = reference_pool(feature_map, boxes, bins, sampling_ratio)
    torch.testing.assert_close(pool_regions(feature_map, boxes, bins, sampling_ratio), expected, atol=1e-10, rtol=0)
    mirrored = torch.from_numpy(flip_boxes(boxes.numpy()))
    turned = pool_regions(feature_map.flip(-1), mirrored, bins, sampling_ratio).flip(-1)
    torch.testing.assert_close(turned, expected, atol=1e-10, rtol=0)


def slow_average(mask: Tensor, box: list[float], bins: int) -> Tensor:
    """Cell by cell how much of each bin it covers."""
    height, width = mask.shape
    x1, y1, x2, y2 = box
    covered = torch.zeros(bins, bins, dtype=torch.float64)
    for i, j, row, column in itertools.product(range(bins), range(bins), range(height), range(width)):
        top, bottom = (y1 + (y2 - y1) * edge / bins for edge in (i, i + 1))
        left, right = (x1 + (x2 - x1) * edge / bins for edge in (j, j + 1))
        high = max(0.0, min(bottom * height, row + 1) - max(top * height, row))
        wide = max(0.0, min(right * width, column + 1) - max(left * width, column))
        covered[i, j] += mask[row, column] * high * wide / ((bottom - top) * height * (right - left) * width)
    return covered


@settings(max_examples=60)
@given(sizes, st.integers(1, 4), st.data())
def test_any_masks_are_averaged_as_the_slow_version_does(
    size: tuple[int, int], bins: int, data: st.DataObject
) -> None:
    cells = data.draw(st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]))
    mask = torch.tensor(cells, dtype=torch.float64).reshape(size)
    x1, x2, y1, y2 = (
        side / 997 for pair in "xy" for side in sorted(data.draw(st.sets(st.integers(0, 997), min_size=2, max_size=2)))
    )
    averages = average_in_bins(mask[None, None], torch.tensor([[[x1, y1, x2, y2]]], dtype=torch.float64), bins)
    torch.testing.assert_close(averages[0, 0], slow_average(mask, [x1, y1, x2, y2], bins), atol=1e-10, rtol=0)
