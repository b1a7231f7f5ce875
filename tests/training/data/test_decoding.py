import contextlib
import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from training.data.decoding import BrokenImage, decode_image, read_size


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth colours with a mark in one corner, so that no turn or mirroring leaves it as it is."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, 255 - x], axis=2).astype(np.uint8)
    pixels[: height // 3, : width // 4] = (255, 0, 0)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(data: bytes) -> np.ndarray:
    """The slow reference."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def exif(orientation: int) -> Image.Exif:
    values = Image.Exif()
    values[0x0112] = orientation
    return values


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_kind_and_mode_has_pillows_pixels(kind: str, mode: str):
    if not features.check("webp") and kind == "WEBP":
        pytest.skip("Pillow was built without WebP")
    try:
        data = encode(photo().convert("RGB").convert(mode), kind)
    except (OSError, ValueError):
        pytest.skip(f"{kind} knows no {mode}")
    pixels = decode_image(data, "x")
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, pillow(data))


def damaged_inside(data: bytes) -> bytes:
    """A JPEG with a block of its middle overwritten, both markers as they were."""
    middle = len(data) // 2
    return data[:middle] + bytes(200) + data[middle + 200 :]


def test_a_jpeg_that_is_damaged_inside_is_broken_unless_told_otherwise(capfd: pytest.CaptureFixture):
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), "JPEG")
    damaged = damaged_inside(whole)
    with pytest.raises(BrokenImage, match="image x cannot be decoded.*Corrupt JPEG data"):
        decode_image(damaged, "x")
    assert capfd.readouterr().err == ""
    assert decode_image(damaged, "x", strict=False).shape == (120, 160, 3)
    np.testing.assert_array_equal(decode_image(whole, "x"), pillow(whole))  # what came before leaves no trace


def test_what_others_write_meanwhile_is_not_swallowed(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    import training.data.decoding as decoding

    data, decode = encode(photo(), "JPEG"), decoding._decode_whole_jpeg
    monkeypatch.setattr(decoding, "_decode_whole_jpeg", lambda data: (os.write(2, b"a line\n"), decode(data))[1])
    assert decode_image(data, "x") is not None
    assert capfd.readouterr().err == "a line\n"


def test_threads_hear_their_own_pictures_only():
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), "JPEG")
    pictures = [whole, damaged_inside(whole)] * 20

    def is_broken(data: bytes) -> bool:
        try:
            decode_image(data, "x")
        except BrokenImage:
            return True
        return False

    expected = [False, True] * 20
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(is_broken, pictures)) == expected
    assert [is_broken(data) for data in pictures] == expected


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 20}])
def test_opencvs_jpeg_pixels_are_pillows(options: dict):
    data = encode(photo(97, 61), "JPEG", **options)
    np.testing.assert_array_equal(decode_image(data, "x"), pillow(data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str):
    values = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24)
    pixels = decode_image(encode(Image.fromarray(values), kind), "x")
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))
    assert pixels.max() == 255 and len(np.unique(pixels)) == 256


def test_sixteen_bits_of_colour_are_scaled():
    values = np.linspace(0, 65535, 6 * 5 * 3).astype(">u2").reshape(5, 6, 3)
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 6, 5, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    np.testing.assert_array_equal(decode_image(data, "x"), (values >> 8).astype(np.uint8))


def test_values_without_a_range_are_refused():
    with pytest.raises(BrokenImage, match="32 bits per value"):
        decode_image(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind: str, orientation: int, tmp_path: Path):
    data = encode(photo(), kind, exif=exif(orientation))
    pixels = decode_image(data, "x")
    np.testing.assert_array_equal(pixels, pillow(data))
    (tmp_path / "x").write_bytes(data)
    assert read_size(str(tmp_path / "x"), "x") == pixels.shape[:2]
    if orientation >= 5:
        flat = decode_image(data, "x", (30, 40)).astype(int)
        assert np.abs(flat - np.asarray(photo())).mean() < 5


def test_annotations_of_unrotated_pixels_are_believed():
    turned = encode(photo(40, 30), "JPEG", exif=exif(6))
    assert decode_image(turned, "x").shape == (40, 30, 3)
    assert decode_image(turned, "x", (40, 30)).shape == (40, 30, 3)
    flat = decode_image(turned, "x", (30, 40))
    np.testing.assert_array_equal(flat, np.asarray(Image.open(io.BytesIO(turned))))
    # Turned by half a turn, both have the same size: then the orientation counts, as everywhere.
    half = encode(photo(), "JPEG", exif=exif(3))
    np.testing.assert_array_equal(decode_image(half, "x", (30, 40)), pillow(half))
    for size in ((30, 41), (15, 20)):
        with pytest.raises(BrokenImage, match=rf"30 x 40 px, but its data set says {size[1]} x {size[0]} px"):
            decode_image(turned, "x", size)
    with pytest.raises(BrokenImage, match="40 x 30 px, but its data set says 30 x 40"):  # no rotation explains that
        decode_image(encode(photo(40, 30), "JPEG"), "x", (40, 30))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95])
def test_what_is_cut_short_is_broken(kind: str, share: float):
    """OpenCV alone gives a half-grey picture for a JPEG that a library completed with zeros."""
    data = encode(photo(200, 150), kind)
    with pytest.raises(BrokenImage, match="image cut-1 "):
        decode_image(data[: round(share * len(data))], "cut-1")


def test_a_jpeg_padded_with_zeros_is_broken_and_one_with_garbage_behind_it_is_not():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8))
    data = encode(noise, "JPEG")
    np.testing.assert_array_equal(decode_image(data + b"\0\0trailing", "x"), pillow(data))
    with pytest.raises(BrokenImage):
        decode_image(data[: len(data) // 2] + bytes(100), "x")


@pytest.mark.parametrize("data", [b"", None])
def test_an_image_without_bytes_is_named(data: bytes | None):
    with pytest.raises(BrokenImage, match="image empty-3 has no bytes"):
        decode_image(data, "empty-3")


def test_an_undecodable_image_is_named():
    with pytest.raises(BrokenImage, match="image broken-7 cannot be decoded .*b'not a pi"):
        decode_image(b"not a picture", "broken-7")


def test_a_decompression_bomb_is_broken(monkeypatch: pytest.MonkeyPatch):
    data = encode(Image.new("RGB", (50, 50)), "JPEG")
    for limit in (2000, 1000):  # Pillow warns of the one and refuses the other
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(BrokenImage, match="DecompressionBomb"):
            decode_image(data, "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_give_pixels_or_a_broken_image(kind: str):
    rng = np.random.default_rng(0)
    data = encode(photo(), kind, exif=exif(6)) if kind in ("JPEG", "PNG", "WEBP", "TIFF") else encode(photo(), kind)
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        with contextlib.suppress(BrokenImage):
            assert decode_image(bytes(damaged), "x").dtype == np.uint8
