import pytest
import torch

from training.views.normalise import IMAGE_MEAN, IMAGE_STD, normalise


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 1, 1), (0, 3, 4, 4)])
def test_normalised_pixels_keep_their_layout_and_the_input_its_values(shape, layout: torch.memory_format):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).contiguous(memory_format=layout)
    before = pixels.clone()
    normalised = normalise(pixels)
    assert torch.equal(pixels, before)
    assert normalised.stride() == pixels.stride()
    for channel in range(3):
        expected = (pixels[:, channel].double() / 255 - IMAGE_MEAN[channel]) / IMAGE_STD[channel]
        torch.testing.assert_close(normalised[:, channel].double(), expected, atol=1e-5, rtol=0)
    twice = normalise(normalised)
    assert twice is not normalised  # floats are not changed in place either
