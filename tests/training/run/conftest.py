"""What tests of continued weights start from."""

from pathlib import Path

import pytest
from transformers import MobileNetV2Config, ViTImageProcessorPil

from modeling_decodepos.diagnosis.models.networks import build_random

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MobileNetV2, which has no backbone class, as it is released: with the statistics of its pixels."""
    folder = tmp_path_factory.mktemp("released")
    build_random(MobileNetV2Config(depth_multiplier=0.25), seed=0).save_pretrained(folder)
    ViTImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return folder
