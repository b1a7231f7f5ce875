import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_decodepos.losses import OBJECTIVES
from training.arguments import ViewArguments
from training.loading import RegionBatch, RegionDataset, StepBatches, build_loader, decode_image, epoch_order
from training.views import VIEW_RULES

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
    dataset = RegionDataset(scenes, "train", ARGS, VIEWS, seed=5)
    alone = dataset[(2, 7)]
    together = dataset.__getitems__([(2, 3), (2, 7), (0, 7)])
    for name, view in alone.views.items():
        assert torch.equal(view.pixel_values[0], together.views[name].pixel_values[1])
        assert torch.equal(view.boxes[0], together.views[name].boxes[1])
        assert not torch.equal(view.pixel_values[0], together.views[name].pixel_values[2]), (
            "another epoch, other views"
        )
    assert same(RegionDataset(scenes, "train", ARGS, VIEWS, seed=5)[(2, 7)], alone)
    assert not same(RegionDataset(scenes, "train", ARGS, VIEWS, seed=6)[(2, 7)], alone)


def test_worker_processes_change_nothing(scenes: Path):
    dataset = RegionDataset(scenes, "train", ARGS, VIEWS)
    batches = StepBatches(len(dataset), 8, 1, (0,), 0, 4, seed=0)
    for here, there in zip(
        build_loader(dataset, batches, 0, False), build_loader(dataset, batches, 2, False), strict=True
    ):
        assert same(here, there)


def test_batches_are_bytes_with_channels_last(scenes: Path):
    batch = RegionDataset(scenes, "train", ARGS, list(VIEW_RULES)).__getitems__([(0, i) for i in range(4)])
    assert set(batch.views) == set(VIEW_RULES)
    for view in batch.views.values():
        assert view.pixel_values.dtype == torch.uint8
        assert view.pixel_values.is_contiguous(memory_format=torch.channels_last)
        valid = view.boxes[view.valid_regions]
        assert (valid >= 0).all() and (valid <= 1).all() and (valid[:, 2:] > valid[:, :2]).all()


def test_the_donor_is_never_the_sample_itself(scenes: Path):
    dataset = RegionDataset(scenes, "train", ARGS, VIEWS)
    donors = np.array([[dataset._donor(epoch, index) for epoch in range(60)] for index in range(len(dataset))])
    assert (donors != np.arange(len(dataset))[:, None]).all()
    assert all(len(set(row)) > 15 for row in donors.tolist()), "any other image may be drawn"


def test_a_mean_donor_is_one_colour(scenes: Path):
    args = ViewArguments(view_size_px=32, donor="mean")
    dataset = RegionDataset(scenes, "train", args, ["repositioned"])
    for index in range(4):
        _, donor, views = dataset._sample(0, index, ["repositioned"])
        assert donor is not None
        shown = dataset[(0, index)].views["repositioned"].pixel_values[0]
        around = shown[:, ~torch.from_numpy(views["repositioned"].foreground)]
        assert around.unique(dim=1).flatten().tolist() == [124, 116, 104]


def test_a_share_of_mixed_images_makes_a_shorter_view(scenes: Path):
    args = ViewArguments(view_size_px=32, mixed_share=0.25)
    dataset = RegionDataset(scenes, "train", args, VIEWS)
    lengths = set()
    for epoch in range(8):
        batch = dataset.__getitems__([(epoch, i) for i in range(4)])
        view = batch.views["repositioned"]
        lengths.add(len(view.pixel_values))
        rows = list(range(4)) if view.rows is None else view.rows.tolist()
        assert len(rows) == len(view.pixel_values) == len(batch.slack)
        for place, row in enumerate(rows):
            alone = RegionDataset(scenes, "train", ViewArguments(view_size_px=32), VIEWS)[(epoch, row)]
            assert torch.equal(view.pixel_values[place], alone.views["repositioned"].pixel_values[0])
    assert 0 in lengths and max(lengths) >= 1


def test_wrong_data_is_explained(scenes: Path, tmp_path: Path):
    for name, advice in (("nowhere", "Hub id"), ("scenes", "prepare scenes")):
        with pytest.raises(FileNotFoundError, match=rf"no folder at .*{name}[\s\S]*{advice}"):
            RegionDataset(tmp_path / name, "train", ARGS, VIEWS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no Parquet file"):
        RegionDataset(tmp_path / "empty", "train", ARGS, VIEWS)
    with pytest.raises(ValueError, match=r"(?i)unknown split \"test\""):
        RegionDataset(scenes, "test", ARGS, VIEWS)
    with pytest.raises(ValueError, match=r"index is 999, but the split holds 24"):
        RegionDataset(scenes, "train", ARGS, VIEWS).draw(0, 999)
    columns = {"image": [b"x"], "picture": [1]}
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "other" / "train-0.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns height, width; it has image, picture"):
        RegionDataset(tmp_path / "other", "train", ARGS, VIEWS)


def test_a_loader_takes_nothing_from_the_global_stream_of_randomness(scenes: Path):
    """A resumed run makes its iterator after the stream was put back: a draw here would shift every later one."""
    dataset = RegionDataset(scenes, "train", ARGS, VIEWS)
    batches = StepBatches(len(dataset), 8, first_step=0, last_step=2)
    for workers in (0, 1):
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        next(iter(build_loader(dataset, batches, workers, False)))
        assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("data", [b"", None])
def test_an_image_without_bytes_is_named(data: bytes | None):
    with pytest.raises(ValueError, match="image empty-3 has no bytes"):
        decode_image(data, "empty-3")


def test_an_undecodable_image_is_named():
    with pytest.raises(ValueError, match="image broken-7 cannot be decoded"):
        decode_image(b"not a picture", "broken-7")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_any_mode_becomes_rgb(mode: str):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (200, 30, 60)).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode_image(file.getvalue(), "x")
    assert pixels.shape == (4, 5, 3) and pixels.dtype == np.uint8
    expected = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(pixels.astype(int) - expected).max() <= 3
