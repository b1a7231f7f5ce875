import builtins
import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import training.data.cache as cache
from tests.training.conftest import save_pictures
from tests.training.data.test_batches import Faulty, same
from training.data.batches import RegionDataset, StepBatches, build_loader
from training.data.cache import CachedImages, build_cache, cache_folder, load_cached, shrink
from training.data.decoding import BrokenImage
from training.data.sources import FolderImages, open_images
from training.recipe import ViewArguments

PX = 24


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_holds_every_image_shrunken(pictures: Path, tmp_path: Path, workers: int):
    source = open_images(pictures)
    cached = load_cached(source, PX, tmp_path / "cache", workers)
    assert len(cached) == len(source)
    for index in range(len(source)):
        original = torch.from_numpy(source.pixels(index)).permute(2, 0, 1)[None]
        height, width = original.shape[2:]
        assert min(cached.size(index)) == PX
        assert cached.size(index) == (round(height * PX / min(height, width)), round(width * PX / min(height, width)))
        expected = F.interpolate(original.contiguous(), cached.size(index), mode="bilinear", antialias=True)
        difference = cached.pixels(index).astype(int) - expected[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(difference).max() <= 1
        assert cached.image_id(index) == source.image_id(index)
        for epoch in (0, 3):
            np.testing.assert_array_equal(cached.boxes(index, epoch), source.boxes(index, epoch))
    assert (cached.fingerprint, cached.name, cached.region_source) == (source.fingerprint, source.name, "random")
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {"index.json", "index.safetensors", "pixels-00000000.bin", ".lock"}


def test_nothing_is_enlarged():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    assert shrink(pixels, 20) is pixels and shrink(pixels, 500) is pixels
    assert shrink(pixels, 10).shape == (15, 10, 3)
    assert shrink(np.zeros((2, 900, 3), np.uint8), 1).shape == (1, 450, 3)


def test_regions_of_columns_come_from_the_source(scenes: Path, tmp_path: Path):
    source = open_images(scenes)
    cached = load_cached(source, PX, tmp_path / "cache")
    np.testing.assert_array_equal(cached.boxes(5, 0), source.boxes(5, 0))


def test_a_cache_serves_views_and_workers_alike(scenes: Path, tmp_path: Path):
    source = open_images(scenes)
    cached = load_cached(source, PX, tmp_path / "cache")
    assert len(pickle.dumps(cached)) < 100_000
    args = ViewArguments(view_size_px=32)
    dataset = RegionDataset(cached, args, ["crop", "repositioned"])
    batches = StepBatches(len(dataset), 8, 1, (0,), 0, 3, seed=0)
    for here, there in zip(*(build_loader(dataset, batches, workers, False) for workers in (0, 2)), strict=True):
        assert same(here, there)
    # A cache as large as the originals changes nothing at all.
    whole = RegionDataset(load_cached(source, 64, tmp_path / "whole"), args, ["crop", "repositioned"])
    assert same(whole[(0, 3)], RegionDataset(source, args, ["crop", "repositioned"])[(0, 3)])


def test_reading_the_cache_decodes_nothing(scenes: Path, tmp_path: Path):
    source = Faulty(open_images(scenes))
    cached = load_cached(source, PX, tmp_path / "cache")
    assert source.decoded == list(range(24))
    RegionDataset(cached, ViewArguments(view_size_px=32), ["crop", "repositioned"])[(0, 3)]
    load_cached(source, PX, tmp_path / "cache").pixels(3)
    assert len(source.decoded) == 24


def test_broken_images_stay_broken_and_keep_their_reason(scenes: Path, tmp_path: Path):
    source = open_images(scenes)
    cached = load_cached(Faulty(source, pixels={0, 7, 8, 23}), PX, tmp_path / "cache")
    for index in range(24):
        if index in (0, 7, 8, 23):
            for read in (cached.pixels, cached.size):
                with pytest.raises(BrokenImage, match=f"image {source.image_id(index)} is broken"):
                    read(index)
        else:
            np.testing.assert_array_equal(cached.pixels(index), shrink(source.pixels(index), PX))
    batch = RegionDataset(cached, ViewArguments(view_size_px=32), ["crop"]).__getitems__([(0, 7), (0, 23)])
    assert batch.indices == [9, 1]
    nothing = load_cached(Faulty(source, pixels=set(range(24))), PX, tmp_path / "nothing")
    assert len(nothing.broken) == 24


def test_files_are_bounded(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = load_cached(open_images(scenes), PX, tmp_path / "whole")
    monkeypatch.setattr(cache, "FILE_BYTES", 5 * 3 * PX * PX)
    cached = load_cached(open_images(scenes), PX, tmp_path / "cache")
    assert [path.stat().st_size for path in sorted((tmp_path / "cache").glob("*.bin"))] == [5 * 3 * PX * PX] * 4 + [
        4 * 3 * PX * PX
    ]
    for index in range(24):
        np.testing.assert_array_equal(cached.pixels(index), whole.pixels(index))


class Stopping(Faulty):
    """A source whose reader is stopped at an image."""

    def __init__(self, source: Any, at: int):
        super().__init__(source)
        self.at = at

    def pixels(self, index: int) -> np.ndarray:
        if index == self.at:
            raise KeyboardInterrupt
        return super().pixels(index)


def test_an_interrupted_build_goes_on_and_ends_with_the_same_bytes(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache, "FILE_BYTES", 5 * 3 * PX * PX)
    monkeypatch.setattr(cache, "_IMAGES_AT_ONCE", 1)
    straight, folder = tmp_path / "straight", tmp_path / "interrupted"
    build_cache(open_images(scenes), PX, straight)
    for at, kept in ((3, 0), (12, 10), (13, 10), (23, 20)):
        with pytest.raises(KeyboardInterrupt):
            build_cache(Stopping(open_images(scenes), at), PX, folder)
        assert not (folder / "index.json").exists() and not list(folder.glob(".*.tmp"))
        with pytest.raises(FileNotFoundError, match=r"index\.json"):
            CachedImages(open_images(scenes), folder, PX)
        assert sum(path.stat().st_size for path in folder.glob("*.bin")) == kept * 3 * PX * PX
    (folder / ".pixels-00000020.bin.0badcafe.tmp").write_bytes(b"left by a kill")
    (folder / "pixels-00000015.bin").write_bytes(b"damaged")
    counted = Faulty(open_images(scenes))
    build_cache(counted, PX, folder)
    assert counted.decoded == list(range(15, 24))
    assert contents(folder) == contents(straight)


def test_a_killed_build_goes_on(tmp_path: Path):
    pictures = save_pictures(tmp_path / "many", [f"{n:03}.png" for n in range(300)])
    folder = tmp_path / "cache"
    code = "import training.data.cache as c; c.FILE_BYTES = 20_000; c.main()"
    values = ["--data", str(pictures), "--cache_px", str(PX), "--output", str(folder), "--workers", "1"]
    with subprocess.Popen([sys.executable, "-c", code, *values], stderr=subprocess.DEVNULL) as build:
        while build.poll() is None and len(list(folder.glob("part-*.json"))) < 5:
            time.sleep(0.005)
        build.send_signal(signal.SIGKILL)
    assert build.returncode == -signal.SIGKILL
    assert not (folder / "index.json").exists()
    counted = Faulty(open_images(pictures))
    cached = load_cached(counted, PX, folder)
    assert counted.decoded[0] > 0 and counted.decoded == list(range(counted.decoded[0], 300))
    for index in (0, 20, 150, 299):
        np.testing.assert_array_equal(cached.pixels(index), shrink(counted.source.pixels(index), PX))


def test_other_images_and_settings_are_refused(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "cache"
    load_cached(open_images(pictures), PX, folder)
    with pytest.raises(ValueError, match=r"cache_px: the folder has 24, this command asks for 32[\s\S]*cache_dir"):
        load_cached(open_images(pictures), 32, folder)
    (pictures / "z.png").write_bytes((pictures / "a/00.png").read_bytes())
    with pytest.raises(ValueError, match=r"count: the folder has 12, this command asks for 13"):
        load_cached(open_images(pictures), PX, folder)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds other things \(letter.txt"):
        load_cached(open_images(pictures), PX, tmp_path / "home")
    with pytest.raises(KeyboardInterrupt):
        build_cache(Stopping(open_images(pictures), 3), PX, tmp_path / "half")
    with pytest.raises(ValueError, match=r"cache_px: the folder has 24, this command asks for 20"):
        build_cache(open_images(pictures), 20, tmp_path / "half")
    places = {cache_folder(tmp_path / "runs/a", open_images(pictures), px) for px in (PX, 32)}
    places.add(cache_folder(tmp_path / "runs/b", open_images(pictures), PX))
    assert len(places) == 2 and {place.parent for place in places} == {tmp_path / "runs/.cache"}


def test_a_damaged_cache_is_refused(pictures: Path, tmp_path: Path):
    folder = tmp_path / "cache"
    load_cached(open_images(pictures), PX, folder)
    pixels = folder / "pixels-00000000.bin"
    data = pixels.read_bytes()
    pixels.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=rf"has {len(data) - 1} bytes, expected {len(data)} bytes. Delete"):
        load_cached(open_images(pictures), PX, folder)
    pixels.unlink()
    with pytest.raises(ValueError, match="is missing"):
        load_cached(open_images(pictures), PX, folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(ValueError, match="is no index of a cache"):
        load_cached(open_images(pictures), PX, folder)


def test_a_full_disk_is_told_and_leaves_nothing_that_looks_whole(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "cache"
    monkeypatch.setattr(cache, "FILE_BYTES", 5 * 3 * PX * PX)
    room = {"files": 2}
    real_open = Path.open

    def scarce(path: Path, mode: str = "r", *rest: Any, **named: Any):
        if path.name.startswith(".pixels-"):
            room["files"] -= 1
            if room["files"] < 0:
                return builtins.open("/dev/full", mode)
        return real_open(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", scarce)
    with pytest.raises(ValueError, match=r"disk is full after 10 of 24 images .*All need about .*goes on from there"):
        load_cached(open_images(scenes), PX, folder)
    assert not (folder / "index.json").exists() and not list(folder.glob(".*.tmp"))
    room["files"] = 100
    assert len(load_cached(open_images(scenes), PX, folder)) == 24


def test_a_disk_that_is_full_at_the_index_is_told_too(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(tables: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(cache, "save_file", full)
        with pytest.raises(ValueError, match="disk is full after 24 of 24"):
            load_cached(open_images(scenes), PX, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("index*"))
    assert len(load_cached(open_images(scenes), PX, tmp_path / "cache")) == 24


def _ask(pictures: Path, folder: Path, answers: Any) -> None:
    cached = load_cached(FolderImages(pictures), PX, folder)
    answers.put(int(cached.pixels(5).sum()))


def test_processes_that_ask_at_once_build_one_cache(pictures: Path, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    asking = [context.Process(target=_ask, args=(pictures, tmp_path / "cache", answers)) for _ in range(3)]
    for process in asking:
        process.start()
    assert len({answers.get(timeout=60) for _ in asking}) == 1
    for process in asking:
        process.join()
    assert json.loads((tmp_path / "cache/index.json").read_text())["settings"]["count"] == 12


def test_the_page_of_the_module_says_how_large_its_files_get():
    assert f"at most {cache.FILE_BYTES // 2**20} MiB" in (cache.__doc__ or "")
