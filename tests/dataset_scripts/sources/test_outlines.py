"""pycocotools is the reference: every pixel must agree with it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

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


# -------------------------------------------------------------------------------------------------- any mask, any JSON


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.lists(st.integers(1, 40)))
def test_any_mask_comes_back_from_its_run_lengths(size, runs):
    height, width = size
    cells = np.repeat(np.arange(len(runs)) % 2, runs)[: height * width]
    pixels = np.pad(cells, (0, height * width - len(cells))).astype(np.uint8).reshape(size, order="F")
    lengths = np.diff(np.flatnonzero(np.diff(pixels.ravel("F"), prepend=0, append=2)), prepend=0).tolist()
    text = coco_mask.encode(np.asfortranarray(pixels))["counts"].decode()
    for counts in (lengths, text):
        np.testing.assert_array_equal(drawn({"size": [height, width], "counts": counts}, height, width), pixels)


numbers = st.integers() | st.integers(-9, 20) | st.floats(-9, 20) | st.floats() | st.just(10**400)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text("a6☃", max_size=5),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(["size", "counts", "a"]), inner),
    max_leaves=12,
)
run_lengths = st.fixed_dictionaries(
    {"size": st.just([5, 6]) | json_values, "counts": st.text("0123456789PQo`") | json_values}
)
corners = st.integers(-9, 20) | st.floats(-9, 20)
polygons = st.lists(st.lists(corners, max_size=10) | st.lists(corners | numbers, max_size=10), max_size=3)


@settings(max_examples=150)
@given(json_values | run_lengths | polygons)
def test_any_outline_is_a_mask_or_a_sentence(outline):
    try:
        encoded = encode_outline(outline, 5, 6)
    except ValueError as refused:
        said = str(refused)
        assert said.startswith(("the outline is", "a polygon", "run lengths", "the counts", "compressed run"))
        return
    covered = outline_mask(encoded)
    assert covered.shape == (5, 6) and covered.sum() == coco_mask.area(encoded)
    if isinstance(outline, list):  # polygons: nothing beyond the box of their corners
        corners = np.concatenate([np.zeros((0, 2)), *(np.reshape(p, (-1, 2)) for p in outline if len(p) >= 6)])
        rows, columns = np.nonzero(covered)
        for cells, side in ((columns, corners[:, 0]), (rows, corners[:, 1])):
            assert not len(cells) or (side.min() - 1 <= cells.min() and cells.max() <= side.max())
