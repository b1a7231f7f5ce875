import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.views.on_device_resize import resize_weights, resize_windows, round_half_up, unpack_images

LENGTHS_AND_SIDES = [(1, 1), (1, 7), (2, 5), (5, 5), (7, 3), (13, 1), (40, 39), (39, 40), (100, 16), (64, 16), (9, 64)]


def weights(start: int, end: int, side: int, size: int, length: int, flip: bool = False) -> torch.Tensor:
    numbers = (torch.tensor([float(number)]) for number in (start, end, side))
    return resize_weights(*numbers, torch.tensor([flip]), size, length)[0]


@pytest.mark.parametrize(("length", "side"), LENGTHS_AND_SIDES)
def test_weights_are_those_of_torchs_antialiased_resize(length: int, side: int):
    # One picture per pixel that is on, two pixels wide: torch 2.13 resizes pictures of width 1 wrongly.
    pictures = torch.eye(length, dtype=torch.float64)[None, :, :, None].expand(1, length, length, 2)
    expected = F.interpolate(pictures, size=(side, 2), mode="bilinear", antialias=True)[0, :, :, 0].T
    torch.testing.assert_close(weights(0, length, side, side, length).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "side"), LENGTHS_AND_SIDES)
def test_a_window_and_a_smaller_square_are_blocks_of_the_weights(length: int, side: int):
    alone = weights(0, length, side, side, length)
    inside = weights(11, 11 + length, side, side + 3, length + 20)
    torch.testing.assert_close(inside[:side, 11 : 11 + length], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.sum(1), (torch.arange(side + 3) < side).float())  # nothing outside the window
    mirrored = weights(11, 11 + length, side, side + 3, length + 20, flip=True)
    torch.testing.assert_close(mirrored[:side], inside[:side].flip(0), atol=1e-5, rtol=0)
    assert not mirrored[side:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_windows_come_out_as_from_the_8_bit_resize(dtype: torch.dtype):
    """Noise, and an image of black and white pixels, where one level off after the first pass may become two."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    images = [noise, np.where(noise < 128, 0, 255).astype(np.uint8)]
    cases = [
        ((0, 0, 70, 90), 48), ((0, 0, 70, 90), 13), ((5, 7, 6, 8), 48), ((69, 0, 70, 90), 48), ((0, 89, 70, 90), 48),
        ((10, 10, 14, 50), 48), ((10, 20, 58, 68), 48), ((60, 80, 70, 90), 31), ((1, 2, 65, 88), 2),
    ]  # fmt: skip
    for image in images:
        for flip in (False, True):
            count = len(cases)
            batch = torch.from_numpy(image).permute(0, 2, 1).to(dtype).expand(count, 90, 3, 70)
            windows = torch.tensor([window for window, _ in cases], dtype=torch.float32)
            sides = torch.tensor([side for _, side in cases], dtype=torch.float32)
            found = resize_windows(batch, windows, sides, torch.full((count,), flip), 48)
            for square, ((x1, y1, x2, y2), side) in zip(found, cases, strict=True):
                window = torch.from_numpy(image[y1:y2, x1:x2]).permute(2, 0, 1)[None]
                expected = F.interpolate(window, size=(side, side), mode="bilinear", antialias=True)[0]
                expected = expected.flip(2) if flip else expected
                difference = (square[:side, :, :side].transpose(0, 1).float() - expected).abs()
                if dtype == torch.float32:
                    assert difference.max() <= 1
                    assert difference.mean() < 0.05
                else:
                    assert difference.max() <= 2
                    assert (difference > 1).float().mean() < 0.001
                    assert difference.mean() < 0.2
                assert not square[side:].any() and not square[:, :, side:].any()


def test_unpacked_images_are_the_images():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((5, 8), (1, 1), (9, 3))]
    pixels = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images]))
    places = torch.tensor([[0, 5, 8], [40, 1, 1], [41, 9, 3]])
    unpacked = unpack_images(pixels, places, (10, 8), torch.float16)
    assert unpacked.shape == (3, 10, 3, 8) and unpacked.is_contiguous()
    for padded, image in zip(unpacked, images, strict=True):
        height, width = image.shape[:2]
        assert np.array_equal(padded[:height, :, :width].numpy(), image.transpose(0, 2, 1))


def test_rounding_is_to_8_bit_and_halves_go_up():
    values = torch.tensor([-0.6, 0.49, 0.5, 1.5, 2.5, 254.5, 255.4, 256.2])
    assert round_half_up(values).tolist() == [0, 0, 1, 2, 3, 255, 255, 255]
