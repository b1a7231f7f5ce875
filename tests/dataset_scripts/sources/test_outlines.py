"""pycocotools is the reference: every pixel must agree with it."""

import json

import numpy as np
import pytest

from dataset_scripts.sources.coco.outlines import encode_outline, outline_mask
from tests.real_data import COCO_SAMPLE

# pycocotools sets the shape of an array, which NumPy has come to dislike.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SAMPLE = COCO_SAMPLE / "annotations" / "instances_val2017.json"


def drawn(outline, height, width):
    return outline_mask(encode_outline(outline, height, width))


def reference(outline, height, width):
    mask = pytest.importorskip("pycocotools.mask")
    if isinstance(outline, list):
        return mask.decode(mask.merge(mask.frPyObjects(outline, height, width)))
    if isinstance(outline["counts"], list):
        outline = mask.frPyObjects(outline, height, width)
    return mask.decode(outline)


def random_polygons(rng, height, width):
    """Few and many corners, inside and far outside, on and off the grid, with edges that are points."""
    polygons = []
    for _ in range(rng.integers(1, 4)):
        corners = rng.uniform(-0.4, 1.4, (rng.integers(3, 12), 2)) * (width, height)
        if rng.random() < 0.5:
            corners = np.round(corners * rng.choice([1, 2, 5, 10])) / rng.choice([1, 2, 5, 10])
        if rng.random() < 0.3:
            corners = np.repeat(corners, rng.integers(1, 3, len(corners)), axis=0)
        polygons.append(corners.ravel().tolist())
    return polygons


def test_polygons_are_drawn_as_pycocotools_draws_them():
    rng = np.random.default_rng(0)
    for _ in range(600):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        polygons = random_polygons(rng, height, width)
        np.testing.assert_array_equal(
            drawn(polygons, height, width), reference(polygons, height, width), str((polygons, height, width))
        )


def test_run_lengths_are_read_as_pycocotools_reads_them():
    mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(1)
    for _ in range(200):
        height, width = (int(side) for side in rng.integers(1, 80, 2))
        pixels = (rng.random((height, width)) < rng.choice([0, 0.01, 0.5, 1])).astype(np.uint8)
        compressed = mask.encode(np.asfortranarray(pixels))
        text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
        np.testing.assert_array_equal(drawn(text, height, width), pixels)
        edges = np.flatnonzero(np.diff(pixels.T.ravel(), prepend=0, append=2))
        counts = {"size": [height, width], "counts": np.diff(edges, prepend=0).tolist()}
        np.testing.assert_array_equal(drawn(counts, height, width), pixels)
        np.testing.assert_array_equal(reference(counts, height, width), pixels)


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the COCO sample is not on this machine")
def test_every_outline_of_real_annotations_is_drawn_as_pycocotools_draws_it():
    coco = json.loads(SAMPLE.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    for annotation in coco["annotations"]:
        size = sizes[annotation["image_id"]]
        outline = annotation["segmentation"]
        np.testing.assert_array_equal(drawn(outline, *size), reference(outline, *size), str(annotation["id"]))


def test_known_shapes_without_a_reference():
    square = [[1, 1, 4, 1, 4, 3, 1, 3]]
    expected = np.zeros((5, 6), np.uint8)
    expected[1:3, 1:4] = 1
    np.testing.assert_array_equal(drawn(square, 5, 6), expected)
    np.testing.assert_array_equal(drawn({"size": [5, 6], "counts": [6, 2, 3, 2, 3, 2, 12]}, 5, 6), expected)
    np.testing.assert_array_equal(drawn({"size": [5, 6], "counts": "6230009"}, 5, 6), expected)
    assert drawn([], 5, 6).sum() == 0
    assert drawn([[1, 1, 4, 4]], 5, 6).sum() == 0  # two corners
    both = drawn([*square, [3, 2, 6, 2, 6, 5, 3, 5]], 5, 6)
    assert both.sum() == 6 + 9 - 1  # what two parts share is counted once


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ({"size": [5, 5], "counts": [25]}, "are for height and width .5, 5., but the image has .5, 6."),
        ({"size": [5, 6], "counts": [29]}, "cover 29 pixels, but the image has 30"),
        ({"size": [5, 6], "counts": [40, -10]}, "cover 30 pixels"),
        ({"size": [5, 6], "counts": "6P"}, "end early"),
        ({"size": [5, 6], "counts": "0000"}, "cover 0 pixels"),  # pycocotools itself would show what lies in memory
        ({"size": [5, 6], "counts": "\u2603"}, "a character that they cannot hold"),
        ({"size": [5, 6]}, "counts of run lengths are NoneType"),
        ("6230", "expected a list of polygons"),
        ([1, 2, 3, 4, 5, 6], "expected a list of polygons"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], "finite numbers up to 100,000"),
    ],
)
def test_what_is_no_outline_is_refused(outline, message):
    with pytest.raises(ValueError, match=message):
        encode_outline(outline, 5, 6)


def test_a_polygon_beyond_the_image_covers_what_is_inside():
    assert drawn([[-50, -50, 90, -50, 90, 90, -50, 90]], 5, 6).all()
