"""Exact pairs: what is drawn, what a benchmark of the Hub needs beside it, and how networks are scored on it."""

import json
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import load_dataset
from huggingface_hub import parse_eval_result_entries

from dataset_scripts.build.parquet import build_dataset
from dataset_scripts.check import check_dataset
from dataset_scripts.sources.pairs import pairs_source
from modeling_decodepos.data.scenes import FIRST_INDEX, render_scene
from modeling_decodepos.diagnosis.command import main
from modeling_decodepos.diagnosis.data.pairs import build_pair_data
from modeling_decodepos.diagnosis.data.photos import open_splits
from modeling_decodepos.diagnosis.data.scene_pairs import PAIR_ROLES, PAIRS_SPLIT, sample_probed
from modeling_decodepos.diagnosis.measures.metrics import BENCHMARK_TASKS
from tests.hub_server import HubServer, run_python

ROOT = Path(__file__).parents[3]
PAIRS, SIDE = 16, 64


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "pairs"
    build_dataset(folder, pairs_source(PAIRS, train=24, size_px=SIDE), rows_per_shard=25)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "net"
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(folder)
    return folder


def test_the_object_is_the_same_to_the_pixel_and_one_thing_about_it_is_not():
    for index in range(8):
        drawn = {role: render_scene(spec) for role, spec in sample_probed(3, index, 160).pictures().items()}
        mask = {role: scene.instances == len(scene.classes) for role, scene in drawn.items()}  # the last is in front
        here = mask["as_is"]
        own = drawn["as_is"].pixels[here]
        for role in ("other_surroundings", "moved"):
            shown = drawn[role].pixels[mask[role]]
            assert len(shown) == len(own)
            assert (shown == own).all(1).mean() > 0.9, role  # all but the rim, which blends in
        assert (mask["other_surroundings"] == here).all() and not (mask["moved"] == here).all()
        outside = ~(here | mask["other_content"])
        changed = (drawn["other_content"].pixels != drawn["as_is"].pixels).any(2)
        assert changed[here].mean() > 0.5 and changed[outside].mean() < 0.15  # the shadow of the object
        assert drawn["other_content"].classes[-1] != drawn["as_is"].classes[-1]
        assert (drawn["other_surroundings"].pixels != drawn["as_is"].pixels).any(2)[~here].mean() > 0.9


def test_the_folder_is_a_benchmark_of_the_hub(benchmark: Path, tmp_path: Path):
    assert not check_dataset(benchmark)
    about = yaml.safe_load((benchmark / "eval.yaml").read_text())
    assert [task["id"] for task in about["tasks"]] == list(BENCHMARK_TASKS)
    assert about["name"] and all(task in about["description"] for task in BENCHMARK_TASKS)
    for task in about["tasks"]:  # what the file names is what `load_dataset` finds
        rows = load_dataset(str(benchmark), task["config"], split=task["split"], cache_dir=str(tmp_path))
        assert len(rows) == 4 * PAIRS
    assert [name.rpartition("-")[2] for name in rows["image_id"]] == list(PAIR_ROLES) * PAIRS


def test_another_seed_draws_others_and_none_is_a_training_scene(benchmark: Path, tmp_path: Path):
    build_dataset(tmp_path / "other", pairs_source(PAIRS, train=2, size_px=SIDE, seed=1))
    one, other = (build_pair_data(str(folder), open_splits(str(folder))) for folder in (benchmark, tmp_path / "other"))
    assert not (one.queries.pixels == other.queries.pixels).flatten(1).all(1).any()
    for index in (0, PAIRS):
        first = FIRST_INDEX["probe"] + 32 * index
        assert first > FIRST_INDEX["validation"] + 500_000_000


def test_every_row_is_shown_as_it_is(benchmark: Path):
    data = build_pair_data(str(benchmark), open_splits(str(benchmark)))
    swaps = data.swaps
    assert data.is_benchmark and data.size_px == SIDE and len(data.queries) == PAIRS and len(data.gallery) == 24
    for index in range(PAIRS):
        drawn = {role: render_scene(spec) for role, spec in sample_probed(0, index, SIDE).pictures().items()}
        shown = (data.queries.pixels[index], swaps.other_surroundings[index], swaps.other_content[index])
        for role, pixels in zip(PAIR_ROLES, (*shown, swaps.moved[index]), strict=True):
            assert (pixels.permute(1, 2, 0).numpy() == drawn[role].pixels).all()
        for box, role in ((swaps.boxes[index], "as_is"), (swaps.moved_boxes[index], "moved")):
            np.testing.assert_allclose(box, drawn[role].boxes[-1], atol=0.51 / SIDE)
        assert data.queries.labels[swaps.regions[index]] == drawn["as_is"].classes[-1]


def test_scores_go_into_the_folder_of_the_model(benchmark: Path, network: Path, tmp_path: Path, capsys):
    output = tmp_path / "report"
    command = [str(network), "--data", str(benchmark), "--output", str(output), "--random_seeds", "1"]
    command += ["--measures", "context,position,same_object", "--eval_results", "ORG/exact-pairs"]
    assert main([*command, "--images", "4", "--size", "32"]) == 0  # neither counts: the rows are fixed
    written = network / ".eval_results" / "exact-pairs.yaml"
    assert f"wrote {written}" in capsys.readouterr().out
    raw = yaml.safe_load(written.read_text())
    assert [entry["dataset"] for entry in raw] == [
        {"id": "ORG/exact-pairs", "task_id": key} for key in BENCHMARK_TASKS
    ]
    report = json.loads((output / "report.json").read_text())
    assert report["settings"]["images"] == PAIRS and report["settings"]["picture_size_px"] == SIDE
    numbers = report["models"][0]["stages"][-1]["numbers"]
    for entry in parse_eval_result_entries(raw):
        assert entry.value == pytest.approx(numbers[entry.task_id]["value"], abs=1e-3)
        assert "decodepos diagnose" in entry.notes and "16 objects" in entry.notes
    before = written.read_bytes()
    assert main(command) == 0 and written.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--eval_results": "exact-pairs"}, "expected the id of the data set on the Hub, ORG/NAME"),
        ({"--eval_results": "a b/c"}, "expected the id of the data set on the Hub, ORG/NAME"),
        ({"--data": "scenes"}, "--data scenes is no benchmark.*dataset_scripts.prepare pairs"),
        ({"MODEL": "random:resnet_tiny"}, "a MODEL must be a folder to be written into, and none is"),
        ({"--seeds": "2"}, "is a benchmark, whose rows are fixed: seeds is 2, expected 1"),
    ],
)
def test_what_cannot_be_scored_is_said_before_the_work(
    change: dict[str, str], said: str, benchmark: Path, network: Path, tmp_path: Path, capsys
):
    flags = {"--data": str(benchmark), "--output": str(tmp_path / "out"), "--eval_results": "ORG/exact-pairs"} | change
    model = flags.pop("MODEL", str(network))
    assert main([model, *chain(*flags.items())]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1

    assert re.search(said, error), error
    assert not (tmp_path / "out" / "report.html").exists()


def test_rows_that_are_no_pairs_are_refused(benchmark: Path, tmp_path: Path):
    (file, *_) = open_splits(str(benchmark))[PAIRS_SPLIT]
    table = pq.read_table(file)
    torn = tmp_path / f"{PAIRS_SPLIT}-00000-of-00001.parquet"
    pq.write_table(table.slice(1), torn)
    with pytest.raises(ValueError, match="four rows per object.*from pairs-0-000000-other_surroundings on"):
        build_pair_data("x", {PAIRS_SPLIT: [torn], "train": [file]})
    pq.write_table(table.slice(0, 8), torn)
    with pytest.raises(ValueError, match="beside a split train; its splits are exact_pairs"):
        build_pair_data("x", {PAIRS_SPLIT: [torn]})


def test_a_benchmark_of_the_hub_is_read_whole(hub: HubServer, benchmark: Path, tmp_path: Path):
    hub.add_repo("org/exact-pairs", benchmark, "dataset")
    code = """
from modeling_decodepos.diagnosis.data.pairs import build_pair_data
from modeling_decodepos.diagnosis.data.photos import open_splits
data = build_pair_data("org/exact-pairs", open_splits("org/exact-pairs"))
print(len(data.queries), len(data.gallery))
"""
    said = run_python(code, hub.env(tmp_path / "home") | {"PYTHONPATH": str(ROOT)})
    assert said.split() == [str(PAIRS), "24"]  # three files of the split, and not the first alone
