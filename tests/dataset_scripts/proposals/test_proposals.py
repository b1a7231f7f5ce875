"""Providers of regions: what they find, what they refuse, and that they repeat."""

import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_scripts.proposals import PROVIDERS, Proposals, add_regions, propose, recipe_of
from dataset_scripts.proposals.geometric import map_masks
from dataset_scripts.proposals.inputs import ProposalInput
from dataset_scripts.proposals.segments import segment_boxes, segment_image
from dataset_scripts.proposals.selective import FULL, keep_useful
from tests.dataset_scripts.proposals.pictures_of_regions import clutter, encode, grainy, noise, row, shapes

ROOT = Path(__file__).parents[3]
SEARCHES = ("selective", "selective_320", "felzenszwalb")


def picture(encoded=None, size=(240, 180), encoded_map=None):
    return ProposalInput(*size, np.zeros((0, 4), np.float32), np.random.default_rng(0), encoded, encoded_map)


def regions(pixels, provider="selective", **options):
    height, width = np.asarray(pixels).shape[:2]
    boxes, _ = propose(provider, width, height, [], np.random.default_rng(0), encode(pixels, **options))
    return boxes


def overlap(boxes, wanted):
    x, y, w, h = np.asarray(boxes, float).T
    a, b, c, d = wanted
    common = (np.minimum(x + w, a + c) - np.maximum(x, a)).clip(0) * (
        np.minimum(y + h, b + d) - np.maximum(y, b)
    ).clip(0)
    return common / (w * h + c * d - common)


# --- what is found


def test_selective_finds_an_object_of_two_colours_that_no_segment_is():
    whole, alone = (30, 40, 100, 100), (160, 60, 65, 90)
    pixels = grainy(shapes())
    found, segments = regions(pixels), regions(pixels, "felzenszwalb")
    assert overlap(found, whole).max() > 0.9
    assert overlap(found, alone).max() > 0.9
    assert overlap(segments, whole).max() < 0.7
    assert overlap(segments, alone).max() > 0.9


def test_selective_gives_each_box_once():
    found = regions(clutter())
    assert len(found) > 5
    assert len(np.unique(found, axis=0)) == len(found)


@pytest.mark.parametrize("provider", SEARCHES)
@pytest.mark.parametrize("size", [(1, 1), (2, 1000), (1000, 2), (31, 31), (640, 40), (200, 150)])
def test_searches_take_every_size(provider, size):
    width, height = size
    found = regions(noise(width, height), provider)
    assert found.dtype == np.float32
    assert len(found) >= 1
    assert (found[:, :2] >= 0).all() and (found[:, 2:] > 0).all()
    assert (found[:, 0] + found[:, 2] <= width + 1e-3).all()
    assert (found[:, 1] + found[:, 3] <= height + 1e-3).all()


@pytest.mark.parametrize("provider", SEARCHES)
def test_where_nothing_stands_out_the_whole_image_is_the_region(provider):
    uniform = np.full((120, 200, 3), 128, np.uint8)
    np.testing.assert_array_equal(regions(uniform, provider), [[0, 0, 200, 120]])


def test_grey_pictures_count_as_grey_colours():
    grey = cv2.cvtColor(shapes(), cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(regions(grey), regions(np.repeat(grey[..., None], 3, axis=2)))


def test_the_fast_search_is_the_full_one_on_a_small_image():
    small, large = clutter(300, 200), clutter(640, 480)
    np.testing.assert_array_equal(regions(small, "selective_320"), regions(small))
    fast, full = regions(large, "selective_320"), regions(large)
    assert not np.array_equal(fast, full)
    assert np.median([overlap(fast, box).max() for box in full]) > 0.85  # about the same, in the same pixels


def test_ten_thousand_annotated_boxes():
    boxes = np.random.default_rng(0).uniform(1, 50, (10_000, 4))
    entry = row(encode(shapes()), 240, 180, boxes.tolist())
    assert len(add_regions(entry, "boxes")["regions"]["bbox"]) == 10_000
    assert add_regions(entry, "selective")["regions"]["bbox"] == regions(shapes()).tolist()


def test_a_crowd_is_no_region():
    entry = row(encode(shapes()), 240, 180, [[1, 2, 30, 40], [0, 0, 200, 100]], crowd=[False, True])
    assert add_regions(entry, "boxes")["regions"]["bbox"] == [[1, 2, 30, 40]]


def test_what_is_drawn_while_training_stays_as_it_was():
    """Runs go on from checkpoints, and their random regions with them."""
    boxes, _ = propose("random", 100, 80, [], np.random.default_rng(0))
    np.testing.assert_array_equal(
        boxes[:2],
        np.array(
            [
                [6.914679050445557, 4.24225378036499, 48.816741943359375, 29.506200790405273],
                [55.336219787597656, 48.2924690246282, 23.302684783935547, 22.00107192993164],
            ],
            np.float32,
        ),
    )


# --- the filter


def test_the_filter_gives_way_step_by_step():
    good, slim, tiny = [10, 10, 100, 80], [0, 0, 200, 50], [0, 0, 40, 35]
    speck = [3, 3, 20, 200]

    def kept(*boxes):
        return keep_useful(np.array(boxes, float), 240, 180).tolist()

    assert kept(good, slim, tiny, speck) == [good]
    assert kept(slim, tiny, speck) == [tiny]
    assert kept(slim, speck) == [slim]
    assert kept(speck) == [[0, 0, 240, 180]]
    assert kept([0, 0, 240, 180], slim) == [[0, 0, 240, 180]]  # too large, but not long


# --- pixels


def test_a_huge_image_is_never_held_at_full_size():
    """In a process of its own, whose greatest use of memory tells."""
    script = """
import io, resource, sys
import numpy as np
from PIL import Image
from dataset_scripts.proposals import propose
propose("selective", 64, 64, [], np.random.default_rng(0), open(sys.argv[1], "rb").read())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
boxes, _ = propose("selective_320", 9500, 9400, [], np.random.default_rng(0), open(sys.argv[2], "rb").read())
assert boxes[:, 2].max() > 2400
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    encoded = encode(noise(64, 64), "JPEG")
    huge = io.BytesIO()
    Image.fromarray(shapes()).resize((9500, 9400), Image.Resampling.NEAREST).save(huge, "JPEG")
    used = int(in_new_process(script, encoded, huge.getvalue()))
    assert used < 100  # MB; the picture itself has 268


def in_new_process(script, *files):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, str(number)) for number in range(len(files))]
        for path, content in zip(paths, files, strict=True):
            path.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, paths)], cwd=ROOT, check=True, capture_output=True, text=True
        )
    return done.stdout


def test_another_process_finds_the_same():
    script = """
import json, sys
import numpy as np
from dataset_scripts.proposals import propose
encoded = open(sys.argv[1], "rb").read()
found = [propose(name, 640, 480, [], np.random.default_rng(0), encoded)[0].tolist()
         for name in ("selective", "selective_320", "felzenszwalb")]
print(json.dumps(found))
"""
    encoded = encode(clutter(640, 480), "JPEG")
    here = [propose(name, 640, 480, [], np.random.default_rng(0), encoded)[0].tolist() for name in SEARCHES]
    assert json.loads(in_new_process(script, encoded)) == here


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_lie_in_the_picture_as_people_see_it(orientation):
    pixels = np.zeros((96, 160, 3), np.uint8)
    pixels[:48, :80] = (255, 60, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(pixels, "JPEG", exif=exif, quality=95)
    size = (160, 96) if orientation < 5 else (96, 160)
    seen = picture(encoded, size).pixels(1000)
    assert seen.shape[1::-1] == size
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    halves = seen[..., 0].reshape(2, size[1] // 2, 2, size[0] // 2).mean(axis=(1, 3))
    assert np.unravel_index(halves.argmax(), (2, 2)) == corner
    small = picture(encoded, size).pixels(40)
    assert max(small.shape) == 40
    if orientation >= 5:  # annotations of the stored pixels
        stored = picture(encoded, (160, 96)).pixels(1000)
        assert stored[20, 20, 0] > 200


def test_sixteen_bits_keep_their_brightness():
    levels = (np.arange(256)[None].repeat(64, 0) << 8).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    seen = picture(file.getvalue(), (256, 64)).pixels(300)
    np.testing.assert_array_equal(seen[0, :, 0], np.arange(256))


def test_an_image_of_another_size_is_refused_by_name():
    with pytest.raises(ValueError, match="240 x 180 px, but its data set says 100 x 50") as caught:
        add_regions(row(encode(shapes()), 100, 50), "selective")
    assert caught.value.__notes__ == ["This was image 'a'."]
    with pytest.raises(ValueError, match="no bytes"):
        propose("selective", 100, 50, [], np.random.default_rng(0))


@pytest.mark.parametrize("provider", SEARCHES)
def test_a_broken_image_is_refused_by_name(provider):
    whole = encode(clutter(), "JPEG")
    for broken in (whole[: len(whole) // 2], b"<html>404</html>"):
        with pytest.raises(ValueError, match="cannot be decoded") as caught:
            add_regions(row(broken, 200, 150), provider)
        assert caught.value.__notes__ == ["This was image 'a'."]


def test_a_picture_that_unpacks_to_far_too_much_is_refused_undecoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="cannot be decoded.*decompression bomb"):
        add_regions(row(encode(shapes()), 240, 180), "selective")


# --- maps


def test_masks_are_the_parts_of_every_class():
    classes = np.zeros((180, 240), np.uint8)
    classes[10:60, 20:100] = 3
    classes[10:60, 100:150] = 4  # touches, another class
    classes[100:150, 20:60] = 3  # the same class, elsewhere
    classes[150:170, 60:90] = 3  # touches at a corner
    classes[5, 5] = 7  # a crumb
    classes[170:, 200:] = 255
    boxes, scores = map_masks(picture(encoded_map=encode(classes)))
    assert scores is None
    assert sorted(boxes.tolist()) == [[20, 10, 80, 50], [20, 100, 70, 70], [100, 10, 50, 50]]
    found = add_regions(row(encode(shapes()), 240, 180, segmentation=encode(classes)), "masks")["regions"]
    assert found["bbox"] == boxes.tolist()
    assert found["source"] == ["masks"] * 3


def test_without_a_map_there_are_no_masks():
    found = add_regions(row(encode(shapes()), 240, 180), "masks")["regions"]
    assert found == {"bbox": [], "score": None, "source": []}
    assert len(map_masks(picture(encoded_map=encode(np.zeros((180, 240)))))[0]) == 0


@pytest.mark.parametrize("wrong", [np.zeros((180, 239)), np.zeros((180, 240, 3))])
def test_a_map_of_another_kind_is_refused(wrong):
    with pytest.raises(ValueError, match="expected one 8-bit channel of 240 x 180 px"):
        map_masks(picture(encoded_map=encode(wrong)))


# --- names and settings


def test_names_are_checked():
    for name in PROVIDERS:
        recipe_of(name)
    with pytest.raises(ValueError, match="'magic', expected one of boxes, random, grid, none"):
        recipe_of("magic")
    with pytest.raises(ValueError, match="mask_model is 'x' and proposals is 'grid'"):
        Proposals("grid", mask_model="x")


def test_the_recipe_says_what_decides_the_boxes_and_no_more():
    assert recipe_of("grid") == "grid"
    full, fast = recipe_of("selective"), recipe_of("selective_320")
    assert full != fast
    assert full["settings"] == {"side_limit_px": 1024, "scale": 300.0, "sigma": 0.9, "min_size": 100}
    assert recipe_of(Proposals("selective", cache="somewhere")) == full
    json.dumps([full, fast])


def test_an_opencv_without_its_extra_modules_is_named(monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc")
    recipe_of("grid")
    with pytest.raises(ValueError, match="without its module ximgproc.*opencv-contrib-python-headless"):
        recipe_of("selective")


def test_segment_boxes_are_tight():
    labels = segment_image(noise(120, 90), FULL)
    assert labels.max() > 3
    for number, (left, top, right, bottom) in enumerate(segment_boxes(labels)):
        ys, xs = np.nonzero(labels == number)
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (left, top, right, bottom)


# --- of any picture


pixel_counts = st.integers(1, 30) | st.integers(1, 100_000)
sides = st.floats(-50, 200, width=32)


@given(
    st.sampled_from(["boxes", "random", "grid", "none"]),
    st.tuples(pixel_counts, pixel_counts),
    st.lists(st.tuples(sides, sides, sides, sides), max_size=4),
    st.integers(0, 2**32),
)
def test_regions_of_any_size_lie_in_their_picture(provider, size, annotated, seed):
    boxes, scores = propose(provider, *size, annotated, np.random.default_rng(seed))
    again, _ = propose(provider, *size, annotated, np.random.default_rng(seed))
    np.testing.assert_array_equal(boxes, again)
    assert boxes.dtype == np.float32 and boxes.shape[1:] == (4,) and scores is None
    rounding = 1e-6 * max(size)
    x, y, width, height = boxes.astype(float).T
    assert (x >= 0).all() and (y >= 0).all() and (width > 0).all() and (height > 0).all()
    assert (x + width <= size[0] + rounding).all() and (y + height <= size[1] + rounding).all()
    if provider == "boxes":  # as much of each as the picture shows
        shown = [
            (max(x, 0), max(y, 0), min(x + w, size[0]) - max(x, 0), min(y + h, size[1]) - max(y, 0))
            for x, y, w, h in annotated
        ]
        kept = [box for box in shown if min(box[2:]) > 1e-4]
        assert len(kept) <= len(boxes) <= sum(min(box[2:]) > -1e-4 for box in shown)
        if len(kept) == len(boxes):
            np.testing.assert_allclose(boxes, np.reshape(kept, (-1, 4)), atol=1e-3)


@settings(max_examples=25)
@given(st.sampled_from(SEARCHES), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_searches_find_whole_pixels_of_any_picture(provider, width, height, seed):
    pixels = np.random.default_rng(seed).choice(np.uint8([0, 90, 255]), (height, width, 3))
    boxes = regions(pixels, provider)
    np.testing.assert_array_equal(boxes, regions(pixels, provider))
    x, y, w, h = boxes.T
    assert len(boxes) and (x >= 0).all() and (y >= 0).all() and (w >= 1).all() and (h >= 1).all()
    assert (x + w <= width).all() and (y + h <= height).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
