import time
import traceback
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from modeling_decodepos.losses import OBJECTIVES
from training.data.batches import RegionBatch, RegionDataset, StepBatches, build_loader, epoch_order
from training.data.decoding import BrokenImage
from training.data.sources import FolderImages, ImageSource, open_images
from training.errors import UnusableData
from training.recipe import ViewArguments
from training.show import draw_sample
from training.views.sampling import VIEW_RULES

ARGS = ViewArguments(view_size_px=32)
VIEWS = list(OBJECTIVES["both"].views)


def tensors(batch: RegionBatch) -> list[torch.Tensor]:
    return [t for name in sorted(batch.views) for t in vars(batch.views[name]).values() if t is not None] + [
        batch.slack
    ]


def same(a: RegionBatch, b: RegionBatch) -> bool:
    return a.indices == b.indices and all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_an_epochs_order_is_a_permutation_of_its_own():
    first, again, second = epoch_order(50, 3, 0), epoch_order(50, 3, 0), epoch_order(50, 3, 1)
    assert sorted(first) == list(range(50))
    assert first.tolist() == again.tolist() != second.tolist()
    assert first.tolist() != epoch_order(50, 4, 0).tolist()


def test_processes_and_accumulation_slice_one_global_order():
    whole = list(StepBatches(25, 8, 1, (0,), 0, 7, seed=1))
    assert [len(batch) for batch in whole] == [8] * 7
    parts = [list(StepBatches(25, 8, 4, own, 0, 7, seed=1)) for own in ((0, 1), (2, 3))]
    for step in range(7):
        joined = [key for part in parts for micro in part[2 * step : 2 * step + 2] for key in micro]
        assert joined == whole[step]
    # 25 images fill three batches of 8: the fourth step begins the next epoch, and an epoch repeats no image.
    assert [batch[0][0] for batch in whole] == [0, 0, 0, 1, 1, 1, 2]
    assert len({key for batch in whole[:3] for key in batch}) == 24


def test_a_resumed_run_sees_what_the_uninterrupted_one_would():
    whole = list(StepBatches(25, 8, 1, (0,), 0, 7, seed=1))
    assert list(StepBatches(25, 8, 1, (0,), 4, 7, seed=1)) == whole[4:]


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match=r"global_batch_size is 32.*25 images"):
        StepBatches(25, 32, 1, (0,), 0, 1, 0)
    with pytest.raises(ValueError, match=r"8 is not divisible by 3"):
        StepBatches(25, 8, 3, (0,), 0, 1, 0)


def test_views_depend_on_seed_epoch_and_index_only(scenes: Path):
    dataset = RegionDataset(open_images(scenes, "train"), ARGS, VIEWS, seed=5)
    alone = dataset[(2, 7)]
    together = dataset.__getitems__([(2, 3), (2, 7), (0, 7)])
    for name, view in alone.views.items():
        assert torch.equal(view.pixel_values[0], together.views[name].pixel_values[1])
        assert torch.equal(view.boxes[0], together.views[name].boxes[1])
        assert not torch.equal(view.pixel_values[0], together.views[name].pixel_values[2]), (
            "another epoch, other views"
        )
    assert same(RegionDataset(open_images(scenes, "train"), ARGS, VIEWS, seed=5)[(2, 7)], alone)
    assert not same(RegionDataset(open_images(scenes, "train"), ARGS, VIEWS, seed=6)[(2, 7)], alone)


def test_worker_processes_change_nothing(scenes: Path):
    dataset = RegionDataset(open_images(scenes, "train"), ARGS, list(VIEW_RULES))
    batches = StepBatches(len(dataset), 8, 1, (0,), 0, 4, seed=0)
    for here, there in zip(
        build_loader(dataset, batches, 0, False), build_loader(dataset, batches, 2, False), strict=True
    ):
        assert same(here, there)


def test_batches_are_bytes_with_channels_last(scenes: Path):
    batch = RegionDataset(open_images(scenes, "train"), ARGS, list(VIEW_RULES)).__getitems__(
        [(0, i) for i in range(4)]
    )
    assert set(batch.views) == set(VIEW_RULES)
    for view in batch.views.values():
        assert view.pixel_values.dtype == torch.uint8
        pictures = view.pixel_values.flatten(0, -4)  # of regions alone, all of them
        assert pictures.is_contiguous(memory_format=torch.channels_last)
        valid = view.boxes[view.valid_regions]
        assert (valid >= 0).all() and (valid <= 1).all() and (valid[:, 2:] > valid[:, :2]).all()


def test_the_donor_is_never_the_sample_itself(scenes: Path):
    dataset = RegionDataset(open_images(scenes, "train"), ARGS, VIEWS)
    donors = np.array(
        [[dataset._donor(epoch, index, index, {})[0] for epoch in range(60)] for index in range(len(dataset))]
    )
    assert (donors != np.arange(len(dataset))[:, None]).all()
    assert all(len(set(row)) > 15 for row in donors.tolist()), "any other image may be drawn"


def test_a_mean_donor_is_one_colour(scenes: Path):
    args = ViewArguments(view_size_px=32, donor="mean")
    dataset = RegionDataset(open_images(scenes, "train"), args, ["repositioned"])
    for index in range(4):
        views = dataset.read_sample(0, index).views
        shown = dataset[(0, index)].views["repositioned"].pixel_values[0]
        around = shown[:, ~torch.from_numpy(views["repositioned"].foreground)]
        assert around.unique(dim=1).flatten().tolist() == [124, 116, 104]


def test_a_share_of_mixed_images_makes_a_shorter_view(scenes: Path):
    args = ViewArguments(view_size_px=32, mixed_share=0.25)
    dataset = RegionDataset(open_images(scenes, "train"), args, VIEWS)
    lengths = set()
    for epoch in range(8):
        batch = dataset.__getitems__([(epoch, i) for i in range(4)])
        view = batch.views["repositioned"]
        lengths.add(len(view.pixel_values))
        rows = list(range(4)) if view.rows is None else view.rows.tolist()
        assert len(rows) == len(view.pixel_values) == len(batch.slack)
        for place, row in enumerate(rows):
            alone = RegionDataset(open_images(scenes, "train"), ViewArguments(view_size_px=32), VIEWS)[(epoch, row)]
            assert torch.equal(view.pixel_values[place], alone.views["repositioned"].pixel_values[0])
    assert 0 in lengths and max(lengths) >= 1


def test_wrong_data_is_explained(scenes: Path, tmp_path: Path):
    for name, advice in (("nowhere", "Hub id"), ("scenes", "prepare scenes")):
        with pytest.raises(FileNotFoundError, match=rf"no folder at .*{name}[\s\S]*{advice}"):
            RegionDataset(open_images(tmp_path / name, "train"), ARGS, VIEWS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no Parquet file"):
        RegionDataset(open_images(tmp_path / "empty", "train"), ARGS, VIEWS)
    with pytest.raises(ValueError, match=r"(?i)unknown split \"test\""):
        RegionDataset(open_images(scenes, "test"), ARGS, VIEWS)
    with pytest.raises(ValueError, match=r"index is 999, but the split holds 24"):
        draw_sample(RegionDataset(open_images(scenes, "train"), ARGS, VIEWS), 0, 999)
    columns = {"image": [b"x"], "picture": [1]}
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "other" / "train-0.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns height, width; it has image, picture"):
        RegionDataset(open_images(tmp_path / "other", "train"), ARGS, VIEWS)


def test_a_loader_takes_nothing_from_the_global_stream_of_randomness(scenes: Path):
    """A resumed run makes its iterator after the stream was put back: a draw here would shift every later one."""
    dataset = RegionDataset(open_images(scenes, "train"), ARGS, VIEWS)
    batches = StepBatches(len(dataset), 8, first_step=0, last_step=2)
    for workers in (0, 1):
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        next(iter(build_loader(dataset, batches, workers, False)))
        assert torch.equal(torch.rand(4), expected)


# --- images that cannot be read


class Faulty:
    """A source some of whose images cannot be read: their headers, or only their pixels."""

    def __init__(self, source: ImageSource, headers: set[int] = frozenset(), pixels: set[int] = frozenset()):
        self.source, self.bad_headers, self.bad_pixels = source, headers, headers | pixels
        self.decoded: list[int] = []

    def __getattr__(self, name: str):
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def size(self, index: int) -> tuple[int, int]:
        if index in self.bad_headers:
            raise BrokenImage(self.image_id(index), "is broken")
        return self.source.size(index)

    def pixels(self, index: int) -> np.ndarray:
        self.decoded.append(index)
        if index in self.bad_pixels:
            raise BrokenImage(self.image_id(index), "is broken")
        return self.source.pixels(index)


@pytest.mark.parametrize("kind", ["headers", "pixels"])
def test_the_next_readable_image_takes_the_place_of_a_broken_one(scenes: Path, kind: str):
    source = open_images(scenes)
    bad = {3, 4, 23, 11, 12, 13, 14, 15, 16, 17}
    dataset = RegionDataset(Faulty(source, **{kind: bad}), ARGS, VIEWS)
    keys = [(1, index) for index in range(24)]
    batch = dataset.__getitems__(keys)
    stand_in = {3: 5, 4: 5, 23: 0} | dict.fromkeys(range(11, 18), 18)
    assert batch.indices == [stand_in.get(index, index) for index in range(24)]
    assert sorted(batch.broken) == sorted((source.image_id(index), "is broken") for index in bad)
    whole = RegionDataset(source, ARGS, VIEWS).__getitems__(keys)
    for row in set(range(24)) - bad:  # a sample whose donor is sound too is what it would have been
        if dataset._donor(1, row, row, {})[0] == RegionDataset(source, ARGS, VIEWS)._donor(1, row, row, {})[0]:
            for name, view in batch.views.items():
                assert torch.equal(view.pixel_values[row], whole.views[name].pixel_values[row]), (name, row)


@pytest.mark.parametrize("kind", ["headers", "pixels"])
def test_what_was_met_before_changes_no_sample(scenes: Path, kind: str):
    """One process meets a broken image as a sample first, another as a donor first."""
    keys = [(epoch, index) for epoch in range(3) for index in range(24)]

    def samples(order: list[int]) -> dict[int, RegionBatch]:
        dataset = RegionDataset(Faulty(open_images(scenes), **{kind: {2, 3, 9, 10, 11, 20}}), ARGS, VIEWS)
        return {place: dataset[keys[place]] for place in order}

    forward, backward = samples(list(range(len(keys)))), samples(list(range(len(keys)))[::-1])
    assert all(same(forward[place], backward[place]) for place in forward)


def test_a_donor_is_never_the_image_that_is_shown_instead(scenes: Path):
    dataset = RegionDataset(Faulty(open_images(scenes), headers={3, 4}), ARGS, VIEWS)
    for epoch in range(40):
        donor, size = dataset._donor(epoch, 3, 5, {})
        assert donor not in (3, 4, 5) and size == (64, 64)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_only_donors_that_are_needed_are_decoded(scenes: Path, share: float):
    faulty = Faulty(open_images(scenes))
    args = ViewArguments(view_size_px=32, mixed_share=share)
    batch = RegionDataset(faulty, args, VIEWS).__getitems__([(0, index) for index in range(24)])
    mixed = len(batch.views["repositioned"].pixel_values)
    assert len(faulty.decoded) == 24 + mixed
    assert share == pytest.approx(mixed / 24, abs=0.25)


def test_a_split_in_which_nothing_is_readable_ends_with_an_error(scenes: Path):
    for few in (set(), {7}):
        faulty = Faulty(open_images(scenes), pixels=set(range(24)) - few)
        with pytest.raises(UnusableData, match=r"none of 24 images in a row from number \d+ on .*\s.*is broken"):
            RegionDataset(faulty, ARGS, VIEWS)[(0, 0)]
    plan = StepBatches(24, 6, last_step=1)
    with pytest.raises(UnusableData) as told:
        next(iter(build_loader(RegionDataset(faulty, ARGS, VIEWS), plan, 1, False)))
    text = str(told.value)
    traceback.clear_frames(told.tb)  # they keep the worker alive
    assert "none of 24 images" in text and "Traceback" not in text


def test_workers_tell_of_broken_images_too(pictures: Path):
    (pictures / "a/02.jpg").write_bytes(b"no picture")
    (pictures / "b/05.jpg").write_bytes((pictures / "b/05.jpg").read_bytes()[:-300])
    dataset = RegionDataset(open_images(pictures), ARGS, VIEWS)
    batches = StepBatches(len(dataset), 6, 1, (0,), 0, 4, seed=0)
    loaders = [build_loader(dataset, batches, workers, False) for workers in (0, 2)]
    told = set()
    for here, there in zip(*loaders, strict=True):
        assert same(here, there)
        assert {name for name, _ in here.broken} == {name for name, _ in there.broken}
        told |= {name for name, _ in here.broken}
    assert told == {"a/02.jpg", "b/05.jpg"}


def test_ten_thousand_boxes_are_no_burden(pictures: Path):
    source = FolderImages(pictures)
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((10_000, 2, 2)), axis=1).reshape(-1, 4)
    source.boxes = lambda index, epoch: corners  # type: ignore[method-assign]
    dataset = RegionDataset(source, ARGS, VIEWS)
    started = time.perf_counter()
    batch = dataset.__getitems__([(0, index) for index in range(12)])
    assert time.perf_counter() - started < 2, "about 0.1 s are right"
    for view in batch.views.values():
        assert view.boxes.shape == (12, ARGS.num_regions, 4)
        assert view.valid_regions.any(1).all()
