import dataclasses

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from modeling_decodepos.augmentations.background import replace_background
from modeling_decodepos.augmentations.region_cutout import cut_regions
from modeling_decodepos.augmentations.repositioning import reposition_foreground
from modeling_decodepos.losses import OBJECTIVES
from modeling_decodepos.regions import boxes_to_pixels
from training.recipe import ViewArguments
from training.views.colours import Photometric, apply_photometric, sample_photometric
from training.views.sampling import MEAN_COLOUR, VIEW_RULES, PixelSource, apply_view, read_pixels, sample_views

SIZE = (96, 128)
BOXES = np.array(
    [[0.1, 0.1, 0.5, 0.6], [0.2, 0.2, 0.4, 0.4], [0.5, 0.3, 0.9, 0.9], [0.3, 0.5, 0.7, 0.95], [0.0, 0.0, 0.3, 0.3]]
)
PLAIN = ViewArguments(
    view_size_px=64, jitter_probability=0, grayscale_probability=0, blur_probability=0, blur_probability_whole=0,
    solarize_probability=0, flip="none", crop_scale_min=1.0, crop_aspect=1.0,
)  # fmt: skip


SCENES = tuple(name for name, rule in VIEW_RULES.items() if not rule.alone)


def draw(seed: int, args: ViewArguments = PLAIN, names=SCENES, boxes=BOXES, size=SIZE):
    return sample_views(np.random.default_rng(seed), size, SIZE, boxes, names, args)


def image(seed: int, size=SIZE) -> np.ndarray:
    """A smooth random picture: resizing it does not alias."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def test_sizes_and_sources_are_those_of_the_figure():
    views = draw(0, ViewArguments())
    assert {name: view.size_px for name, view in views.items()} == {
        "whole": 224, "whole_cut": 224, "crop": 224, "crop_small": 112, "crop_cut_small": 112, "repositioned": 224,
        "plain": 224,
    }  # fmt: skip
    # x2, its small augmented copy and the moved foreground share one crop; x1 is the whole image.
    assert views["crop"].source.window == views["crop_cut_small"].source.window == views["repositioned"].source.window
    assert views["whole_cut"].source.window == (0, 0, 128, 96)
    assert [name for name, view in views.items() if view.cut is not None] == ["whole_cut", "crop_cut_small"]


def test_the_figures_share_of_cut_pixels_is_in_reach():
    """Figure: 39 % of x̂1 and 27 % of x̂2-small are cut, 10 to 47 % of a box, and cuts lie outside the boxes too."""
    shares, inside, outside = [], [], []
    for seed in range(120):
        for name in ("whole_cut", "crop_cut_small"):
            view = draw(seed, ViewArguments(), names=["whole_cut", "crop_cut_small"])[name]
            assert view.cut is not None
            union = np.zeros_like(view.cut)
            for x1, y1, x2, y2 in boxes_to_pixels(view.boxes[view.valid], view.cut.shape):
                inside.append(view.cut[y1:y2, x1:x2].mean())
                union[y1:y2, x1:x2] = True
            outside.append(view.cut[~union].mean())
            shares.append(view.cut.mean())
    assert 0.2 < np.mean(shares) < 0.4
    assert 0.2 < np.mean(inside) < 0.4
    assert np.mean(outside) > 0.1
    assert np.quantile(shares, 0.02) < 0.27 and np.quantile(shares, 0.98) > 0.39


def test_a_flip_mirrors_pixels_boxes_and_never_the_cut():
    args = dataclasses.replace(PLAIN, flip="own", cut_surroundings=False)
    picture = image(0)
    flips = set()
    for seed in range(12):
        view = draw(seed, args, names=["whole_cut"])["whole_cut"]
        flips.add(view.source.flip)
        unflipped = dataclasses.replace(view, source=dataclasses.replace(view.source, flip=False), cut=None)
        plain = apply_view(unflipped, picture)
        expected = plain.flip(2) if view.source.flip else plain
        shown = apply_view(view, picture)
        assert view.cut is not None
        assert torch.equal(shown[:, ~torch.from_numpy(view.cut)], expected[:, ~torch.from_numpy(view.cut)])
        # The cut was drawn for the boxes as they now lie: outside them nothing is gone.
        union = np.zeros_like(view.cut)
        for x1, y1, x2, y2 in boxes_to_pixels(view.boxes[view.valid], view.cut.shape):
            union[y1:y2, x1:x2] = True
        assert not (view.cut & ~union).any()
        assert view.cut.any()
    assert flips == {False, True}


@pytest.mark.parametrize("flip", ["own", "shared", "none"])
def test_flips_follow_the_key(flip: str):
    drawn = [draw(seed, dataclasses.replace(PLAIN, flip=flip)) for seed in range(40)]
    per_image = [{view.source.flip for view in views.values()} for views in drawn]
    if flip == "none":
        assert per_image == [{False}] * 40
    elif flip == "shared":
        assert all(len(flips) == 1 for flips in per_image)
        assert {True} in per_image and {False} in per_image
    else:
        assert sum(len(flips) == 2 for flips in per_image) > 30


def test_turns_are_drawn_for_each_view_alone_and_turn_the_pixels():
    args = dataclasses.replace(PLAIN, flip="own", quarter_turns=True)
    drawn = [draw(seed, args) for seed in range(40)]
    assert {view.source.quarters for views in drawn for view in views.values()} == {0, 1, 2, 3}
    assert sum(len({view.source.quarters for view in views.values()}) > 1 for views in drawn) > 30
    whole = drawn[0]["whole"]
    straight = apply_view(dataclasses.replace(whole, source=dataclasses.replace(whole.source, quarters=0)), image(0))
    for quarters in range(4):
        turned = dataclasses.replace(whole, source=dataclasses.replace(whole.source, quarters=quarters))
        assert torch.equal(apply_view(turned, image(0)), straight.rot90(quarters, (1, 2)))


def test_without_turns_views_draw_what_they_drew_before_there_were_any():
    still, turning = (draw(3, dataclasses.replace(PLAIN, quarter_turns=turns))["crop"] for turns in (False, True))
    assert still.source.quarters == 0
    assert (still.source.window, still.source.flip) == (turning.source.window, turning.source.flip)


@pytest.mark.parametrize("quarter_turns", [False, True])
def test_boxes_lie_on_the_same_pixels_in_every_view(quarter_turns: bool):
    """A marked region keeps its colour inside its box, whatever the view does to the image."""
    args = dataclasses.replace(
        PLAIN, flip="own", crop_scale_min=0.6, crop_aspect=4 / 3, cut_ratio_min=0, cut_ratio_max=0,
        quarter_turns=quarter_turns,
    )  # fmt: skip
    box = np.array([[0.3, 0.25, 0.6, 0.7]])
    picture = np.full((*SIZE, 3), 255, dtype=np.uint8)
    x1, y1, x2, y2 = (box[0] * [128, 96, 128, 96]).round().astype(int)
    picture[y1:y2, x1:x2] = 0
    black = np.zeros_like(picture) + 255
    for seed in range(20):
        for name, view in draw(seed, args, boxes=box).items():
            assert view.valid.tolist() == [True, False, False, False], name
            pixels = apply_view(view, picture, black)[0].numpy()
            centre = (view.boxes[0] * view.size_px).reshape(2, 2)
            inner = np.round(centre + np.array([[2, 2], [-2, -2]])).astype(int)
            assert pixels[inner[0, 1] : inner[1, 1], inner[0, 0] : inner[1, 0]].max() < 60, (name, seed)
            outer = np.ones_like(pixels, dtype=bool)
            low, high = np.floor(centre[0] - 2).astype(int).clip(0), np.ceil(centre[1] + 2).astype(int)
            outer[low[1] : high[1], low[0] : high[0]] = False
            assert pixels[outer].min() > 195, (name, seed)


def test_regions_keep_their_identity_across_views():
    """Undoing each view's geometry leads every valid box back to the same place in the image."""
    args = dataclasses.replace(PLAIN, flip="own", crop_scale_min=1.0)
    for seed in range(10):
        found = {}
        for name, view in draw(seed, args).items():
            boxes = view.boxes.astype(float)
            if view.placement is not None:
                corner = np.array([view.placement.left_px, view.placement.top_px] * 2)
                boxes = (boxes * view.size_px - corner) / view.placement.side_px
            if view.source.flip:
                boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
            found[name] = boxes[view.valid] if view.valid.all() else None
        complete = [boxes for boxes in found.values() if boxes is not None]
        for boxes in complete[1:]:
            np.testing.assert_allclose(boxes, complete[0], atol=1e-5)


def test_the_moved_view_shows_the_foreground_and_the_donor_and_nothing_else():
    picture, donor = image(1), image(2)
    for seed in range(4):
        view = draw(seed, names=["repositioned"])["repositioned"]
        assert view.placement is not None and view.background is not None and view.foreground is not None
        pixels = apply_view(view, picture, donor)
        place = view.placement
        window = torch.from_numpy(picture).permute(2, 0, 1)[None]
        foreground = F.interpolate(window, size=(place.side_px, place.side_px), mode="bilinear", antialias=True)[0]
        x1, y1, x2, y2 = view.background.window
        window = torch.from_numpy(donor[y1:y2, x1:x2].copy()).permute(2, 0, 1)[None]
        background = F.interpolate(window, size=(64, 64), mode="bilinear", antialias=True)[0]
        background = background.flip(2) if view.background.flip else background
        for y in range(64):
            for x in range(64):
                if view.foreground[y, x]:
                    expected = foreground[:, y - place.top_px, x - place.left_px]
                else:
                    expected = background[:, y, x]
                assert torch.equal(pixels[:, y, x], expected)
        # Foreground is inside the moved boxes only, and not everything inside them: cuts show the donor.
        union = np.zeros((64, 64), dtype=bool)
        for a, b, c, d in boxes_to_pixels(view.boxes[view.valid], (64, 64)):
            union[max(b - 1, 0) : d + 1, max(a - 1, 0) : c + 1] = True
        assert not (view.foreground & ~union).any()
        assert (union & ~view.foreground).any()


def test_views_are_what_the_librarys_functions_make():
    picture, donor = image(1), image(2)
    for seed in range(4):
        views = draw(seed, ViewArguments(view_size_px=64), names=["whole_cut", "repositioned"])
        cut, moved = views["whole_cut"], views["repositioned"]
        assert cut.cut is not None and moved.placement is not None and moved.background is not None
        assert moved.foreground is not None
        plain, foreground, background = (
            torch.from_numpy(read_pixels(source, pixels)).permute(2, 0, 1)
            for source, pixels in ((cut.source, picture), (moved.source, picture), (moved.background, donor))
        )
        assert torch.equal(apply_view(cut, picture), cut_regions(plain, cut.cut, MEAN_COLOUR))
        canvas = reposition_foreground(foreground, moved.placement, background)
        expected = replace_background(canvas, background, moved.foreground)
        assert torch.equal(apply_view(moved, picture, donor), expected)


def test_pixels_are_the_resize_of_a_plain_tensor():
    """The layout that makes it fast must not change it."""
    picture = image(3)
    for flip in (False, True):
        source = PixelSource((8, 4, 120, 90), 64, flip, Photometric())
        window = torch.from_numpy(picture[4:90, 8:120].copy()).permute(2, 0, 1)[None].contiguous()
        expected = F.interpolate(window, size=(64, 64), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        pixels = read_pixels(source, picture)
        assert np.array_equal(pixels, expected[:, ::-1] if flip else expected)
        assert pixels.flags.c_contiguous


def test_scaled_foregrounds_always_have_room_and_rigid_ones_may_not():
    full = np.array([[0.0, 0.0, 0.9, 1.0], [0.3, 0.1, 1.0, 0.8]])
    for kind, can_move in (("scaled", 1.0), ("paper", 0.0), ("none", 0.0)):
        args = dataclasses.replace(PLAIN, repositioning=kind, max_foreground=1.0)
        moves = [draw(s, args, names=["repositioned"], boxes=full)["repositioned"].placement for s in range(30)]
        assert np.mean([place.can_move for place in moves if place]) == can_move, kind


def test_a_foreground_that_fills_the_view_loses_its_largest_region():
    args = dataclasses.replace(PLAIN, repositioning="paper")
    boxes = np.array([[0.0, 0.0, 1.0, 1.0], [0.2, 0.2, 0.5, 0.6]])
    for seed in range(10):
        views = draw(seed, args, names=["crop", "repositioned"], boxes=boxes)
        whole = (views["crop"].boxes[:, 2:] - views["crop"].boxes[:, :2]).prod(1) > 0.99
        assert views["repositioned"].valid.tolist() == (views["crop"].valid & ~whole).tolist()


def test_mixed_share_leaves_the_view_out_and_touches_no_other():
    some = dataclasses.replace(PLAIN, mixed_share=0.25)
    drawn = [draw(seed, some) for seed in range(400)]
    assert 0.17 < np.mean(["repositioned" in views for views in drawn]) < 0.33
    for seed in range(10):
        everything, part = draw(seed, PLAIN), draw(seed, some)
        for name in set(everything) & set(part):
            np.testing.assert_array_equal(everything[name].boxes, part[name].boxes)


@pytest.mark.parametrize(
    "boxes", [np.zeros((0, 4)), np.array([[0.5, 0.5, 0.505, 0.505]]), np.array([[0.0, 0.0, 1.0, 1.0]])]
)
def test_an_image_without_usable_regions_still_gives_one(boxes: np.ndarray):
    args = dataclasses.replace(PLAIN, crop_scale_min=0.6)
    for seed in range(5):
        views = draw(seed, args, boxes=boxes)
        assert views["crop"].valid.tolist() == [True, False, False, False]
        assert views["whole"].valid.tolist() == [True, False, False, False]
        for view in views.values():
            assert torch.isfinite(apply_view(view, image(0), image(1)).float()).all()


def test_cut_probability_spares_whole_views():
    args = dataclasses.replace(PLAIN, cut_probability=0.5)
    spared = [not draw(seed, args, names=["whole_cut"])["whole_cut"].cut.any() for seed in range(200)]
    assert 0.4 < np.mean(spared) < 0.6


def test_patch_grid_cuts_whole_patches():
    args = dataclasses.replace(PLAIN, cut_grid_px=16)
    cut = draw(0, args, names=["whole_cut"])["whole_cut"].cut
    assert cut is not None
    patches = cut.reshape(4, 16, 4, 16).transpose(0, 2, 1, 3).reshape(16, 256)
    assert set(patches.mean(1)) == {0.0, 1.0}


def test_a_view_does_not_depend_on_which_others_are_drawn():
    for seed in range(5):
        everything = draw(seed, ViewArguments(), names=tuple(VIEW_RULES))
        for name in VIEW_RULES:
            alone = draw(seed, ViewArguments(), names=[name])[name]
            assert torch.equal(
                apply_view(alone, image(0), image(1)), apply_view(everything[name], image(0), image(1))
            ), name


def test_image_level_baseline_has_one_region_the_whole_view():
    for view in sample_views(
        np.random.default_rng(0), SIZE, SIZE, BOXES, OBJECTIVES["byol_image"].views, PLAIN, image_level=True
    ).values():
        assert view.valid.tolist() == [True, False, False, False]
        np.testing.assert_array_equal(view.boxes[0], [0, 0, 1, 1])


def painted(boxes: np.ndarray) -> np.ndarray:
    """White, with a colour of its own inside each box; none of the boxes overlap."""
    picture = np.full((*SIZE, 3), 255, dtype=np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes_to_pixels(boxes, SIZE)):
        picture[y1:y2, x1:x2] = (10 * number, 60 + number, 5)
    return picture


@pytest.mark.parametrize("flip", ["own", "shared"])
def test_alone_each_region_is_a_picture_with_nothing_from_outside_it(flip: str):
    apart = np.array([[0.0, 0.0, 0.3, 0.4], [0.42, 0.13, 0.81, 0.55], [0.1, 0.6, 0.35, 1.0], [0.6, 0.7, 1.0, 0.93]])
    args = dataclasses.replace(PLAIN, flip=flip, num_regions=5, alone_size_px=24, crop_scale_min=0.6)
    orders = set()
    for seed in range(12):
        views = draw(seed, args, names=["plain", "alone", "crop"], boxes=apart)
        alone, plain = views["alone"], views["plain"]
        pictures, scene = apply_view(alone, painted(apart)), apply_view(plain, painted(apart))
        assert pictures.shape == (5, 3, 24, 24)
        assert alone.valid.tolist() == plain.valid.tolist()
        assert (alone.boxes == [0, 0, 1, 1]).all()  # a picture is all of its region
        for box, picture, valid in zip(plain.boxes, pictures, alone.valid, strict=True):
            (column, row) = ((box[:2] + box[2:]) / 2 * plain.size_px).astype(int)
            colour = scene[:, row, column] if valid else torch.zeros(3, dtype=torch.uint8)
            assert (picture == colour[:, None, None]).all(), "one colour, that of the same region of the scene"
        orders.add(tuple(source.window for source in alone.alone))
    assert len(orders) > 3


def test_alone_a_region_is_the_resize_of_its_pixels_mirrored_as_its_scene():
    args = dataclasses.replace(ViewArguments(), flip="shared", alone_size_px=32)  # with the colours of other views
    picture, flips = image(6), set()
    for seed in range(12):
        views = draw(seed, args, names=["plain", "alone"])
        alone = views["alone"]
        for source, shown in zip(alone.alone, apply_view(alone, picture), strict=False):
            x1, y1, x2, y2 = source.window
            window = torch.from_numpy(picture[y1:y2, x1:x2].copy()).permute(2, 0, 1)[None]
            expected = F.interpolate(window, size=(32, 32), mode="bilinear", antialias=True)[0]
            assert torch.equal(shown, expected.flip(2) if views["plain"].source.flip else expected)
        flips.add(views["plain"].source.flip)
        plain = apply_view(views["plain"], picture)
        whole = torch.from_numpy(picture).permute(2, 0, 1)[None]
        expected = F.interpolate(whole, size=(224, 224), mode="bilinear", antialias=True)[0]
        assert torch.equal(plain, expected.flip(2) if views["plain"].source.flip else expected)
    assert flips == {False, True}


def test_cuts_have_the_colour_they_are_given():
    view = draw(0, names=["whole_cut"])["whole_cut"]
    pixels = apply_view(view, image(0), mean_colour=(1, 2, 3))
    assert (pixels[:, torch.from_numpy(view.cut)] == torch.tensor([[1], [2], [3]])).all()


def test_photometric_is_the_identity_when_nothing_is_drawn_and_leaves_its_input_alone():
    picture = image(4)
    before = picture.copy()
    assert np.array_equal(apply_photometric(picture, Photometric()), before)
    args = ViewArguments()
    for seed in range(30):
        treated = apply_photometric(picture, sample_photometric(np.random.default_rng(seed), args, seed % 2 == 0))
        assert treated.shape == picture.shape and treated.dtype == np.uint8
    assert np.array_equal(picture, before)


def test_jitter_agrees_with_pil():
    from PIL import ImageEnhance

    picture = image(5)
    pil = Image.fromarray(picture)
    for name, enhance, factor in [
        ("brightness", ImageEnhance.Brightness, 1.3),
        ("contrast", ImageEnhance.Contrast, 0.7),
        ("saturation", ImageEnhance.Color, 1.2),
    ]:
        ours = apply_photometric(picture, Photometric(jitter=((name, factor),))).astype(int)
        theirs = np.asarray(enhance(pil).enhance(factor)).astype(int)
        assert np.abs(ours - theirs).mean() < 1.0, name
    hue, saturation, value = pil.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(20))
    theirs = np.asarray(Image.merge("HSV", (turned, saturation, value)).convert("RGB")).astype(int)
    ours = apply_photometric(picture, Photometric(jitter=(("hue", 20.5 / 255),))).astype(int)
    assert np.abs(ours - theirs).mean() < 2.5


def test_the_whole_image_is_blurred_and_never_solarised():
    treatments = [sample_photometric(np.random.default_rng(s), ViewArguments(), True) for s in range(50)]
    assert all(t.blur_sigma > 0 and not t.solarize for t in treatments)
    others = [sample_photometric(np.random.default_rng(s), ViewArguments(), False) for s in range(400)]
    assert 0.05 < np.mean([t.blur_sigma > 0 for t in others]) < 0.15
    assert 0.14 < np.mean([t.solarize for t in others]) < 0.26


def test_a_negative_is_the_complement_and_drawn_as_often_as_asked_and_changes_no_other_draw():
    assert np.array_equal(apply_photometric(image(2), Photometric(invert=True)), 255 - image(2))
    args = dataclasses.replace(ViewArguments(), invert_probability=0.4)
    plain, negative = (
        [sample_photometric(np.random.default_rng(seed), each, False) for seed in range(400)]
        for each in (ViewArguments(), args)
    )
    assert not any(treatment.invert for treatment in plain)
    assert 0.3 < np.mean([treatment.invert for treatment in negative]) < 0.5
    assert [dataclasses.replace(treatment, invert=False) for treatment in negative] == plain
