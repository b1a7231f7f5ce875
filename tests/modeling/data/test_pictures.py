"""The one reader of pictures: how it differs from the trainer's, which tests/training/data/test_decoding.py pins."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_decodepos.data.pictures import BrokenImage, decode_picture, read_size
from training.data.decoding import decode_image


def encoded(pixels: np.ndarray, kind: str, mode: str = "RGB", orientation: int = 1, **options) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).convert(mode).save(file, kind, exif=exif, **options)
    return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], axis=2).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P")])
def test_it_gives_the_trainers_bits(kind: str, mode: str, orientation: int):
    data = encoded(smooth(30, 40), kind, mode, orientation)
    np.testing.assert_array_equal(decode_picture(data, "x"), decode_image(data, "x"))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_may_come_smaller_but_never_smaller_than_wanted(orientation: int):
    data = encoded(smooth(512, 256), "JPEG", orientation=orientation)
    shape = decode_picture(data, "x").shape
    small = decode_picture(data, "x", shape[:2], at_least=(shape[0] // 4, shape[1] // 4))
    assert small.shape == (shape[0] // 4, shape[1] // 4, 3)
    nearly = decode_picture(data, "x", at_least=(shape[0] // 4 + 1, shape[1] // 4))
    assert nearly.shape == (shape[0] // 2, shape[1] // 2, 3)
    flat = decode_picture(data, "x", (512, 256), at_least=(128, 64))  # annotated as stored
    assert flat.shape == (128, 64, 3)


def test_grey_is_the_luminance():
    data = encoded(smooth(30, 40), "PNG", orientation=6)
    grey = np.asarray(Image.fromarray(decode_picture(data, "x")).convert("L"))
    np.testing.assert_array_equal(decode_picture(data, "x", grey=True), grey)
    deep = io.BytesIO()
    Image.fromarray(np.full((4, 4), 128 << 8, np.uint16)).save(deep, "PNG")
    assert (decode_picture(deep.getvalue(), "x", grey=True) == 128).all()


def test_only_the_wanted_kinds_are_read(tmp_path: Path):
    data = encoded(smooth(30, 40), "PNG")
    (tmp_path / "x").write_bytes(data)
    assert read_size(tmp_path / "x", "x", ("PNG",)) == decode_picture(data, "x", formats=("PNG",)).shape[:2]
    with pytest.raises(BrokenImage, match="no known kind of picture"):
        decode_picture(data, "x", formats=("JPEG",))
    with pytest.raises(BrokenImage, match="no known kind of picture"):
        read_size(tmp_path / "x", "x", ("JPEG",))
