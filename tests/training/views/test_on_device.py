"""`make_views` against `apply_view`: the two appliers of one set of drawn parameters."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

import training.pretrain as pretrain
import training.views.on_device as device_views
from modeling_decodepos.regions import View
from tests.real_data import COCO_MULTIOBJECT as DATA
from tests.training.runs import small_run
from tests.training.views.test_on_device_colours import picture
from training.data.batches import RegionDataset, StepBatches, build_loader
from training.data.sources import open_images
from training.recipe import Recipe, ViewArguments
from training.views.colours import Photometric
from training.views.on_device import PackedViews, make_views, pack_views
from training.views.sampling import VIEW_RULES, ViewParameters, apply_view, sample_views

NAMES = tuple(VIEW_RULES)
BOXES = np.array([[0.1, 0.1, 0.5, 0.6], [0.2, 0.2, 0.4, 0.4], [0.5, 0.3, 0.9, 0.9], [0.0, 0.0, 0.3, 0.3]])
Batch = tuple[list[np.ndarray], list[np.ndarray | None], list[dict[str, ViewParameters]]]


def photo(seed: int) -> np.ndarray:
    """A picture of some size between 50 and 200 pixels."""
    height, width = np.random.default_rng(seed).integers(50, 200, 2)
    return picture(seed, 200)[:height, -width:].copy()


def draw(args: ViewArguments, count: int = 6, names: Sequence[str] = NAMES, seed: int = 0) -> Batch:
    images = [photo(1000 * seed + index) for index in range(count)]
    donors = [photo(1000 * seed + 500 + index) for index in range(count)]
    parameters = [
        sample_views(np.random.default_rng([seed, row]), image.shape[:2], donor.shape[:2], BOXES, names, args)
        for row, (image, donor) in enumerate(zip(images, donors, strict=True))
    ]
    return images, list(donors), parameters


def compare(args: ViewArguments, batch: Batch, names: Sequence[str] = NAMES) -> dict[str, torch.Tensor]:
    """Differences in grey levels of each view, after everything else was found equal."""
    images, donors, parameters = batch
    packed = pack_views(images, donors, parameters, names, args)
    made = make_views(packed)
    assert list(made) == list(names)
    differences = {}
    for name, view in made.items():
        rows = [row for row, drawn in enumerate(parameters) if name in drawn]
        assert view.pixel_values.dtype == torch.uint8
        assert (list(range(len(images))) if view.rows is None else view.rows.tolist()) == rows
        for place, row in enumerate(rows):
            drawn = parameters[row][name]
            assert np.array_equal(view.boxes[place].numpy(), drawn.boxes)
            assert np.array_equal(view.valid_regions[place].numpy(), drawn.valid)
        expected = [apply_view(parameters[row][name], images[row], donors[row]) for row in rows]
        if expected:
            differences[name] = (view.pixel_values.int() - torch.stack(expected).int()).abs().float()
    return differences


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [64, 96, 224])
def test_views_agree_with_those_of_the_cpu_path(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: int):
    """float16 is what an accelerator multiplies in."""
    monkeypatch.setattr(device_views, "matmul_dtype", lambda device: dtype)
    args = ViewArguments(view_size_px=size, mixed_share=0.5)
    count = 3 if size == 224 else 8
    for name, difference in compare(args, draw(args, count, seed=size)).items():
        # One sample may be off by half a level: the mean grey of its contrast was just rounded the other way.
        assert difference.mean((1, 2, 3)).max() < 1, name
        assert difference.mean() < (0.1 if dtype == torch.float32 else 0.3), name
        far_off = (difference > 1).float().mean((1, 2, 3)).median()
        assert far_off < (0.001 if dtype == torch.float32 else 0.04), name


EXTREMES: dict[str, dict] = {
    "rigid": {"repositioning": "paper"},
    "in place": {"repositioning": "none", "cut_foreground": False},
    "tiny crops": {"crop_scale_min": 0.001, "crop_scale_max": 0.002, "crop_aspect": 30.0},
    "flat donor": {"donor": "mean"},
    "patches": {"cut_grid_px": 16, "flip": "shared"},
    "strong colours": {"jitter_probability": 1.0, "hue": 0.5, "brightness": 3.0, "contrast": 3.0, "saturation": 3.0},
    "blurred": {"blur_probability": 1.0, "grayscale_probability": 0.5, "solarize_probability": 1.0},
    "unaligned masks": {"view_size_px": 60, "small_view_scale": 0.7},
    "all mixed": {"mixed_share": 1.0},
}


@pytest.mark.parametrize("case", sorted(EXTREMES))
def test_extreme_settings_agree_too(case: str):
    args = ViewArguments(**{"view_size_px": 64, **EXTREMES[case]})
    for seed in range(2):
        images, donors, parameters = draw(args, 5, seed=seed)
        if args.donor == "mean":
            donors = [np.full((8, 8, 3), (124, 116, 104), dtype=np.uint8)] * 5
            inside = (0, 0, 8, 8)
            for drawn in parameters:
                view = drawn["repositioned"]
                assert view.background is not None
                background = dataclasses.replace(view.background, window=inside)
                drawn["repositioned"] = dataclasses.replace(view, background=background)
        for name, difference in compare(args, (images, donors, parameters)).items():
            # A level of difference grows with the factors that follow it, which go up to 4 here.
            assert difference.mean((1, 2, 3)).max() < 1, name
            assert difference.mean() < (0.3 if case == "strong colours" else 0.1), name


def test_without_jitter_no_value_is_off_by_more_than_a_level():
    """Nothing then enlarges a difference in rounding: crops, flips, blur, cuts and moves are the same, everywhere."""
    args = ViewArguments(view_size_px=64, jitter_probability=0.0, blur_probability=0.5, solarize_probability=0.5)
    for seed in range(3):
        for name, difference in compare(args, draw(args, seed=10 + seed)).items():
            assert difference.max() <= 1, name
            assert difference.mean() < 0.05, name


def test_one_pixel_windows_at_the_borders_agree():
    args = ViewArguments(view_size_px=64)
    images, _, parameters = draw(args, 4, names=["crop"])
    for image, drawn, (right, below) in zip(images, parameters, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        height, width = image.shape[:2]
        x, y = right * (width - 1), below * (height - 1)
        for window in ((x, 0, x + 1, height), (0, y, width, y + 1), (x, y, x + 1, y + 1)):
            source = dataclasses.replace(drawn["crop"].source, window=window, flip=True, colours=Photometric())
            view = dataclasses.replace(drawn["crop"], source=source)
            assert compare(args, ([image], [None], [{"crop": view}]), ["crop"])["crop"].max() <= 1


def test_a_batch_without_a_mixed_sample_keeps_the_view_with_no_rows():
    args = ViewArguments(view_size_px=64, mixed_share=0.0)
    images, _, parameters = draw(args, 3)
    packed = pack_views(images, [None] * 3, parameters, NAMES, args)
    assert packed.donors is None
    moved = make_views(packed)["repositioned"]
    assert moved.pixel_values.shape == (0, 3, 64, 64) and moved.pixel_values.dtype == torch.uint8
    assert moved.boxes.shape == (0, 4, 4) and moved.valid_regions.shape == (0, 4)
    assert moved.rows is not None and len(moved.rows) == 0


def test_a_view_does_not_depend_on_its_batch():
    args = ViewArguments(view_size_px=64, mixed_share=1.0)
    images, donors, parameters = draw(args, 5)
    together = make_views(pack_views(images, donors, parameters, NAMES, args))
    for row in range(5):
        alone = make_views(pack_views(images[row:][:1], donors[row:][:1], parameters[row:][:1], NAMES, args))
        for name in NAMES:
            difference = (alone[name].pixel_values[0].int() - together[name].pixel_values[row].int()).abs()
            assert difference.float().mean() < 0.01, name


def test_missing_donors_and_too_many_operations_are_told():
    args = ViewArguments(view_size_px=64)
    images, donors, parameters = draw(args, 2)
    with pytest.raises(ValueError, match="needs the donor's pixels; 1 of 2 samples lack them"):
        pack_views(images, [donors[0], None], parameters, NAMES, args)
    view = parameters[0]["crop"]
    colours = Photometric(jitter=(("hue", 0.1),) * 5)
    parameters[0]["crop"] = dataclasses.replace(view, source=dataclasses.replace(view.source, colours=colours))
    with pytest.raises(ValueError, match="5 jitter operations; there is room for 4"):
        pack_views(images, donors, parameters, NAMES, args)


def test_only_what_is_needed_is_uploaded():
    """The pixels of the images, of the donors of mixed samples, and little else."""
    args = ViewArguments(view_size_px=64, mixed_share=0.5)
    images, donors, parameters = draw(args, 8)
    packed = pack_views(images, donors, parameters, NAMES, args)
    lent = [
        donor for donor, drawn in zip(donors, parameters, strict=True) if "repositioned" in drawn and donor is not None
    ]
    assert 0 < len(lent) < 8
    pixels = sum(image.nbytes for image in [*images, *lent])
    assert pixels < packed.nbytes < pixels + 8 * 4000


def test_nothing_is_read_back_from_the_device():
    """On the meta device there are no values: whatever asks for one fails."""
    args = ViewArguments(view_size_px=64, mixed_share=0.5)
    packed = pack_views(*draw(args), NAMES, args)
    made = make_views(packed.to("meta"))
    for name, view in make_views(packed).items():
        assert made[name].pixel_values.is_meta
        assert made[name].pixel_values.shape == view.pixel_values.shape
        assert made[name].pixel_values.is_contiguous(memory_format=torch.channels_last)


# --- in the data path and in the step


def datasets_of_both_kinds(recipe: Recipe, names: Sequence[str] = NAMES) -> dict[str, RegionDataset]:
    source = open_images(recipe.data.data)
    return {
        kind: RegionDataset(source, dataclasses.replace(recipe.views, views_on=kind), list(names))
        for kind in ("workers", "device")
    }


@pytest.mark.parametrize("changes", [{}, {"donor": "mean"}, {"mixed_share": 0.4}])
def test_a_data_set_gives_the_same_batches_both_ways(make_recipe: Callable[..., Recipe], changes: dict):
    data = datasets_of_both_kinds(make_recipe(**changes))
    keys = [(3, index) for index in range(6)]
    ready, packed = data["workers"].__getitems__(keys), data["device"].__getitems__(keys)
    assert ready.packed is None and packed.views == {} and packed.packed is not None
    assert packed.indices == ready.indices
    assert torch.equal(packed.slack, ready.slack) and torch.equal(packed.can_move, ready.can_move)
    for name, made in make_views(packed.packed).items():
        assert_alike(made, ready.views[name], name)
    for pair in (("crop", "whole_cut"), ("repositioned", "crop")):
        assert torch.equal(pretrain.matched_regions(packed, *pair), pretrain.matched_regions(ready, *pair))


def assert_alike(made: View, expected: View, name: str) -> None:
    assert made.pixel_values.shape == expected.pixel_values.shape
    assert made.pixel_values.stride() == expected.pixel_values.stride()
    assert torch.equal(made.boxes, expected.boxes)
    assert torch.equal(made.valid_regions, expected.valid_regions)
    assert (made.rows is None) == (expected.rows is None)
    assert made.rows is None or torch.equal(made.rows, expected.rows)
    assert (made.pixel_values.int() - expected.pixel_values.int()).abs().float().mean() < 0.05, name


def test_packed_batches_come_through_a_worker(make_recipe: Callable[..., Recipe]):
    data = datasets_of_both_kinds(make_recipe(mixed_share=0.5))["device"]
    batches = StepBatches(length=24, global_batch_size=6, last_step=2)
    for keys, batch in zip(batches, build_loader(data, batches, 1, pin_memory=False), strict=True):
        here = data.__getitems__(keys).packed
        assert isinstance(batch.packed, PackedViews) and here is not None
        for name, view in make_views(batch.packed).items():
            assert torch.equal(view.pixel_values, make_views(here)[name].pixel_values)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_has_the_same_loss_both_ways(make_recipe: Callable[..., Recipe], accumulation: int):
    losses = []
    for kind in ("workers", "device"):
        run, data = small_run(make_recipe(views_on=kind, mixed_share=0.5, accumulation_steps=accumulation))
        keys = [(0, index) for index in range(8)]
        size = 8 // accumulation
        batches = [data.__getitems__(keys[at : at + size]) for at in range(0, 8, size)]
        losses.append(float(pretrain.training_step(run, batches)["loss"]))
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert losses[0] != 0


@pytest.mark.skipif(not DATA.is_dir(), reason="no folder with real photos")
def test_on_photos_the_views_differ_by_less_than_a_tenth_of_a_level():
    args = ViewArguments(mixed_share=0.5)
    keys = [(0, index) for index in range(0, 48, 8)]
    ready, packed = (
        RegionDataset(
            open_images(DATA, "validation"),
            dataclasses.replace(args, views_on=kind),
            ["whole_cut", "crop", "repositioned"],
        ).__getitems__(keys)
        for kind in ("workers", "device")
    )
    assert packed.packed is not None
    for name, view in make_views(packed.packed).items():
        difference = (view.pixel_values.int() - ready.views[name].pixel_values.int()).abs().float()
        assert difference.mean() < 0.1, name
        assert (difference <= 1).float().mean() > 0.999, name  # torch's 8-bit resize rounds as the processor suits it


# --- compiled, and on a GPU


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_compiles_as_one_graph():
    """The two views that between them take every path."""
    names = ("crop_cut_small", "repositioned")
    args = ViewArguments(view_size_px=64)
    packed = pack_views(*draw(args, 4, names), names, args)
    made = torch.compile(make_views, fullgraph=True, dynamic=False)(packed)
    for name, view in make_views(packed).items():
        difference = (view.pixel_values.int() - made[name].pixel_values.int()).abs().float()
        assert difference.mean() < 0.05, name
        assert made[name].pixel_values.stride() == view.pixel_values.stride()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_batches_of_other_shapes_need_no_other_compilation():
    args = ViewArguments(view_size_px=64, mixed_share=0.6)
    names = ("crop", "crop_small", "repositioned")
    with torch._dynamo.config.patch(error_on_recompile=False):
        make_views(pack_views(*draw(args, 7, names), names, args), compiled=True)
    torch._dynamo.utils.counters.clear()
    for seed in range(1, 6):
        with torch._dynamo.config.patch(error_on_recompile=True):
            batch = draw(args, 4 + seed, names, seed)
            packed = pack_views(*batch, names, args)
            for name, view in make_views(packed, compiled=True).items():
                expected = make_views(packed)[name]
                difference = (view.pixel_values.int() - expected.pixel_values.int()).abs().float()
                assert difference.mean() < 0.05, name


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True])
def test_views_agree_on_a_gpu(compiled: bool):
    args = ViewArguments(mixed_share=0.5)
    images, donors, parameters = draw(args, 16)
    packed = pack_views(images, donors, parameters, NAMES, args)
    on_device = packed.pin_memory().to("cuda")
    make_views(on_device, compiled)  # kernels are built and chosen with the host's help
    try:
        torch.cuda.set_sync_debug_mode("error")
        made = make_views(on_device, compiled)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, view in make_views(packed).items():
        difference = (view.pixel_values.int() - made[name].pixel_values.cpu().int()).abs().float()
        assert difference.mean((1, 2, 3)).max() < 0.5, name
        assert torch.equal(made[name].boxes.cpu(), view.boxes)
