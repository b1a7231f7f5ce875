import itertools
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import training.data.streaming as streaming
from tests.hub_server import HubServer, run_python
from tests.training.data.test_batches import same
from training.data.batches import RegionBatch, StepBatches
from training.data.sources import draw_boxes, open_images
from training.data.streaming import ImageStream, Lane, RegionStream, Shard, build_stream_loader, open_stream
from training.recipe import ViewArguments, build_recipe

ROOT = Path(__file__).parents[3]
ARGS = ViewArguments(view_size_px=32, mixed_share=0.7)
VIEWS = ["crop", "whole_cut", "repositioned"]
ROWS = (7, 3, 5, 6, 3)  # 24 in all


@pytest.fixture(scope="module")
def sharded(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes in five files with row groups of two; each image has its number for its id."""
    folder = tmp_path_factory.mktemp("sharded")
    rows = datasets.load_dataset(str(scenes), split="train").cast_column("image", datasets.Image(decode=False))
    table = rows.data.table.drop_columns(["image_id"]).append_column("image_id", [[str(n) for n in range(24)]])
    for number, start in enumerate(np.cumsum((0, *ROWS[:-1]))):
        part = table.slice(start, ROWS[number])
        pq.write_table(part.replace_schema_metadata(None), folder / f"train-{number}.parquet", row_group_size=2)
    return folder


def loader(
    source: ImageStream, first: int, last: int, workers: int = 0, process: int = 0, processes: int = 1, **changes
):
    dataset = RegionStream(source, ARGS, VIEWS, block=changes.pop("block", 4), seed=changes.pop("seed", 3))
    accumulation = changes.pop("accumulation", 1)
    batches = StepBatches(
        length=len(source),
        global_batch_size=4 * processes * accumulation,
        slices=processes * accumulation,
        own_slices=tuple(range(process * accumulation, (process + 1) * accumulation)),
        first_step=first,
        last_step=last,
    )
    return build_stream_loader(dataset, batches, workers)


def test_the_files_and_their_lengths_are_known_without_reading_them(sharded: Path):
    source = open_stream(str(sharded), "train", "auto", 0)
    assert [shard.rows for shard in source.shards] == list(ROWS)
    assert len(source) == 24
    assert source.region_source == "regions"


@pytest.mark.parametrize("start", [0, 1, 2, 6, 7, 9, 10, 17, 23])
def test_reading_begins_at_any_row(sharded: Path, start: int):
    source = open_stream(str(sharded), "train", "auto", 0)
    tables = source.read(source.shards, start, source.columns())
    assert [name for t in tables for name in t.column("image_id").to_pylist()] == [str(n) for n in range(start, 24)]


@pytest.mark.parametrize(("lanes", "block"), [(1, 4), (2, 4), (3, 5), (5, 2), (2, 100)])
def test_every_image_of_an_epoch_is_seen_once(sharded: Path, lanes: int, block: int):
    source = open_stream(str(sharded), "train", "auto", 0)
    dataset = RegionStream(source, ARGS, VIEWS, block=block)
    seen: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for number in range(lanes):
        lane = Lane(source.shards, number, lanes, block, seed=0)
        for images, epoch, indices in dataset._blocks(lane, 0):
            if epoch == 3:
                break
            assert 2 <= len(images) <= block + 1
            seen[epoch] += [images.source.image_id(int(index)) for index in indices]
    for names in seen.values():
        assert Counter(names) == Counter(str(n) for n in range(24))
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_resumed_stream_goes_on_with_the_same_batches(sharded: Path, workers: int, accumulation: int):
    source = open_stream(str(sharded), "train", "random", 5)
    steps = 12 // accumulation  # two epochs and more
    whole = list(loader(source, 0, steps, workers, accumulation=accumulation))
    assert len(whole) == steps * accumulation and all(len(batch.indices) == 4 for batch in whole)
    for first in range(1, steps):
        rest = list(loader(source, first, steps, workers, accumulation=accumulation))
        assert len(rest) == (steps - first) * accumulation
        for expected, found in zip(whole[first * accumulation :], rest, strict=True):
            assert same(expected, found), first


def test_lanes_of_processes_and_workers_are_the_same(sharded: Path):
    """Two processes without workers, or one with two: the same lanes, dealt out differently."""
    source = open_stream(str(sharded), "train", "auto", 0)
    one = list(loader(source, 0, 8, workers=2))
    two = [list(loader(source, 0, 4, process=process, processes=2)) for process in (0, 1)]
    for expected, found in zip(one, itertools.chain(*zip(*two, strict=True)), strict=True):
        assert same(expected, found)


def test_samples_depend_on_seed_and_place(sharded: Path):
    source = open_stream(str(sharded), "train", "auto", 0)
    first, again = (list(loader(source, 0, 7)) for _ in range(2))
    other = list(loader(source, 0, 7, seed=4))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not any(same(a, b) for a, b in zip(first, other, strict=True))
    assert not same(first[0], first[6]), "the next epoch, with other views"


def test_a_block_is_shown_as_a_data_set_of_its_own_would_be(sharded: Path):
    """The views are those of `RegionDataset`; donors come from the block."""
    source = open_stream(str(sharded), "train", "random", 5)
    dataset = RegionStream(source, ARGS, VIEWS, block=4, seed=3)
    block, epoch, indices = next(dataset._blocks(Lane(source.shards, 0, 1, 4, 3), 0))
    batch = next(iter(loader(source, 0, 1)))
    assert same(batch, block.__getitems__([(epoch, int(index)) for index in indices]))
    whole = open_images(sharded, region_source="random", seed=5)
    number = int(block.source.image_id(2))
    np.testing.assert_array_equal(block.source.pixels(2), whole.pixels(number))
    np.testing.assert_array_equal(block.source.boxes(2, 1), draw_boxes("random", (64, 64), 5, 1, 2, 0, 0))


def test_a_broken_image_gives_its_place_to_one_of_its_block(sharded: Path, tmp_path: Path):
    for path in sharded.iterdir():
        rows = pq.read_table(path)
        images = rows.column("image").to_pylist()
        if path.name == "train-2.parquet":
            images[1] = {"bytes": b"no picture", "path": None}
        pq.write_table(rows.drop_columns(["image"]).append_column("image", [images]), tmp_path / path.name)
    source = open_stream(str(tmp_path), "train", "auto", 0)
    batches: list[RegionBatch] = list(loader(source, 0, 6))
    assert {name for batch in batches for name, _ in batch.broken} == {"11"}
    assert all(torch.isfinite(batch.slack).all() and len(batch.indices) == 4 for batch in batches)


def test_a_last_block_of_one_image_joins_the_one_before():
    lane = Lane([Shard("a", 9)], 0, 1, 4, 0)
    assert lane.block_sizes(0) == [4, 5]
    assert Lane([Shard("a", 3)], 0, 1, 4, 0).block_sizes(0) == [3]
    assert Lane([Shard("a", 10)], 0, 1, 4, 0).block_sizes(0) == [4, 4, 2]


def test_what_cannot_be_streamed_is_explained(sharded: Path, pictures: Path, tmp_path: Path):
    source = open_stream(str(sharded), "train", "auto", 0)
    with pytest.raises(ValueError, match=r"5 Parquet files, but each of 2 processes x 3 workers .*num_workers 2 fits"):
        loader(source, 0, 1, workers=3, processes=2)
    with pytest.raises(ValueError, match=r"not even one worker for each of 6 processes"):
        loader(source, 0, 1, workers=1, processes=6)
    with pytest.raises(ValueError, match=r"no split 'test' to stream; it has train"):
        open_stream(str(sharded), "test", "auto", 0)
    with pytest.raises(ValueError, match=r"\.(jpg|png|txt) is no Parquet file"):
        open_stream(str(pictures), "train", "auto", 0)
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match=r"train-0.parquet cannot be read as Parquet"):
        open_stream(str(tmp_path), "train", "auto", 0)
    with pytest.raises(ValueError, match=r"cache_px is 288, but streaming"):
        build_recipe({"streaming": True, "cache_px": 288})
    with pytest.raises(ValueError, match=r"stream_block is 1"):
        RegionStream(source, ARGS, VIEWS, block=1)


HUB = """
import sys, hashlib
sys.path.insert(0, {root!r})
from tests.training.data.test_streaming import loader, open_stream, tensors_hash
source = open_stream({path!r}, "train", "auto", 0)
for batch in loader(source, 2, 6, workers=2):
    print(tensors_hash(batch))
"""


def tensors_hash(batch: RegionBatch) -> str:
    from tests.training.data.test_batches import tensors

    return str([int(t.long().sum()) for t in tensors(batch)])


def test_a_stream_from_the_hub_equals_one_from_the_folder(sharded: Path, hub: HubServer, tmp_path: Path):
    hub.add_repo("org/scenes", sharded, "dataset")
    printed = run_python(HUB.format(root=str(ROOT), path="org/scenes"), hub.env(tmp_path / "home"))
    here = [tensors_hash(b) for b in loader(open_stream(str(sharded), "train", "auto", 0), 2, 6, workers=2)]
    assert printed.splitlines() == here and len(here) == 4


def test_nothing_but_footers_is_read_before_the_place_to_go_on_from(sharded: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_stream(str(sharded), "train", "auto", 0)
    opened: list[str] = []
    real = streaming.xopen
    monkeypatch.setattr(streaming, "xopen", lambda url, mode: opened.append(url) or real(url, mode))
    next(iter(loader(source, 5, 6)))  # the last batch of the first epoch
    order = Lane(source.shards, 0, 1, 4, 3).own_shards(0)
    before = {shard.url for shard, end in zip(order, np.cumsum([s.rows for s in order]), strict=True) if end <= 20}
    assert opened and not before & set(opened)
