"""Finding the same picture in two data sets: which pictures count as the same, and that none is missed."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_scripts.overlap import THRESHOLD, find_overlap, hash_folder, main, near_pairs, perceptual_hash
from modeling_decodepos.data.scenes import render_scene, sample_scene

PHOTOS = [Image.fromarray(render_scene(sample_scene(0, index, 128)).pixels) for index in range(40)]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(folder: Path, **splits: dict[str, bytes]) -> Path:
    (folder / "data").mkdir(parents=True)
    for split, images in splits.items():
        rows = [{"image_id": name, "image": {"bytes": data, "path": None}} for name, data in images.items()]
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def bits_apart(one: bytes, other: bytes) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


@pytest.mark.parametrize("index", range(0, 40, 8))
def test_what_is_stored_anew_is_near_and_what_is_turned_is_not(index: int):
    image = PHOTOS[index]
    original = encoded(image)
    assert bits_apart(original, encoded(image, "JPEG", quality=30)) <= THRESHOLD
    assert bits_apart(original, encoded(image.resize((64, 64)), "JPEG", quality=75)) <= THRESHOLD
    assert bits_apart(original, encoded(image.resize((301, 301), Image.Resampling.BICUBIC))) <= THRESHOLD
    assert bits_apart(original, encoded(image.convert("L"))) <= THRESHOLD
    assert bits_apart(original, encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) > 7


def test_a_picture_that_viewers_turn_is_hashed_as_it_is_seen():
    image = PHOTOS[3].resize((160, 100))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    assert bits_apart(encoded(turned, "JPEG", exif=exif), encoded(image)) <= THRESHOLD
    assert bits_apart(encoded(turned, "JPEG"), encoded(image)) > THRESHOLD


@pytest.mark.parametrize("threshold", [0, 2, 3, 4, 7])
def test_no_pair_is_missed_and_none_is_invented(threshold: int):
    rng = np.random.default_rng(threshold)
    second = rng.integers(0, 2**64, 300, np.uint64)
    first = second[rng.integers(0, 300, 400)].copy()
    for k in range(400):
        for bit in rng.choice(64, k % 10, replace=False):
            first[k] ^= np.uint64(1) << np.uint64(bit)
    expected = [
        (i, j, (int(a) ^ int(b)).bit_count())
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if (int(a) ^ int(b)).bit_count() <= threshold
    ]
    assert len(expected) > 30
    assert list(zip(*(part.tolist() for part in near_pairs(first, second, threshold)), strict=True)) == expected


def test_candidates_come_in_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dataset_scripts.overlap._CANDIDATES", 7)
    same = np.full(20, 123, np.uint64)
    i, j, bits = near_pairs(same, same, 4)
    assert len(i) == 400 and not bits.any()
    assert [len(part) for part in near_pairs(same[:0], same, 4)] == [0, 0, 0]
    assert [len(part) for part in near_pairs(same, same[:0], 4)] == [0, 0, 0]


def test_the_command_lists_what_is_in_both(tmp_path: Path, capsys: pytest.CaptureFixture):
    png = {f"a{k}": encoded(image) for k, image in enumerate(PHOTOS[:10])}
    first = write(tmp_path / "first", train=png, validation={"broken": b"no picture"})
    second = write(
        tmp_path / "second",
        test={
            "same": png["a2"],
            "small": encoded(PHOTOS[7].resize((80, 80)), "JPEG", quality=60),
            "other": encoded(PHOTOS[20]),
        },
    )
    table = tmp_path / "overlap.csv"
    command = [str(first), str(second), "--workers", "1"]
    assert main([*command, "--output", str(table)]) == 1
    said = capsys.readouterr()
    assert f"2 of 10 images of {first} are in {second}: 2 pairs, 1 of them byte for byte" in said.out
    assert f"{first}: 1 images cannot be decoded: broken" in said.err
    rows = list(csv.DictReader(table.read_text().splitlines()))
    found = [(row["first_split"], row["first_id"], row["second_split"], row["second_id"], row["kind"]) for row in rows]
    assert found == [("train", "a2", "test", "same", "exact"), ("train", "a7", "test", "small", "near")]
    assert main([str(second), str(write(tmp_path / "third", test={"x": encoded(PHOTOS[30])}))]) == 0
    assert main([str(tmp_path / "nothing")]) == 2
    assert "holds no Parquet files" in capsys.readouterr().err


def test_splits_of_one_folder_are_held_against_each_other(tmp_path: Path, capsys: pytest.CaptureFixture):
    one, two = encoded(PHOTOS[0]), encoded(PHOTOS[1])
    folder = write(tmp_path / "one", train={"a": one, "b": one, "c": two}, validation={"d": encoded(PHOTOS[5])})
    assert main([str(folder), "--workers", "1"]) == 0  # twice in one split is no contamination
    folder = write(tmp_path / "two", train={"a": one, "c": two}, validation={"d": two})
    assert main([str(folder), "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "are in another of its splits: 1 pairs" in said and "train c = validation d (exact)" in said
    pictures = hash_folder(folder, 1)
    assert len(find_overlap(pictures, pictures)) == 1


def test_what_is_near_is_found_among_many():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2**64, (2, 20_000), np.uint64)
    first[:50] = second[1000:1050] ^ np.uint64(0b1011 << 30)
    i, j, bits = near_pairs(first, second, THRESHOLD)
    assert (i == np.arange(50)).all() and (j == np.arange(1000, 1050)).all() and (bits == 3).all()
