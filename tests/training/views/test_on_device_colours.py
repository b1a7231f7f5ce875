import dataclasses
import itertools

import cv2
import numpy as np
import pytest
import torch

from training.recipe import ViewArguments
from training.views.colours import Photometric, apply_photometric, sample_photometric
from training.views.on_device_colours import (
    JITTER_CODES,
    blur_and_place,
    blur_taps,
    grey_of,
    hue_step,
    jitter_colours,
    solarize,
    turn_hue,
)
from training.views.sampling import PixelSource, ViewParameters, apply_view


def rows_first(image: np.ndarray) -> torch.Tensor:
    """(1, S, 3, S) float from (S, S, 3) uint8."""
    return torch.from_numpy(image.transpose(0, 2, 1).copy()).float()[None]


def picture(seed: int, side: int = 48) -> np.ndarray:
    """Smooth areas, edges and noise, with every extreme of colour in it."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    image[: len(noise), : len(noise)] = noise
    image[-4:] = 0
    image[:, -4:] = 255
    image[-8:-4, :8] = [255, 0, 0]
    return image


def jittered(image: np.ndarray, jitter: tuple[tuple[str, float], ...]) -> np.ndarray:
    codes = torch.tensor([[JITTER_CODES[name] for name, _ in jitter]])
    factors = torch.tensor([[hue_step(f) if name == "hue" else f for name, f in jitter]], dtype=torch.float32)
    found = jitter_colours(rows_first(image), codes, factors, torch.tensor([float(len(image))]))
    return found[0].transpose(1, 2).numpy()


def difference(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    assert found.shape == expected.shape
    assert np.array_equal(found, found.astype(np.uint8)), "not whole numbers from 0 to 255"
    return np.abs(found.astype(int) - expected.astype(int))


# As they are drawn: not round. A round one makes many products whole numbers, and which of them the CPU path truncates
# to the level below is then up to the last bit of a float64.
FACTORS = [0.0, 0.3712, 0.6013, 1.0, 1.2007, 1.3991, 10.9871]


@pytest.mark.parametrize("name", sorted(JITTER_CODES))
def test_each_operation_is_that_of_the_cpu_path(name: str):
    factors = [-0.5, -0.1, -0.004, 0.0, 0.003, 0.1, 0.5] if name == "hue" else FACTORS
    for seed, factor in enumerate(factors):
        image = picture(seed)
        wrong = difference(
            jittered(image, ((name, factor),)), apply_photometric(image, Photometric(jitter=((name, factor),)))
        )
        assert wrong.max() <= 1, factor
        assert (wrong > 0).mean() < 0.005, factor


def test_hue_agrees_on_a_sample_of_all_colours_at_every_step():
    levels = np.array([0, 1, 2, 40, 85, 127, 128, 170, 213, 254, 255], dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    image = np.concatenate([colours, np.zeros((37 * 37 - len(colours), 3), dtype=np.uint8)]).reshape(37, 37, 3)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    for step in range(256):
        turned = hsv.copy()
        turned[..., 0] += np.uint8(step)
        expected = cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL)
        found = turn_hue(rows_first(image), torch.tensor(float(step)))[0].transpose(1, 2).numpy()
        wrong = difference(found, expected)
        assert wrong.max() <= 1, step
        assert (wrong > 0).mean() < 0.001, step


def test_grey_and_solarisation_are_exact():
    image = picture(0)
    grey = grey_of(rows_first(image))[0, :, 0].numpy()
    assert np.array_equal(grey, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    found = solarize(rows_first(image))[0].transpose(1, 2).numpy()
    assert np.array_equal(found, apply_photometric(image, Photometric(solarize=True)))


def test_every_order_of_the_operations_is_kept():
    strong = {"brightness": 1.3991, "contrast": 0.6013, "saturation": 1.2007, "hue": 0.1}
    image, results = picture(1), []
    for order in itertools.permutations(strong):
        jitter = tuple((name, strong[name]) for name in order)
        expected = apply_photometric(image, Photometric(jitter=jitter))
        assert difference(jittered(image, jitter), expected).mean() < 0.02, order
        results.append(expected.tobytes())
    assert len(set(results)) > 12  # the order matters, or this tests nothing


def test_samples_of_a_batch_keep_to_themselves():
    """Each with its own operations, its own number of them, and its own side."""
    jitters = [
        (),
        (("contrast", 0.6013), ("contrast", 1.3991)),
        (("hue", 0.1), ("brightness", 0.7031)),
        (("saturation", 1.2007), ("contrast", 1.3991), ("hue", -0.1)),
    ]
    sides = [48, 20, 48, 31]
    batch, codes, factors = torch.zeros(4, 48, 3, 48), torch.zeros(4, 4), torch.zeros(4, 4)
    images = [picture(seed, side) for seed, side in enumerate(sides)]
    for row, (image, jitter) in enumerate(zip(images, jitters, strict=True)):
        batch[row, : len(image), :, : len(image)] = rows_first(image)[0]
        for slot, (name, factor) in enumerate(jitter):
            codes[row, slot] = JITTER_CODES[name]
            factors[row, slot] = hue_step(factor) if name == "hue" else factor
    found = jitter_colours(batch, codes, factors, torch.tensor(sides).float())
    for square, image, jitter, side in zip(found, images, jitters, sides, strict=True):
        expected = apply_photometric(image, Photometric(jitter=jitter))
        assert difference(square[:side, :, :side].transpose(1, 2).numpy(), expected).mean() < 0.02, jitter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("side", [16, 64, 96])
def test_blur_is_opencvs(side: int, dtype: torch.dtype):
    image = picture(2, side)
    for sigma in (0.01, 0.1, 0.3, 0.5, 0.86, 1.0, 1.37, 2.0):
        expected = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
        taps = torch.from_numpy(blur_taps(sigma)).float()[None]
        assert float(taps[0, 0] + 2 * taps[0, 1:].sum()) == 1
        numbers = (torch.tensor([float(n)]) for n in (side, 0, 0))
        found = blur_and_place(rows_first(image).to(dtype), taps, *numbers)[0].transpose(1, 2).float().numpy()
        wrong = difference(found, expected)
        assert wrong.max() <= 1, sigma
        assert wrong.mean() < (0.002 if dtype == torch.float32 else 0.1), sigma


@pytest.mark.parametrize("corner", [(0, 0), (7, 3), (-6, 4), (12, -5), (-30, -30), (28, 28), (-5, 40), (100, 0)])
def test_a_blurred_picture_lands_where_it_is_placed(corner: tuple[int, int]):
    image = picture(3, 30)
    blurred = cv2.GaussianBlur(image, (0, 0), 1.3, borderType=cv2.BORDER_REFLECT_101)
    square = torch.full((1, 40, 3, 40), 99.0)  # what lies beside the picture must not leak in
    square[0, :30, :, :30] = rows_first(image)[0]
    left, top = corner
    taps = torch.from_numpy(blur_taps(1.3)).float()[None]
    found = blur_and_place(square, taps, torch.tensor([30.0]), torch.tensor([float(left)]), torch.tensor([float(top)]))
    for y in range(40):
        for x in range(40):
            inside = 0 <= y - top < 30 and 0 <= x - left < 30
            expected = blurred[y - top, x - left] if inside else np.zeros(3)
            assert np.abs(found[0, y, :, x].numpy() - expected).max() <= 1


def test_no_blur_is_the_identity():
    image = rows_first(picture(4))
    zero = torch.zeros(1)
    assert blur_taps(0.0).tolist() == [1.0]
    for taps in (torch.ones(1, 1), torch.tensor([[1.0, 0.0, 0.0]])):
        assert torch.equal(blur_and_place(image, taps, torch.tensor([48.0]), zero, zero), image)


def test_random_treatments_agree_through_the_whole_chain():
    from training.views.on_device import _pack_sources, read_squares

    args = ViewArguments(blur_probability=0.5, hue=0.5, saturation=1.0, solarize_probability=0.5)
    for seed in range(24):
        image = picture(seed, 64)
        treatment = sample_photometric(np.random.default_rng(seed), args, seed % 2 == 0)
        source = PixelSource((0, 0, 64, 64), 64, False, treatment)
        found = read_squares(rows_first(image), _pack_sources([source], [(0, 0)], 64), 64)[0].transpose(1, 2).numpy()
        wrong = difference(found, apply_photometric(image, treatment))
        assert wrong.mean() < 0.1, dataclasses.asdict(treatment)
        view = ViewParameters(64, source, np.zeros((0, 4)), np.zeros(0, dtype=bool))
        assert np.array_equal(apply_view(view, image).permute(1, 2, 0).numpy(), apply_photometric(image, treatment))
