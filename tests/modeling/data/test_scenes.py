import dataclasses
import hashlib
import math

import numpy as np
import pytest

from modeling_decodepos.data.scenes import (
    BACKGROUNDS,
    CLASS_NAMES,
    MIN_VISIBLE,
    SHAPES,
    TEXTURES,
    Background,
    SceneObject,
    SceneSpec,
    render_scene,
    sample_background,
    sample_object,
    sample_scene,
)

GREY = Background("uniform", ((128, 128, 128),) * 3)


def swap_object(spec, number, item):
    return dataclasses.replace(spec, objects=(*spec.objects[:number], item, *spec.objects[number + 1 :]))


def move_object(spec, number, center):
    return swap_object(spec, number, dataclasses.replace(spec.objects[number], center=center))


def only(spec, number):
    return dataclasses.replace(spec, objects=(spec.objects[number],))


def interior(scene, number):
    return scene.interior & (scene.instances == number + 1)


def one_of_each_class(size_px=40.0, center=(48.3, 50.71)):
    for index in range(len(CLASS_NAMES)):
        rng = np.random.default_rng([7, index])
        yield SceneSpec(96, sample_background(rng), (sample_object(rng, index, center, size_px),))


def test_a_scene_is_a_function_of_seed_and_index():
    assert sample_scene(3, 11) == sample_scene(3, 11)
    assert len({sample_scene(seed, index) for seed in (0, 1) for index in range(4)}) == 8
    spec = sample_scene(3, 11)
    np.testing.assert_array_equal(render_scene(spec).pixels, render_scene(spec).pixels)


def test_pixels_of_the_published_scenes_have_not_changed():
    # A change here needs a new SCENES_VERSION: data sets and results name scenes by (version, seed, index).
    digest = hashlib.sha256()
    for index in range(12):
        scene = render_scene(sample_scene(0, index, size_px=96))
        digest.update(scene.pixels.tobytes() + scene.boxes.tobytes() + scene.instances.tobytes())
    assert digest.hexdigest()[:16] == "e8c697f23d340fc8"


@pytest.mark.parametrize("step", [(13, -9), (-20, 4)])
def test_a_move_by_whole_pixels_keeps_every_byte_of_every_class(step):
    for spec in one_of_each_class():
        old = spec.objects[0].center
        before = render_scene(spec)
        after = render_scene(move_object(spec, 0, (old[0] + step[0], old[1] + step[1])))
        shift = (step[1], step[0])
        np.testing.assert_array_equal(np.roll(before.instances, shift, (0, 1)), after.instances)
        inside = interior(after, 0)
        assert inside.sum() > 0.5 * (after.instances == 1).sum()
        np.testing.assert_array_equal(np.roll(interior(before, 0), shift, (0, 1)), inside)
        np.testing.assert_array_equal(np.roll(before.pixels, shift, (0, 1))[inside], after.pixels[inside])
        np.testing.assert_allclose(after.boxes - before.boxes, [np.array([*step, *step]) / 96], atol=1e-6)


def test_a_moved_object_in_a_crowd_keeps_its_bytes_where_it_is_seen():
    compared = 0
    for index in range(30):
        spec = sample_scene(5, index)
        number = index % len(spec.objects)
        center = spec.objects[number].center
        before = render_scene(spec)
        after = render_scene(move_object(spec, number, (center[0] + 6, center[1] - 5)))
        both = np.roll(interior(before, number), (-5, 6), (0, 1)) & interior(after, number)
        np.testing.assert_array_equal(np.roll(before.pixels, (-5, 6), (0, 1))[both], after.pixels[both])
        compared += both.sum()
    assert compared > 20_000


def test_neither_background_nor_neighbours_reach_an_objects_interior():
    compared = 0
    for index in range(20):
        spec = sample_scene(6, index)
        full = render_scene(spec)
        other = render_scene(dataclasses.replace(spec, background=sample_background(np.random.default_rng(index))))
        assert (full.pixels != other.pixels)[full.instances == 0].mean() > 0.5
        np.testing.assert_array_equal(full.boxes, other.boxes)
        for number in range(len(spec.objects)):
            inside = interior(full, number)
            alone = render_scene(only(spec, number))
            np.testing.assert_array_equal(full.pixels[inside], other.pixels[inside])
            np.testing.assert_array_equal(full.pixels[inside], alone.pixels[inside])
            compared += inside.sum()
            assert inside.sum() > 0.4 * (full.instances == number + 1).sum()
    assert compared > 40_000


def test_boxes_are_the_tight_extent_of_the_whole_shape():
    hidden = 0
    for index in range(25):
        spec = sample_scene(2, index)
        scene = render_scene(spec)
        for number, box in enumerate(scene.boxes):
            alone = render_scene(only(spec, number))
            rows, columns = np.nonzero(alone.instances)
            extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / spec.size_px
            np.testing.assert_allclose(box, extent, atol=1e-6)
            rows, columns = np.nonzero(scene.instances == number + 1)
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / spec.size_px
            hidden += not np.allclose(box, seen, atol=1e-6)
    assert hidden > 10  # boxes of the visible part would pass everything but this


def test_boxes_follow_x_then_y_and_size():
    spec = SceneSpec(100, GREY, (SceneObject("square", "plain", ((250, 0, 0), (0, 0, 0)), (30.0, 60.0), 40.0),))
    x1, y1, x2, y2 = render_scene(spec).boxes[0] * 100
    np.testing.assert_allclose([(x1 + x2) / 2, (y1 + y2) / 2], [30, 60])
    np.testing.assert_allclose([x2 - x1, y2 - y1], [30, 30])  # half a side is 0.75 radii


def test_visible_is_the_share_of_pixels_seen():
    first = SceneObject("square", "plain", ((250, 0, 0), (0, 0, 0)), (50.0, 50.0), 40.0)
    half_over = dataclasses.replace(first, center=(65.0, 50.0), texture="striped")
    half_outside = dataclasses.replace(first, center=(0.0, 80.0))
    scene = render_scene(SceneSpec(100, GREY, (first, half_over, half_outside)))
    np.testing.assert_allclose(scene.visible, [0.5, 1.0, 0.5], atol=0.01)


def test_maps_agree_with_classes():
    for index in range(10):
        scene = render_scene(sample_scene(4, index))
        expected = np.concatenate([[0], scene.classes + 1])[scene.instances]
        np.testing.assert_array_equal(scene.segmentation, expected)
        assert set(np.unique(scene.instances)) == set(range(len(scene.classes) + 1))


def test_sampled_scenes_are_varied_balanced_and_readable():
    first, counts, sides, nested, overlapping = [], [], [], 0, 0
    for index in range(80):
        scene = render_scene(sample_scene(9, index, size_px=96))
        assert scene.visible.min() >= MIN_VISIBLE
        first.append(scene.classes[0])
        counts.append(len(scene.classes))
        boxes = scene.boxes
        sides += np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        shared = np.clip(high - low, 0, None).prod(-1)
        np.fill_diagonal(shared, 0)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        overlapping += (shared > 0).any()
        nested += (shared > 0.999 * areas[:, None]).any()
    assert set(counts) == set(range(2, 8))
    assert sorted(first) == sorted([*range(40), *range(40)])
    assert np.quantile(sides, 0.02) < 0.18
    assert np.quantile(sides, 0.98) > 0.45
    assert overlapping > 40
    assert 10 < nested < 60


def test_backgrounds_are_textured_and_the_uniform_one_is_not():
    for kind in BACKGROUNDS:
        colors = ((200, 190, 170), (150, 160, 150), (230, 225, 210))
        pixels = render_scene(SceneSpec(64, Background(kind, colors, seed=1), ())).pixels
        tiles = pixels.reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(64, -1)
        assert tiles.std(axis=1).min() > 0, kind
        assert pixels.std() > 3, kind
    thing = SceneObject("disc", "dotted", ((250, 0, 0), (0, 0, 0)), (30.0, 30.0), 20.0)
    scene = render_scene(SceneSpec(64, GREY, (thing,)))
    around = np.ones((64, 64), bool)
    around[18:43, 18:43] = False
    assert (scene.pixels[around] == 128).all()


def test_a_texture_turns_with_its_object():
    def changes(angle):
        thing = SceneObject("square", "striped", ((0, 0, 0), (255, 255, 255)), (48.0, 48.0), 80.0, angle, seed=3)
        middle = render_scene(SceneSpec(96, GREY, (thing,))).pixels[34:62, 34:62, 0].astype(float)
        return np.abs(np.diff(middle, axis=1)).mean(), np.abs(np.diff(middle, axis=0)).mean()

    across, along = changes(0.0)
    assert across > 5 * along
    across, along = changes(math.pi / 2)
    assert along > 5 * across


def test_swapping_puts_other_content_at_the_same_place():
    spec = sample_scene(1, 2)
    old = spec.objects[0]
    other = sample_object(np.random.default_rng(0), (old.class_index + 7) % len(CLASS_NAMES), old.center, old.size_px)
    scene = render_scene(swap_object(spec, 0, other))
    assert scene.classes[0] == other.class_index
    np.testing.assert_array_equal(scene.classes[1:], render_scene(spec).classes[1:])


def test_class_names_are_texture_and_shape():
    assert len(set(CLASS_NAMES)) == len(SHAPES) * len(TEXTURES) == 40
    for spec in one_of_each_class():
        thing = spec.objects[0]
        assert CLASS_NAMES[thing.class_index] == f"{thing.texture} {thing.shape}"


def test_bad_input_is_refused_with_what_was_expected():
    thing = SceneObject("disc", "plain", ((1, 2, 3), (4, 5, 6)), (20.0, 20.0), 10.0)
    spec = SceneSpec(64, GREY, (thing,))
    with pytest.raises(ValueError, match="shape is 'blob', expected one of disc"):
        dataclasses.replace(thing, shape="blob")
    with pytest.raises(ValueError, match="texture is"):
        dataclasses.replace(thing, texture="hairy")
    with pytest.raises(ValueError, match="integers from 0 to 255"):
        dataclasses.replace(thing, colors=((1, 2, 300), (4, 5, 6)))
    with pytest.raises(ValueError, match="finite"):
        dataclasses.replace(thing, center=(math.nan, 3.0))
    with pytest.raises(ValueError, match="at least 4 pixels"):
        dataclasses.replace(thing, size_px=0.0)
    with pytest.raises(ValueError, match="draws no pixel inside the 64 px image"):
        render_scene(move_object(spec, 0, (-40.0, 20.0)))
    with pytest.raises(ValueError, match="0 or more"):
        sample_scene(-1, 0)
