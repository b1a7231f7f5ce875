from pathlib import Path

import datasets
import numpy as np
import pytest

from tests.training.conftest import save_pictures
from tests.training.runs import Make, run_here
from training.data.kept_aside import LEAST, OtherImages, all_but, kept_aside
from training.data.sources import ImageSource, load_split, open_images
from training.probes.during import build_online
from training.recipe import Recipe
from training.run.setup import build_accelerator, build_run

PICTURES = 48


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pictures(tmp_path / "many", [f"{n:03}.png" for n in range(PICTURES)])


@pytest.fixture
def parquet(scenes: Path, tmp_path: Path) -> Path:
    """48 scenes under names of their own, without a validation split."""
    rows = load_split(scenes, "train")
    rows = datasets.concatenate_datasets([rows, rows]).remove_columns("image_id")
    rows = rows.add_column("image_id", [f"scene {n}" for n in range(len(rows))])
    (tmp_path / "scenes/data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "scenes/data/train-00000-of-00001.parquet")
    return tmp_path / "scenes"


def trained_on(recipe: Recipe, output: Path) -> ImageSource:
    return build_run(build_accelerator(recipe), recipe, output)[1].source


def test_what_is_kept_aside_follows_from_seed_and_number(make_recipe: Make, folder: Path):
    data = make_recipe(data=str(folder), hold_out=10_000).data
    kept = kept_aside(data, 0, 1000)
    assert len(set(kept.tolist())) == 100, "at most a tenth"
    assert kept.tolist() == sorted(kept_aside(data, 0, 1000)) and kept.min() >= 0 and kept.max() < 1000
    assert kept.tolist() != kept_aside(data, 1, 1000).tolist()
    fewer = kept_aside(make_recipe(data=str(folder), hold_out=7).data, 0, 1000)
    assert len(fewer) == 7 and set(fewer) < set(kept)
    assert len(kept_aside(data, 0, 10 * LEAST)) == LEAST and len(kept_aside(data, 0, 10 * LEAST - 1)) == 0
    assert sorted([*kept, *all_but(kept, 1000)]) == list(range(1000))


def test_where_there_is_a_validation_split_nothing_is(make_recipe: Make, scenes: Path, parquet: Path):
    rows = 1000
    assert len(kept_aside(make_recipe(data=str(scenes), hold_out=8).data, 0, rows)) == 0
    assert len(kept_aside(make_recipe(data=str(scenes), split="validation", hold_out=8).data, 0, rows)) == 8
    assert len(kept_aside(make_recipe(data=str(parquet), hold_out=8).data, 0, rows)) == 8
    assert len(kept_aside(make_recipe(data=str(parquet)).data, 0, rows)) == 0


@pytest.mark.parametrize("kind", ["folder", "parquet", "cache"])
def test_training_sees_all_others_and_measures_are_on_what_is_kept(
    make_recipe: Make, folder: Path, parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
):
    data = parquet if kind == "parquet" else folder
    changes = {"data": str(data), "hold_out": 256, "measure_steps": 2, "measure_images": 16, "max_steps": 5}
    recipe = make_recipe(**changes, **({"cache_px": 32} if kind == "cache" else {}), mixed_share=1.0)
    run, dataset, batches = build_run(build_accelerator(recipe), recipe, tmp_path / "runs/run")
    assert "kept aside to measure on: 4 of 48 pictures; training sees the other 44\n" in capsys.readouterr().out
    online = build_online(recipe.data, recipe.run, recipe.views.view_size_px)
    assert online is not None
    assert online.describe()["queries"].startswith("kept aside of train: 4 images")
    whole = open_images(data)
    kept = {whole.image_id(index) for index in online.queries.indices}
    assert len(kept) == 4 == len(kept & {whole.image_id(i) for i in kept_aside(recipe.data, 0, PICTURES)})
    assert not kept & {whole.image_id(index) for index in online.gallery.indices}
    seen = {dataset.source.image_id(index) for index in range(len(dataset))}
    assert len(dataset) == batches.length == 44
    assert seen == {whole.image_id(index) for index in range(PICTURES)} - kept
    # As a donor neither: whatever a sample lies before is of the others.
    others = [dataset.source.pixels(index) for index in range(len(dataset))]
    for index in range(len(dataset)):
        donor = dataset.read_sample(0, index).donor
        assert donor is not None and any(np.array_equal(donor, pixels) for pixels in others)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_picture_keeps_the_regions_that_it_had(folder: Path, parquet: Path, kind: str):
    whole = open_images(folder if kind == "folder" else parquet, region_source="random")
    some = OtherImages(whole, np.array([0, 3]))
    assert [some.image_id(index) for index in range(3)] == [whole.image_id(index) for index in (1, 2, 4)]
    for index, own in ((0, 1), (2, 4), (45, 47)):
        np.testing.assert_array_equal(some.boxes(index, 5), whole.boxes(own, 5))
        np.testing.assert_array_equal(some.pixels(index), whole.pixels(own))
        assert some.size(index) == whole.size(own)
    with pytest.raises(IndexError):
        some.pixels(46)
    assert len({whole.fingerprint, some.fingerprint, OtherImages(whole, np.array([0, 4])).fingerprint}) == 3


def test_a_run_goes_on_with_the_same_kept_aside_only(make_recipe: Make, folder: Path, tmp_path: Path, recipe_values):
    values = recipe_values | {"data": str(folder), "max_steps": 2, "save_steps": 1, "output_dir": tmp_path / "run"}
    assert run_here(values | {"hold_out": 4}) == 0
    (tmp_path / "run/export/backbone/model.safetensors").unlink()
    assert "hold_out: 4 there, 0 now" in str(run_here(values))
    assert "without 4 kept aside" in str(run_here(values | {"hold_out": 0, "allow_change": "hold_out"}))
    assert run_here(values | {"hold_out": 4}) == 0


def test_few_pictures_are_all_trained_on_and_a_line_says_so(
    make_recipe: Make, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert len(trained_on(make_recipe(data=str(pictures), hold_out=256), tmp_path / "run")) == 12
    assert "kept aside to measure on: none of 12 pictures" in capsys.readouterr().out


def test_with_a_validation_split_nothing_changes(
    make_recipe: Make, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    source = trained_on(make_recipe(hold_out=256), tmp_path / "run")
    assert source.fingerprint == open_images(scenes).fingerprint and len(source) == 24
    assert "kept aside" not in capsys.readouterr().out


def test_a_stream_keeps_nothing_aside(make_recipe: Make):
    with pytest.raises(ValueError, match=r"hold_out is 8, but streaming .*--hold_out 0"):
        make_recipe(streaming=True, hold_out=8)
