import contextlib
import json
import math
from pathlib import Path

import pytest
import torch

from dataset_scripts.files import read_json_lines
from tests.training.runs import run_command, small_run
from training.errors import RunStopped
from training.run.health import CollapseWatch, KnnWatchdog, Watch, measure_spread

SIZE = 64  # a perfect spread is 1 / 8
FULL = 64.0


@pytest.fixture
def checkpoints(tmp_path):
    for step in (50, 100, 150):
        (tmp_path / "checkpoints" / f"step_{step:07d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step_{step:07d}" / "state.json").write_text("{}")
    (tmp_path / "checkpoints" / ".writing_step_0000200").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def watch(checkpoints):
    def build(warn_below=0.5, stop_below=0.1, patience=3, grace_steps=20, **state):
        return CollapseWatch(SIZE, warn_below, stop_below, patience, grace_steps, checkpoints, **state)

    return build


def feed(watch, shares, rank=30.0, full_rank=FULL, first=10):
    """Steps 10, 20, ... with spreads as shares of a perfect one; the warnings by step."""
    warnings = {}
    for number, share in enumerate(shares):
        step = first + 10 * number
        warning = watch.observe(step, share / 8, rank, full_rank)
        if warning:
            warnings[step] = warning
    return warnings


def test_a_healthy_run_is_left_alone(watch):
    assert feed(watch(), [0.95, 0.8, 0.7, 0.75, 0.6, 0.55] * 10) == {}


def test_a_narrowing_run_is_warned_once(watch):
    warnings = feed(watch(), [0.9, 0.6, 0.45, 0.4, 0.7, 0.3])
    assert list(warnings) == [30]
    assert "standard deviation 0.056, perfect spread 0.12; effective rank 30.0 of 64" in warnings[30]
    assert feed(watch(warn_below=0.0), [0.9, 0.3]) == {}


def test_a_collapsed_run_is_stopped_with_everything_to_know(watch, checkpoints):
    guard = watch()
    feed(guard, [0.9] * 11 + [0.05, 0.04])
    with pytest.raises(RunStopped) as stopped:
        guard.observe(140, 0.03 / 8, 2.7, FULL)
    text = str(stopped.value)
    assert text.startswith("stopped at step 140: the embeddings have collapsed")
    assert "standard deviation 0.0037, perfect spread 0.12; effective rank 2.7 of 64" in text
    assert "last healthy log line: step 110" in text
    assert str(checkpoints / "step_0000100") in text  # 150 is newer, but already collapsed
    for key in ("base_learning_rate", "teacher_momentum", "use_predictor", "collapse_stop"):
        assert key in text


def test_a_short_dip_stops_nothing(watch):
    feed(watch(), [0.9, 0.9, 0.05, 0.05, 0.2, 0.05, 0.05, 0.9] * 5)


def test_nothing_is_stopped_in_the_grace_period_and_a_collapse_that_lasts_is_after_it(watch):
    guard = watch(grace_steps=100)
    feed(guard, [0.01] * 10)
    with pytest.raises(RunStopped, match="step 110.*collapsed for 11 log lines.*healthy log line: none"):
        guard.observe(110, 0.01 / 8, 2.0, FULL)
    guard = watch(grace_steps=100)
    feed(guard, [0.01] * 10 + [0.5] * 5)  # it recovered


def test_a_line_is_a_collapse_whatever_its_spread(watch):
    with pytest.raises(RunStopped, match="effective rank 1.2 of 64"):
        feed(watch(), [0.9] * 6, rank=1.2)
    feed(watch(), [0.9] * 6, rank=1.2, full_rank=2.0)  # two regions fill no more


def test_zero_switches_the_stop_off(watch):
    feed(watch(stop_below=0.0), [0.0] * 30, rank=1.0)


def test_lines_without_a_number_count_neither_way(watch):
    guard = watch()
    feed(guard, [0.9, 0.9, 0.9, 0.05, 0.05])
    assert guard.observe(60, math.nan, math.nan, 1.0) is None
    with pytest.raises(RunStopped):
        guard.observe(70, 0.05 / 8, 2.5, FULL)


def test_without_an_old_checkpoint_the_message_says_so(tmp_path):
    guard = CollapseWatch(SIZE, 0.5, 0.1, 1, 0, tmp_path / "checkpoints")
    with pytest.raises(RunStopped, match="holds no checkpoint that old: begin anew, and set save_steps"):
        guard.observe(5, 0.0, 1.0, FULL)


def test_a_watch_goes_on_from_its_state(watch):
    first = watch()
    feed(first, [0.9, 0.9, 0.45, 0.05, 0.05])
    state = json.loads(json.dumps(first.state()))
    assert watch(**state).observe(60, 0.4 / 8, 30.0, FULL) is None  # it has warned before
    second = watch(**state)
    assert second.state() == first.state() != watch().state()
    for guard in (first, second):
        with pytest.raises(RunStopped, match="healthy log line: step 30"):
            guard.observe(60, 0.05 / 8, 2.5, FULL)


def test_the_watchdog_stops_a_run_that_loses_what_it_began_with(checkpoints):
    dog = KnnWatchdog(0.7, checkpoints)
    for step, value in ((0, 0.5), (60, 0.4), (120, 0.36), (180, 0.6)):
        dog.observe(step, {"object_knn": 0.9, "object_knn_class_mean": value, "region_retrieval": 0.0})
    with pytest.raises(RunStopped) as stopped:
        dog.observe(240, {"object_knn": 0.9, "object_knn_class_mean": 0.34})
    text = str(stopped.value)
    assert "stopped at step 240: object_knn_class_mean fell to 0.34 from 0.5 at the start" in text
    assert "at least 0.35 is wanted (watchdog_share 0.7)" in text
    assert "last above that at step 180" in text
    assert str(checkpoints / "step_0000150") in text
    assert "base_learning_rate" in text


def test_a_watchdog_that_can_tell_no_fall_says_so(checkpoints):
    for share, value, said in ((0.7, 0.0, True), (0.7, 0.003, True), (0.7, 0.5, False), (0.0, 0.0, False)):
        line = KnnWatchdog(share, checkpoints).observe(0, {"object_knn": value, "measured_regions": 1000})
        assert (f"nothing is watched: object_knn is {value:g} at the start" in str(line)) == said
    line = KnnWatchdog(0.7, checkpoints).observe(0, {"position_r2": 0.5})
    assert "there is no region_retrieval at the start" in line


@pytest.mark.parametrize(
    ("names", "watched"),
    [
        (["region_retrieval", "object_knn", "object_knn_class_mean"], "object_knn_class_mean"),
        (["region_retrieval", "object_knn"], "object_knn"),
        (["position_r2", "region_retrieval"], "region_retrieval"),
    ],
)
def test_the_watchdog_looks_at_the_best_measure_there_is(checkpoints, names, watched):
    dog = KnnWatchdog(0.5, checkpoints)
    dog.observe(0, dict.fromkeys(names, 0.8))
    with pytest.raises(RunStopped, match=f"{watched} fell to 0.1 from 0.8"):
        dog.observe(10, dict.fromkeys(names, 0.1))


def test_the_watchdog_can_be_off_and_needs_something_to_watch(checkpoints):
    off = KnnWatchdog(0.0, checkpoints)
    nothing = KnnWatchdog(0.7, checkpoints)
    for step, value in ((0, 0.9), (10, 0.0)):
        off.observe(step, {"object_knn": value})
        nothing.observe(step, {"position_r2": value})
    assert off.state()["healthy_step"] == 10


def test_the_watchdog_does_not_bark_at_noise(checkpoints):
    """0.015 after 0.0225 is no fall among 1,000 regions (standard error 0.005), and one among 10,000."""
    for regions, barks in ((1000, False), (10_000, True)):
        dog = KnnWatchdog(0.7, checkpoints)
        dog.observe(0, {"object_knn": 0.0225, "measured_regions": regions})
        with pytest.raises(RunStopped) if barks else contextlib.nullcontext():
            dog.observe(10, {"object_knn": 0.015, "measured_regions": regions})


def test_regions_that_are_found_again_are_as_many_as_were_moved(checkpoints):
    """0.075 after 0.125 is a fall among 640 regions, and none among the 40 that were moved."""
    for moved, barks in ((40, False), (640, True)):
        dog = KnnWatchdog(0.7, checkpoints)
        dog.observe(0, {"region_retrieval": 0.125, "measured_regions": 640, "exchanged_regions": moved})
        with pytest.raises(RunStopped) if barks else contextlib.nullcontext():
            dog.observe(10, {"region_retrieval": 0.075, "measured_regions": 640, "exchanged_regions": moved})


def test_a_watchdog_goes_on_from_its_state(checkpoints):
    first = KnnWatchdog(0.7, checkpoints)
    first.observe(0, {"object_knn": 0.8})
    second = KnnWatchdog(0.7, checkpoints, **json.loads(json.dumps(first.state())))
    with pytest.raises(RunStopped, match="fell to 0.3 from 0.8"):
        second.observe(10, {"object_knn": 0.3})


def test_a_resumed_run_goes_on_counting_samples_that_could_not_move(make_recipe, tmp_path: Path):
    run, data = small_run(make_recipe(max_immobile_share=0.5))
    first = Watch(run, data.source, stop=None)
    first.observe({}, [True] * 6 + [False] * 2, [])
    run.state = json.loads(json.dumps(first.state()))
    run.step = 5
    second = Watch(run, data.source, stop=None)
    second.observe({}, [False] * 4, [])  # 6 of 12
    with pytest.raises(RunStopped, match="7 of 13 mixed samples"):
        second.observe({}, [False], [])


def test_measures_are_taken_at_the_size_that_is_asked_for(make_recipe):
    for asked, side in ((0, 64), (96, 96)):
        run, data = small_run(make_recipe(measure_steps=2, measure_images=8, measure_size_px=asked))
        online = Watch(run, data.source, stop=None).online
        assert online is not None and online.queries.pixels.shape[-2:] == (side, side)


def test_the_spread_of_valid_rows_is_measured():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(200, 4, 16, generator=generator)
    valid = torch.rand(200, 4, generator=generator) < 0.5
    spread = measure_spread(embeddings, valid)
    assert float(spread["embedding_std"]) == pytest.approx(0.25, rel=0.05)
    assert float(spread["effective_rank"]) == pytest.approx(16, rel=0.05)
    assert float(spread["full_rank"]) == 16
    embeddings[~valid] = 100.0
    for name, value in measure_spread(embeddings, valid).items():
        torch.testing.assert_close(value, spread[name])
    assert float(measure_spread(embeddings[:3], valid[:3])["full_rank"]) == valid[:3].sum()


def test_a_run_that_collapses_is_stopped_and_says_so(recipe_values, tmp_path: Path):
    """No contrast, no predictor, no averaging, far too high a rate: nothing keeps both from agreeing on all."""
    folder = tmp_path / "collapsing"
    collapsing = {"use_predictor": "false", "teacher_momentum": 0.0, "base_learning_rate": 3.0, "warmup_share": 0.0}
    collapsing |= {"pair_loss": "attract", "objective": "both"}
    watch = {"collapse_grace_steps": 8, "collapse_patience": 3, "max_steps": 60, "save_steps": 2}
    done = run_command(recipe_values | collapsing | watch | {"output_dir": folder})
    assert done.returncode == 1, done.stderr[-3000:]
    assert "the embeddings have become narrow" in done.stdout
    assert "the embeddings have collapsed" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_json_lines(folder / "log.jsonl")[-1]["step"] < 60
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    assert not (folder / "export").exists(), "weights that began at chance have no better state to go back to"
    page = (folder / "report.html").read_text()
    assert "the embeddings have collapsed" in page
    assert "stopped itself at about step" in page
