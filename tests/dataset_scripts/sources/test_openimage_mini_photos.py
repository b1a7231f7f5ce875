import base64
import errno
import hashlib
import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_scripts.sources.openimage_mini import photos as openimages_photos
from dataset_scripts.sources.openimage_mini.downloads import (
    Downloader,
    FetchError,
    GoneError,
    Pace,
    retry_after_seconds,
)
from dataset_scripts.sources.openimage_mini.photos import (
    Photo,
    fetch_photos,
    photo_path,
    upright_as_stored,
    verify_photo,
)
from tests.image_server import ImageServer

A, B, C = (f"{k:016x}" for k in (10, 11, 12))
PATHS = {name: f"/train/{name}.jpg" for name in (A, B, C)}


def jpeg(width: int = 60, height: int = 40, seed: int = 0, **options) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def server():
    with ImageServer({path: jpeg(seed=k) for k, path in enumerate(PATHS.values())}) as server:
        yield server


def downloader(**changes) -> Downloader:
    settings = {"timeout_s": 0.3, "deadline_s": 0.6, "backoff_s": 0.01, "attempts": 3}
    return Downloader(Pace(per_second=1000), **(settings | changes))


def fetch(server, folder: Path, photos=None, loader=None, connections: int = 4) -> set[str]:
    photos = photos or [Photo("train", name) for name in PATHS]
    return fetch_photos(photos, [folder], server.url, loader or downloader(), connections)


def names(folder: Path) -> list[str]:
    """Every file below a folder, temporary ones included."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "fault", ["500", "503", "429", "retry:0", "cut", "drip", "stall", "drop", "html", f"other:{'/nowhere'}", "lie"]
)
def test_what_may_pass_is_tried_again(server, tmp_path, fault):
    if fault.startswith("other"):
        server.files["/nowhere"] = b"\xff\xd8\xff\xe0 no picture"
    server.faults[PATHS[B]] = [fault]
    assert fetch(server, tmp_path) == set()
    assert server.requests[PATHS[B]] == 2
    for name, path in PATHS.items():
        assert photo_path([tmp_path], "train", name).read_bytes() == server.files[path]
    assert names(tmp_path) == [f"{name}.jpg" for name in PATHS]


@pytest.mark.parametrize("fault", ["500!", "403!", "cut!", "stall!", "drop!", "html!", "lie!", "drip!"])
def test_what_does_not_pass_leaves_the_set_incomplete_and_the_rest_kept(server, tmp_path, fault):
    server.faults[PATHS[B]] = [fault]
    with pytest.raises(ValueError, match=f"1 of 3 photos could not be fetched(.|\n)*{B}.jpg: (.|\n)*run the same"):
        fetch(server, tmp_path)
    assert names(tmp_path) == [f"{A}.jpg", f"{C}.jpg"]  # nothing half readable
    assert server.requests[PATHS[B]] == (1 if fault == "403!" else 3)
    server.faults.clear()
    before = dict(server.requests)
    assert fetch(server, tmp_path) == set()
    assert server.requests[PATHS[A]] == before[PATHS[A]]  # went on from what was there
    assert names(tmp_path) == [f"{name}.jpg" for name in PATHS]


@pytest.mark.parametrize("status", ["404!", "410!"])
def test_only_gone_photos_count_as_missing(server, tmp_path, status):
    server.faults[PATHS[B]] = [status]
    assert fetch(server, tmp_path) == {B}
    assert server.requests[PATHS[B]] == 1
    assert names(tmp_path) == [f"{A}.jpg", f"{C}.jpg"]


def test_retry_after_holds_every_request_back(server, tmp_path):
    server.faults[PATHS[A]] = ["retry:1"]
    fetch(server, tmp_path, connections=1)
    pauses = np.diff(server.times)
    assert 0.9 < pauses.max() < 5
    assert retry_after_seconds("7") == 7
    assert retry_after_seconds(None) is retry_after_seconds("soon") is None
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 50 < retry_after_seconds(later) <= 60


def test_connections_and_requests_per_second_are_bounded(server, tmp_path):
    photos = [Photo("train", f"{k:016x}") for k in range(12)]
    for photo in photos:
        path = f"/train/{photo.image_id}.jpg"
        server.files[path] = jpeg(8, 8)
        server.faults[path] = ["slow"]
    fetch(server, tmp_path, photos, downloader(deadline_s=60, timeout_s=5), connections=3)
    assert 1 < server.most_at_once <= 4  # it may learn of the end of one after the next has begun
    start = time.monotonic()
    pace = Pace(per_second=50)
    for _ in range(11):
        pace.wait()
    assert time.monotonic() - start > 0.19


def test_a_server_that_is_down_is_left_alone_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(openimages_photos, "MOST_FAILURES", 5)
    photos = [Photo("train", f"{k:016x}") for k in range(100)]
    with ImageServer({}) as server:
        for photo in photos:
            server.faults[f"/train/{photo.image_id}.jpg"] = ["503!"]
        with pytest.raises(ValueError, match="100 of 100 photos could not be fetched"):
            fetch(server, tmp_path, photos, connections=2)
        assert sum(server.requests.values()) <= 3 * 7


def test_size_and_md5_are_those_of_the_originals(server, tmp_path):
    content = server.files[PATHS[A]]
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    assert fetch(server, tmp_path / "good", [Photo("train", A, len(content), md5)]) == set()
    for photo, message in (
        (Photo("train", A, len(content) + 1, md5), "the image list says"),
        (Photo("train", A, len(content), "AAAA"), "MD5 is"),
    ):
        with pytest.raises(ValueError, match=message):
            fetch(server, tmp_path / "bad", [photo])


def test_another_picture_is_told_by_its_aspect(server, tmp_path):
    assert fetch(server, tmp_path / "good", [Photo("train", A, aspect=600 / 401)]) == set()
    with pytest.raises(ValueError, match="60 x 40 px, its masks have the aspect 0.667: another picture"):
        fetch(server, tmp_path / "bad", [Photo("train", A, aspect=40 / 60)])


@pytest.mark.parametrize("name", ["../../../tmp/x", "..", "/etc/passwd", "0" * 15 + "/", "A" * 16, ""])
def test_an_id_cannot_leave_the_folder(server, tmp_path, name):
    with pytest.raises(ValueError, match="no Open Images id"):
        fetch(server, tmp_path / "photos", [Photo("train", name)])
    assert not server.requests and names(tmp_path) == []


def huge_png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def huge_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    content = bytearray(jpeg(8, 8))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("side", [9_600, 60_000])
def test_a_decompression_bomb_is_not_unpacked(side):
    with pytest.raises(ValueError, match="decompression bomb|expected at most"):
        verify_photo(huge_jpeg(side, side), Photo("train", A))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jpeg()[:-200], "cannot be decoded .*truncated"),
        (jpeg()[:300], "cannot be decoded"),
        (b"", "no known kind of picture"),
        (b"<html>", "beginning b'<html>'.: no known kind of picture"),
        (huge_png_header(50_000, 50_000), "no known kind of picture"),
    ],
)
def test_what_is_no_whole_jpeg_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        verify_photo(content, Photo("train", A))


def test_more_bytes_than_a_photo_has_are_not_read(server):
    with pytest.raises(FetchError, match="expected at most 100"):
        downloader(most_bytes=100).fetch(server.url + PATHS[A], verify=len)


def test_a_full_disk_is_named_and_leaves_nothing_half(server, tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="the disk is full"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_photos_that_are_there_are_not_asked_for(server, tmp_path):
    (tmp_path / f"{A}.jpg").write_bytes(b"in the folder itself")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"{B}.jpg").write_bytes(b"in the folder of its split")
    fetch(server, tmp_path)
    assert set(server.requests) == {PATHS[C]}


def test_a_large_file_goes_on_where_it_was_cut(server, tmp_path):
    content = np.random.default_rng(0).bytes(900_000)
    server.files["/table.csv"] = content
    server.faults["/table.csv"] = ["html", "cut", "500"]
    downloader(attempts=4).fetch_file(f"{server.url}/table.csv", tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_bytes() == content
    assert server.ranges == ["bytes=450000-"]
    assert names(tmp_path) == ["table.csv"]


def test_a_large_file_that_changed_meanwhile_is_not_made_of_two_halves(server, tmp_path):
    server.files["/table.csv"] = b"old " * 100_000
    server.faults["/table.csv"] = ["cut!"]
    with pytest.raises(FetchError, match="cut off"):
        downloader(attempts=1).fetch_file(f"{server.url}/table.csv", tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()
    server.files["/table.csv"] = b"new " * 100_000
    server.faults.clear()
    downloader().fetch_file(f"{server.url}/table.csv", tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_bytes() == server.files["/table.csv"]
    with pytest.raises(GoneError):
        downloader().fetch_file(f"{server.url}/nothing.csv", tmp_path / "nothing.csv")


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_metadata_cannot_turn_a_picture_away_from_its_boxes(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(exif=exif)
    kept = upright_as_stored(content)
    assert (kept == content) == (orientation == 1)
    with Image.open(io.BytesIO(content)) as before, Image.open(io.BytesIO(kept)) as after:
        assert after.getexif().get(0x0112, 1) == 1
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
