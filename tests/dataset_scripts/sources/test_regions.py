"""A built folder again, with other regions."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from dataset_scripts.build.parquet import build_dataset, load_manifest
from dataset_scripts.check import check_dataset
from dataset_scripts.prepare import build_parser, main
from dataset_scripts.proposals import PROVIDERS, Proposals
from dataset_scripts.sources.regions import regions_source
from dataset_scripts.sources.scenes import scenes_source


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    build_dataset(folder, scenes_source(train=7, validation=3, size_px=64), rows_per_shard=3)
    return folder


def rows_of(folder, split):
    return [row for path in sorted((folder / "data").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def test_only_regions_change(scenes, tmp_path, capsys):
    output = tmp_path / "again"
    command = ["regions", "--source", str(scenes), "--output", str(output), "--workers", "1"]
    cache = tmp_path / "cache"
    assert main([*command, "--proposals", "selective", "--proposals-cache", str(cache)]) == 0
    assert check_dataset(output) == []
    for split in ("train", "validation"):
        before, after = rows_of(scenes, split), rows_of(output, split)
        assert [row["image_id"] for row in before] == [row["image_id"] for row in after]
        for old, new in zip(before, after, strict=True):
            assert set(new["regions"]["source"]) == {"selective"}
            assert {**old, "regions": None} == {**new, "regions": None}
    manifest = load_manifest(output)
    assert manifest["recipe"]["of_recipe"] == load_manifest(scenes)["recipe"]
    assert manifest["recipe"]["proposals"]["provider"] == "selective"
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 10
    loaded = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.features == load_dataset(str(scenes), split="train", cache_dir=str(tmp_path / "hf")).features
    card = (output / "README.md").read_text()
    assert "# DecodePos scenes" in card
    assert "license: apache-2.0" in card
    assert "with other regions" in card and "Procedural scenes for studying" in card
    assert card.count("| split | images | MB |") == 1
    assert main(["regions", "--source", str(scenes), "--output", str(output), "--proposals", "grid"]) == 2
    assert "the folder has" in capsys.readouterr().err


def test_tiers_licences_and_lists_come_along(tmp_path):
    source = dataclasses.replace(
        scenes_source(train=5, validation=2, size_px=64),
        title="Scenes",
        license=["mit", "cc0-1.0"],
        tiers={"small": {"train": 2, "validation": 1}},
        extra_files={"missing_ids.txt": "a\n"},
    )
    build_dataset(tmp_path / "first", source)
    build_dataset(tmp_path / "second", dataclasses.replace(regions_source(tmp_path / "first"), proposals="grid"))
    assert load_dataset(str(tmp_path / "second"), "small", split="train", cache_dir=str(tmp_path / "hf")).num_rows == 2
    assert (tmp_path / "second" / "missing_ids.txt").read_text() == "a\n"
    assert DatasetCard.load(tmp_path / "second" / "README.md").data.license == ["mit", "cc0-1.0"]


def test_a_cache_changes_no_byte(scenes, tmp_path):
    for name, more in (("plain", []), ("first", ["cache"]), ("second", ["cache"])):
        command = ["regions", "--source", str(scenes), "--output", str(tmp_path / name), "--workers", "1"]
        options = ["--proposals-cache", str(tmp_path / "cache")] if more else []
        assert main([*command, "--proposals", "selective_320", *options]) == 0
    manifests = [load_manifest(tmp_path / name) for name in ("plain", "first", "second")]
    assert manifests[0]["data_sha256"] == manifests[1]["data_sha256"] == manifests[2]["data_sha256"]
    assert manifests[0]["recipe_sha256"] == manifests[1]["recipe_sha256"]


def test_the_bytes_do_not_depend_on_the_number_of_workers(scenes, tmp_path):
    def build(name, workers, cache=None):
        source = dataclasses.replace(regions_source(scenes), proposals=Proposals("selective", cache=cache))
        build_dataset(tmp_path / name, source, workers, rows_per_shard=2)
        return {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}

    one = build("one", 1)
    assert len(one) == 9  # six shards, manifest, card, lock
    assert build("two", 2, cache=str(tmp_path / "cache")) == one


def test_a_source_that_will_not_do_is_refused(scenes, tmp_path, capsys):
    assert main(["regions", "--source", str(scenes), "--output", str(scenes)]) == 2
    assert "are both" in capsys.readouterr().err
    assert main(["regions", "--source", str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    assert "No manifest.json" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text(json.dumps(load_manifest(scenes) | {"complete": False}))
    with pytest.raises(ValueError, match="is not finished"):
        regions_source(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(load_manifest(scenes)))
    with pytest.raises(ValueError, match="train-00000-of-00003.parquet is missing"):
        regions_source(tmp_path)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train-00000-of-00003.parquet"
    pq.write_table(pq.read_table(scenes / "data" / path.name).drop_columns(["author"]), path)
    with pytest.raises(ValueError, match="has the columns image, image_id.*expected in"):
        regions_source(tmp_path)


def test_a_mask_model_goes_with_masks_only(tmp_path, capsys):
    command = ["scenes", "--output", str(tmp_path / "x"), "--proposals", "grid", "--mask-model", "y"]
    assert main(command) == 2
    assert "it is for masks alone" in capsys.readouterr().err


def test_the_page_on_regions_names_every_provider_and_types_what_exists():
    page = (Path(__file__).parents[3] / "docs" / "regions.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) >= set(PROVIDERS)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 3
    for command in commands:
        python, _, module, *arguments = shlex.split(command)
        assert (python, module) == ("python", "dataset_scripts.prepare")
        build_parser().parse_args(arguments)
