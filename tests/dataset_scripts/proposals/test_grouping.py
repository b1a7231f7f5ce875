"""Hierarchical grouping against the same written out with dictionaries."""

import numpy as np
import pytest

from dataset_scripts.proposals.grouping import group_regions
from dataset_scripts.proposals.segments import (
    colour_histograms,
    neighbours,
    segment_boxes,
    segment_sizes,
    texture_histograms,
)


def label_image(seed, height=14, width=17, blobs=9):
    """Cells around random points; numbered without gaps."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((0, 0), (height, width), (blobs, 2))
    ys, xs = np.mgrid[:height, :width]
    nearest = ((ys[..., None] - points[:, 0]) ** 2 + (xs[..., None] - points[:, 1]) ** 2).argmin(-1)
    return np.unique(nearest, return_inverse=True)[1].reshape(height, width)


def slow_neighbours(labels):
    pairs = set()
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            for there in ((y + 1, x), (y, x + 1)):
                if there[0] < height and there[1] < width and labels[there] != labels[y, x]:
                    pairs.add(tuple(sorted((int(labels[y, x]), int(labels[there])))))
    return pairs


def slow_groups(labels, histograms):
    """Boxes in the order of merging, pixel sets and plain sums."""
    area = labels.size
    known = {}
    for number in range(labels.max() + 1):
        known[number] = (
            {(int(y), int(x)) for y, x in np.argwhere(labels == number)},
            [float(value) for value in histograms[number]],
        )

    def box(pixels):
        ys, xs = zip(*pixels, strict=True)
        return min(xs), min(ys), max(xs) + 1, max(ys) + 1

    def likeness(one, other):
        (pixels, shares), (pixels_too, shares_too) = known[one], known[other]
        x1, y1, x2, y2 = box(pixels | pixels_too)
        both = len(pixels) + len(pixels_too)
        overlap = sum(min(a, b) for a, b in zip(shares, shares_too, strict=True))
        return overlap + (1 - both / area) + (1 - ((x2 - x1) * (y2 - y1) - both) / area)

    alike = {pair: likeness(*pair) for pair in slow_neighbours(labels)}
    boxes = [box(known[number][0]) for number in range(len(known))]
    while alike:
        one, other = max(alike, key=alike.get)
        new = len(known)
        (pixels, shares), (pixels_too, shares_too) = known[one], known[other]
        a, b = len(pixels), len(pixels_too)
        merged = [(s * a + t * b) / (a + b) for s, t in zip(shares, shares_too, strict=True)]
        known[new] = pixels | pixels_too, merged
        boxes.append(box(known[new][0]))
        around = {n for pair in alike if one in pair or other in pair for n in pair} - {one, other}
        alike = {pair: value for pair, value in alike.items() if one not in pair and other not in pair}
        alike |= {(n, new): likeness(n, new) for n in around}
    return boxes


@pytest.mark.parametrize("seed", range(8))
def test_grouping_is_that_of_the_slow_reference(seed):
    labels = label_image(seed)
    histograms = np.random.default_rng(100 + seed).dirichlet(np.ones(6), labels.max() + 1)
    pairs = neighbours(labels)
    assert set(map(tuple, pairs.tolist())) == slow_neighbours(labels)
    found = group_regions(segment_sizes(labels), segment_boxes(labels), histograms, pairs, labels.size)
    assert found.tolist() == [list(box) for box in slow_groups(labels, histograms)]
    assert len(found) == 2 * (labels.max() + 1) - 1


@pytest.mark.parametrize("seed", range(3))
def test_boxes_nest(seed):
    """Every merged box is the hull of two earlier ones, and the last is the whole image."""
    labels = label_image(seed, 30, 40, 25)
    histograms = np.random.default_rng(seed).dirichlet(np.ones(6), labels.max() + 1)
    count = labels.max() + 1
    found = group_regions(segment_sizes(labels), segment_boxes(labels), histograms, neighbours(labels), labels.size)
    for made in range(count, len(found)):
        hulls = [
            [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
            for k, a in enumerate(found[:made])
            for b in found[:k]
        ]
        assert found[made].tolist() in hulls
    assert found[-1].tolist() == [0, 0, 40, 30]


def test_one_segment_is_one_region():
    labels = np.zeros((5, 7), np.int64)
    found = group_regions(np.array([35.0]), segment_boxes(labels), np.ones((1, 3)), neighbours(labels), 35)
    assert found.tolist() == [[0, 0, 7, 5]]


def test_equally_alike_pairs_merge_in_their_order():
    labels = np.arange(4)[None].repeat(2, 0)
    found = group_regions(segment_sizes(labels), segment_boxes(labels), np.ones((4, 1)), neighbours(labels), 8)
    assert found[4:].tolist() == [[0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 4, 2]]


def test_histograms_count_pixels():
    labels = label_image(0, 20, 30, 6)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    found = colour_histograms(labels, pixels)
    for number in range(labels.max() + 1):
        inside = pixels[labels == number]
        wanted = [np.histogram(inside[:, k], 25, (0, 256))[0] / len(inside) for k in range(3)]
        np.testing.assert_allclose(found[number], np.concatenate(wanted))
    texture = texture_histograms(labels, pixels[..., 0])
    np.testing.assert_allclose(texture.sum(axis=1), 1)


def test_texture_tells_directions_and_strengths_apart():
    labels = np.zeros((40, 40), np.int64)
    ramp = np.arange(40)[None].repeat(40, 0).astype(np.uint8)

    def bins(grey):
        return set(np.flatnonzero(texture_histograms(labels, grey)[0] > 0.5).tolist())

    seen = [bins(grey) for grey in (ramp * 2, ramp * 6, ramp.T * 6, 255 - ramp * 6, np.full_like(ramp, 9))]
    assert all(len(one) == 1 for one in seen)
    assert len({next(iter(one)) for one in seen[:4]}) == 4
