"""The benchmarks of the data path run, and both of their sides make the same views."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks.build
import benchmarks.csv
import benchmarks.diagnose
import benchmarks.gpu
import benchmarks.loader
import benchmarks.object_features
import benchmarks.object_knn
import benchmarks.peers
import benchmarks.rank
import benchmarks.remedy_layer
import benchmarks.views
from benchmarks.photos import Photo, decode_each_time, decode_once, random_boxes, synthetic_jpeg
from benchmarks.pil_views import PilViews
from modeling_decodepos.augmentations.region_cutout import sample_grid_boxes, sample_region_cut
from modeling_decodepos.diagnosis import diagnose
from modeling_decodepos.diagnosis.data.scenes import build_scene_data
from modeling_decodepos.diagnosis.measures.metrics import BENCHMARK_TASKS
from modeling_decodepos.losses import PAIR_LOSSES
from tests.dataset_scripts.small_sources import annotation_entry, coco, image_entry
from tests.training.conftest import scenes  # noqa: F401
from training.evaluation.models import load_model
from training.recipe import ViewArguments
from training.views.normalise import IMAGE_MEAN, IMAGE_STD

# One window, no colours: what is left to chance is the flip and the cuts.
PLAIN = ViewArguments(
    jitter_probability=0, grayscale_probability=0, blur_probability=0, blur_probability_whole=0,
    solarize_probability=0, flip="none", crop_scale_min=1.0, crop_aspect=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    rng = np.random.default_rng(0)
    return [Photo(synthetic_jpeg(seed), random_boxes(rng)) for seed in range(3)]


def run(main: Callable[[], None], options: str, monkeypatch: pytest.MonkeyPatch, capsys) -> tuple[str, dict]:
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["benchmark", *options.split()])
    try:
        main()
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    return printed, json.loads(printed.splitlines()[-1])


def test_the_views_benchmark_ends_with_its_result(monkeypatch: pytest.MonkeyPatch, capsys):
    printed, result = run(benchmarks.views.main, "--rounds 1 --images-count 2", monkeypatch, capsys)
    assert "synthetic" in printed
    assert result["name"] == "views" and result["ratio"] > 0
    assert set(result["ratios"]) == {"JPEG, uint8", "JPEG, float", "cache, uint8", "cache, float"}
    assert result["agreement"]["crop, resize, flip"]["greatest"] <= 1


def test_the_loader_benchmark_ends_with_its_result(monkeypatch: pytest.MonkeyPatch, capsys):
    options = "--rounds 1 --images-count 2 --batches 2 --batch-size 2 --workers 1"
    _, result = run(benchmarks.loader.main, options, monkeypatch, capsys)
    assert result["name"] == "loader" and result["ratio"] > 0
    ours, theirs = result["cases"]["JPEG"], result["cases"]["theirs"]
    assert theirs["kilobytes_per_image"] == pytest.approx(4 * ours["kilobytes_per_image"], rel=0.01)
    assert 0 < ours["worker_peak_mb"] < 100_000


def test_the_build_benchmark_ends_with_its_result(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    source = coco(tmp_path / "coco", [image_entry(1), image_entry(2)], [annotation_entry(1, 1, [2, 3, 20, 15])])
    printed, result = run(benchmarks.build.main, f"--source {source} --rounds 1", monkeypatch, capsys)
    assert result["name"] == "build" and result["ratio"] > 0
    assert "regions: selective_320" in printed and "EXTRAPOLATED" in printed


@pytest.mark.slow
def test_the_csv_benchmark_ends_with_its_result(monkeypatch: pytest.MonkeyPatch, capsys):
    _, result = run(benchmarks.csv.main, "--rows 40000", monkeypatch, capsys)
    assert result["name"] == "csv" and result["unit"] == "rows/s"
    assert set(result["peak_mb"]) == {"ours", "theirs"}


@pytest.mark.slow
def test_the_diagnosis_benchmark_ends_with_its_result(monkeypatch: pytest.MonkeyPatch, capsys):
    options = "--networks ViT-S/16 --images 4 --size 64"
    _, result = run(benchmarks.diagnose.main, options, monkeypatch, capsys)
    assert result["name"] == "diagnose" and result["ratio"] > 0
    assert result["cases"]["ViT-S/16"]["processor_s"] > 0


def test_the_remedy_benchmark_prints_every_layer(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(benchmarks.remedy_layer, "build_photo_data", lambda data, *draw: build_scene_data(*draw))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    options = "random:resnet18 --data scenes --images 20 --size_px 64 --seeds 2"
    monkeypatch.setattr("sys.argv", ["remedy_layer", *options.split()])
    benchmarks.remedy_layer.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("centred", "projection", "whitening", "remedy", "fitted on"))
    assert "knn_recontextualised" in printed and "±" in printed


@pytest.mark.slow
def test_the_rank_benchmark_scores_as_the_diagnosis_does(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path):
    monkeypatch.setattr(benchmarks.rank, "TRAINED", ())
    monkeypatch.setattr(benchmarks.rank, "RANDOM", ("random:resnet_tiny", "random:vit_tiny"))
    options = f"--networks {tmp_path} --output {tmp_path} --pairs 16 24"
    printed, result = run(benchmarks.rank.main, options, monkeypatch, capsys)
    assert result["name"] == "rank" and result["rows"] == 96 and -1 <= result["ours"] <= 1
    (data, _) = benchmarks.rank.draw(24, (0, 1))
    last = diagnose(["random:vit_tiny"], data, size_px=160, random_seeds=1, measures="position,context,same_object")
    for task in BENCHMARK_TASKS:
        assert f"{last.models[0].last.numbers[task].value:.3f} /" in printed
    monkeypatch.setattr(benchmarks.rank, "load_model", None)  # what is there is not measured again
    again, _ = run(benchmarks.rank.main, options, monkeypatch, capsys)
    assert again.splitlines()[1:] == [line for line in printed.splitlines()[1:] if "scored" not in line]


def test_equal_values_share_a_rank():
    values = torch.tensor([3.0, 1.0, 2.0, 2.0])
    assert benchmarks.rank.spearman(values, values) == pytest.approx(1)
    assert benchmarks.rank.spearman(values, -values) == pytest.approx(-1)
    # Ranks 4, 1, 2.5, 2.5 beside 3, 1, 2, 4.
    assert benchmarks.rank.spearman(values, torch.tensor([30.0, 10.0, 20.0, 40.0])) == pytest.approx(0.6325, abs=1e-4)


def test_the_neighbour_benchmark_ends_with_its_result(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(benchmarks.object_knn, "peak_mb", lambda name, sizes, threads: 1.0)
    monkeypatch.setattr(benchmarks.object_knn, "COCO_GALLERY", 85_000)
    monkeypatch.setattr(benchmarks.object_knn, "COCO_QUERIES", 40)
    options = "--rounds 1 --gallery 500 --queries 20 --width 8 --photos 3 --size_px 64"
    printed, result = run(benchmarks.object_knn.main, options, monkeypatch, capsys)
    assert result["name"] == "object_knn" and result["ratio"] > 0
    assert {"ours", "naive"} <= set(result["ratios"])
    assert "3 photos at 64 pixels, 39 pictures through random:mobilenet_v2" in printed
    assert result["features_ratio"] > 0
    assert "EXTRAPOLATED to all queries" in printed
    assert result["coco_extrapolated_seconds"] == pytest.approx(10 * result["coco_tenth_seconds"], rel=1e-3)


def test_the_feature_benchmark_counts_only_where_both_ways_agree(monkeypatch: pytest.MonkeyPatch):
    embed = benchmarks.object_features.NaiveModel.embed
    monkeypatch.setattr(
        benchmarks.object_features.NaiveModel, "embed", lambda self, *given: embed(self, *given) * 1.001
    )
    with pytest.raises(SystemExit, match=r"the features differ by 1\.0e-03 of the largest one"):
        benchmarks.object_features.measure_features("random:mobilenet_v2", None, 64, 2, 1, 1)


def test_both_sides_show_the_same_pixels(photos: list[Photo]):
    """With one window and no colours, a view of theirs is one of ours, perhaps mirrored, up to rounding."""
    random.seed(0)
    for index, photo in enumerate(photos):
        batch = decode_each_time(photos, PLAIN, ["crop"])[(0, index)]
        donor = photos[(index + 1) % len(photos)]
        theirs, boxes, valid = PilViews(PLAIN)(photo.open(), donor.open(), photo.boxes.tolist())["crop"]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        levels = (theirs * std + mean) * 255
        ours = batch.views["crop"].pixel_values[0].float()
        differences = [float((levels - candidate).abs().mean()) for candidate in (ours, ours.flip(2))]
        assert min(differences) < 0.05
        assert max(differences) > 5
        assert boxes.shape == (4, 4) and valid.all()


def test_both_sides_cut_the_same_share(photos: list[Photo]):
    random.seed(0)
    peer, size = PilViews(PLAIN), PLAIN.view_size_px
    shares: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        regions = photos[0].boxes[:4]
        ratio = rng.uniform(PLAIN.cut_ratio_min, PLAIN.cut_ratio_max)
        cut = sample_region_cut(np.concatenate([regions, sample_grid_boxes(rng)]), (size, size), ratio, rng)
        shares["ours"].append(float(cut.mean()))
        pixels = peer._cut(torch.ones(3, size, size), [tuple(box) for box in regions.tolist()])
        shares["theirs"].append(float((pixels[0] == 0).float().mean()))
    assert np.mean(shares["ours"]) == pytest.approx(np.mean(shares["theirs"]), abs=0.03)


def test_the_peer_moves_regions_over_the_donor():
    """On a white image and a black donor: white where the boxes are, less what was cut from them, and black around."""
    random.seed(1)
    image, donor = Image.new("RGB", (320, 240), "white"), Image.new("RGB", (320, 240), "black")
    regions = [(0.2, 0.2, 0.5, 0.6), (0.4, 0.3, 0.7, 0.9)]
    for _ in range(10):
        pixels, boxes, valid = PilViews(PLAIN)(image, donor, regions)["repositioned"]
        white = pixels[0] > 0
        inside = torch.zeros_like(white)
        for x1, y1, x2, y2 in (boxes[valid] * PLAIN.view_size_px).round().int().tolist():
            inside[y1:y2, x1:x2] = True
        assert not white[~inside].any()
        assert 0.4 < float(white[inside].float().mean()) < 0.95


def test_the_cache_holds_smaller_pictures_of_the_same(photos: list[Photo]):
    full, cached = (make(photos, PLAIN, ["crop"]) for make in (decode_each_time, decode_once))
    assert cached.source.pixels(0).shape == (288, 384, 3)
    ours, smaller = (data[(0, 0)].views["crop"].pixel_values.float() for data in (full, cached))
    assert 0 < float((ours - smaller).abs().mean()) < 5


def test_the_peer_of_object_features_is_given_all_pictures_at_once(monkeypatch: pytest.MonkeyPatch):
    """Else both sides go through the network in the same small parts, and the ratio says nothing."""
    fast = load_model("random:resnet_tiny", 0)
    naive = benchmarks.object_features.NaiveModel(fast.name, fast.net, fast.mean, fast.std)
    pixels, boxes = torch.zeros(20, 3, 64, 64, dtype=torch.uint8), [torch.tensor([[0.1, 0.1, 0.8, 0.8]])] * 20
    seen: dict[str, list[int]] = {}
    for name, model in (("naive", naive), ("fast", fast)):
        prepare, sizes = model.prepare, seen.setdefault(name, [])
        monkeypatch.setattr(model, "prepare", lambda part, p=prepare, s=sizes: (s.append(len(part)), p(part))[1])
        model.embed(pixels, boxes)
    assert seen["naive"] == [20]
    assert max(seen["fast"]) <= 10


@pytest.mark.slow
def test_a_small_gpu_day_loses_only_the_part_that_fails(tmp_path: Path):
    options = ["--small", "--output", str(tmp_path), "--data", "no/such/folder"]
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    found = {name: {row.pop("name"): row for row in part["findings"]} for name, part in parts.items()}
    assert {name: part["errors"] for name, part in parts.items() if name != "seeds"} == {
        "machine": [], "parity": [], "throughput": [], "data_wait": []
    }, done.stderr  # fmt: skip
    assert parts["seeds"]["status"] == "failed" and done.returncode == 1
    assert list(found["seeds"]) == ["byol_region, seed 0"] and "no/such/folder" in parts["seeds"]["errors"][0]
    assert found["machine"]["machine"]["torch"] == torch.__version__ and found["machine"]["code"]["commit"]
    losses = [f"loss {kind}" for kind in PAIR_LOSSES]
    assert list(found["parity"]) == ["region pooling", *losses, "training step"] and "loss match" in losses
    assert all(row["agrees"] for row in found["parity"].values()) and found["parity"]["training step"]["loss"] > 0
    eager = found["throughput"]["ResNet-18 at 160 px"]
    assert 0 < eager["share_of_peak"] < 1 and eager["gflop_per_image"] > 0 and eager["peak_memory_gb"] > 0
    assert found["throughput"]["ResNet-18 at 160 px, traced"]["images_per_s"] > 0
    assert {name: 0 <= row["data_wait"] < 1 for name, row in found["data_wait"].items()} == {
        "0 workers": True, "2 workers": True
    }  # fmt: skip
    assert "no/such/folder" in (tmp_path / "gpu.html").read_text()


def test_a_gpu_day_trains_and_measures_both_arms(tmp_path: Path):
    options = benchmarks.gpu.parser().parse_args(["--small", "--work", str(tmp_path), "--limit", "600"])
    rows = {row["name"]: row for row in benchmarks.gpu.seeds(options)}
    assert set(rows) == {"byol_region, seed 0", "both, seed 0"}
    assert all(0 <= row["object_knn"] <= 1 and row["measured_regions"] > 0 for row in rows.values())


def test_sides_that_differ_are_told():
    flaky = iter((0.0, 1e-3))
    call = lambda values: values * 2 + next(flaky)  # noqa: E731
    found = benchmarks.gpu.compare(call, torch.ones(3))
    assert not found["agrees"] and found["gradient"] == 0 and found["values"] == pytest.approx(5e-4, rel=0.01)


def test_a_part_that_hangs_ends_at_its_limit_with_what_it_found(tmp_path: Path):
    options = benchmarks.gpu.parser().parse_args(["--small", "--output", str(tmp_path), "--work", str(tmp_path)])
    part: dict = {}
    benchmarks.gpu.run_apart(options, "parity", 0.5, part, lambda: None)
    assert part["status"] == "failed" and part["errors"] == ["ended at its limit of 0.5 s"] and part["seconds"] < 30


@pytest.mark.slow
@pytest.mark.parametrize("method", ["byol", "densecl"])
def test_a_peer_trains_what_our_measures_take(method, scenes, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Where `lightly` is installed, which needs an environment of its own."""
    pytest.importorskip("lightly")
    options = f"{method} --data {scenes} --backbone resnet_tiny --size_px 64 --batch 4 --steps 2 --output {tmp_path}"
    _, result = run(benchmarks.peers.main, options, monkeypatch, capsys)
    assert result["images"] == 8 and np.isfinite(result["loss"]).all()
    assert load_model(str(tmp_path), 0).reading == "known"
