"""Sweeps: what their files may say, that rows are finished one by one, and what is made of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml

from dataset_scripts.files import read_json, write_json
from model_cards.comparison import compare, contrast
from model_cards.evidence import draw, draw_contrasts, load_sweeps, with_sweeps
from training.evaluation.results import KEY
from training.provenance import commit
from training.sweep.__main__ import main
from training.sweep.queue import Queue, diagnosis_rows, refuse_other_run
from training.sweep.results import restore_rows, write_results
from training.sweep.sweep import load_sweep

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "training" / "recipes" / "ablation_both.yaml"
SWEEP = {
    "name": "tiny",
    "recipe": str(RECIPE),
    "keys": {"max_steps": 4},
    "seeds": [0, 1, 2],
    "baseline": "plain",
    "arms": {"start": None, "plain": {"objective": "byol_region"}, "both": {"objective": "both"}},
    "measures": {"object_knn": {"size_px": 32}},
    "show": ["object_knn/micro_k1"],
}


@pytest.fixture
def write(tmp_path):
    def write(**changes) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in (SWEEP | changes).items() if value != ()}, sort_keys=False)
        )
        return path

    return write


def test_the_sweeps_that_come_along_can_be_read():
    sweeps = sorted((ROOT / "training" / "sweeps").glob("*.yaml"))
    assert len(sweeps) >= 2
    for path in sweeps:
        sweep = load_sweep(path)
        assert sweep.name == path.stem and len(sweep.seeds) >= 3
        measured = {name.split("/")[0] for name in sweep.show}
        assert measured <= set(sweep.measures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, "unknown key 'arm'. Did you mean 'arms'"),
        ({"seeds": ()}, "lacks seeds"),
        ({"baseline": "plian"}, "Did you mean 'plain'"),
        ({"arms": {"plain": None}}, "no arm is trained"),
        ({"arms": {"plain": {"objectiv": "both"}}}, "arm plain: .*objectiv"),
        ({"arms": {"plain": {"objective": "boht"}}}, "arm plain: .*boht"),
        ({"recipe": "nowhere.yaml"}, "nowhere.yaml"),
        ({"arms": SWEEP["arms"] | {"again": {"weights_of": "noone", "measure_with": {}}}}, "a trained arm"),
        ({"arms": SWEEP["arms"] | {"again": {"weights_of": "start", "measure_with": {}}}}, "a trained arm"),
        ({"arms": SWEEP["arms"] | {"again": {"weights_of": "plain"}}}, "expected weights_of.*measure_with"),
        ({"contrasts": {"gain": {"both": 1, "plian": -1}}}, "contrast gain: .*plian.*arms and their weights"),
        ({"contrasts": {"gain": "both - plain"}}, "contrast gain: found both - plain"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_trained(write, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_sweep(write(**changes))


def test_a_seed_is_finished_in_all_arms_before_the_next(write):
    rows = load_sweep(write()).rows()
    assert [(row.arm, row.seed) for row in rows[:4]] == [("start", 0), ("plain", 0), ("both", 0), ("start", 1)]
    assert rows[2].build_recipe().values()["objective"] == "both"
    assert rows[5].build_recipe().values()["seed"] == 1
    only = load_sweep(write(), {"max_steps": 9}, ["both"])
    assert list(only.arms) == ["plain", "both"] and only.rows()[0].build_recipe().run.max_steps == 9


def test_what_changes_a_number_makes_a_row_undone(write, tmp_path):
    def prints(**changes):
        return load_sweep(write(**changes)).rows()[2].fingerprint

    assert prints() == prints() == prints(keys={"max_steps": 4, "num_workers": 3}) == prints(seeds=[0])
    assert len({prints(), prints(keys={"max_steps": 5}), prints(measures={"object_knn": {"size_px": 64}})}) == 3
    row = load_sweep(write()).rows(tmp_path)[2]
    assert row.load() is None
    row.file.parent.mkdir()
    row.file.write_text(json.dumps({"fingerprint": row.fingerprint}))
    assert row.load() is not None
    assert load_sweep(write(keys={"max_steps": 5})).rows(tmp_path)[2].load() is None
    row.file.write_text("{")
    assert row.load() is None


def test_the_weights_of_another_recipe_are_not_measured(write, tmp_path):
    row = load_sweep(write()).rows(tmp_path)[2]
    refuse_other_run(row)  # nothing there yet
    row.run.mkdir(parents=True)
    recipe = row.build_recipe().values() | {"output_dir": str(row.run), "num_workers": 7}
    (row.run / "run.json").write_text(json.dumps({"recipe": recipe}))
    refuse_other_run(row)
    (row.run / "run.json").write_text(json.dumps({"recipe": recipe | {"view_size_px": 64}}))
    with pytest.raises(ValueError, match="view_size_px: 64 there, 96 now"):
        refuse_other_run(row)


def test_an_arm_may_read_the_weights_of_another_otherwise(write, tmp_path):
    arms = SWEEP["arms"] | {"again": {"weights_of": "both", "measure_with": {"centre_cells": True}}}
    sweep = load_sweep(write(arms=arms, seeds=[0]))
    both, again = sweep.rows(tmp_path)[2:]
    assert again.run == both.run and again.file != both.file
    assert again.build_recipe() == both.build_recipe() and again.fingerprint != both.fingerprint
    assert both.fingerprint == load_sweep(write(seeds=[0])).rows()[2].fingerprint
    assert again.images == 0 and both.images == 4 * 32
    assert list(load_sweep(write(arms=arms), only=["again"]).arms) == ["plain", "both", "again"]
    called = []

    class Recording(Queue):
        def _call(self, command, log):
            called.append(command)
            if "--output" in command and "training.evaluation" in command:
                write_json(Path(command[command.index("--output") + 1]), {"results": []})
            return 0

    for row in (both, again):
        row.model.mkdir(parents=True, exist_ok=True)
        Recording(sweep, tmp_path).finish_row(row)
    assert [("--centre_cells" in command, "True" in command) for command in called] == [(False, False), (True, False)]
    assert [command[command.index("--model") + 1] for command in called] == [str(both.model)] * 2


def test_a_measure_that_changed_is_taken_again_and_the_others_stay(write, tmp_path):
    measures = {"object_knn": {"size_px": 32}, "linear_segmentation": {"size_px": 32}}
    sweep = load_sweep(write(measures=measures, seeds=[0]))
    row = sweep.rows(tmp_path)[1]
    row.model.mkdir(parents=True)
    old = [
        {"protocol": f"{name}-1:size_px=32", "metric": "m", "value": 0.1, "commit": "0" * 40, "seeds": [0]}
        for name in measures
    ]
    stored = {"arm": "plain", "seed": 0, "fingerprint": row.fingerprint, "measure_seconds": 90.0, "results": old}
    row.file.parent.mkdir()
    row.file.write_text(json.dumps(stored))
    asked = []

    class Measuring(Queue):
        def _call(self, command, log):
            asked.append(command[3])
            one = old[0] | {"value": 0.2, "commit": commit()} | dict.fromkeys(KEY, "x") | {"protocol": "object_knn-2"}
            write_json(Path(command[command.index("--output") + 1]), {"results": [one | {"metric": "m"}]})
            return 0

    queue = Measuring(sweep, tmp_path, again="object_knn")
    assert not queue.is_done(row) and Queue(sweep, tmp_path).is_done(row)
    queue.finish_row(row)
    values = row.load()
    assert asked == ["object_knn"] and values["measure_seconds"] == 90.0
    assert {result["protocol"]: result["value"] for result in values["results"]} == {
        "linear_segmentation-1:size_px=32": 0.1,
        "object_knn-2": 0.2,
    }
    assert queue.is_done(row)
    with pytest.raises(ValueError, match="--again object_nn"):
        Queue(sweep, tmp_path, again="object_nn")


def test_only_what_is_left_is_done_and_a_row_that_fails_stops_the_others(write, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    sweep = load_sweep(write(seeds=[0, 1]))
    rows = sweep.rows(tmp_path)
    rows[1].file.parent.mkdir()
    rows[1].file.write_text(json.dumps({"fingerprint": rows[1].fingerprint}))
    asked = []

    class Failing(Queue):
        def finish_row(self, row):
            asked.append(row.name)
            if row.arm == "both":
                raise RuntimeError("measuring failed")
            write_json(row.file, {"fingerprint": row.fingerprint, "results": []})

    with pytest.raises(RuntimeError, match="measuring failed"):
        Failing(sweep, tmp_path).work(jobs=1, budget_minutes=0)
    assert asked == ["start-seed0", "both-seed0"]
    said = capfd.readouterr()
    assert "6 rows, 1 of them done" in said.out and "start-seed0: object_knn/micro_k1 -" in said.out + said.err
    assert (tmp_path / "architecture" / "config.json").is_file()
    stopped = Queue(sweep, tmp_path)
    stopped.stop.set()
    stopped.work(jobs=1, budget_minutes=0)
    assert not rows[2].file.exists()


def numbers(values) -> list[dict]:
    return [
        {
            "arm": arm,
            "seed": seed,
            "command": "python training/pretrain.py",
            "measure_seconds": 1,
            "results": [
                {
                    "protocol": "object_knn-1:size_px=32",
                    "metric": "micro_k1",
                    "value": value,
                    "command": "python -m training.evaluation object_knn --data data/scenes",
                    "commit": "0" * 40,
                    "label": "reduced scale",
                    "machine": {"device": "cpu", "cores": 2, "threads": 1, "torch": "2.13.0"},
                    "arm": arm,
                }
            ],
        }
        for arm, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]


def test_differences_are_paired_by_seed():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=5)
    both = plain + 0.1 + 0.02 * rng.normal(size=5)  # told apart seed by seed, and not by their means
    cell = compare(numbers({"plain": plain, "both": both}), "plain", ["object_knn/micro_k1"])["both"][
        "object_knn/micro_k1"
    ]
    expected = scipy.stats.ttest_rel(both, plain).confidence_interval(0.95)
    assert cell.difference - cell.half_width == pytest.approx(expected.low, rel=1e-3)
    assert cell.difference + cell.half_width == pytest.approx(expected.high, rel=1e-3)
    assert cell.verdict == "higher" and scipy.stats.ttest_ind(both, plain).pvalue > 0.05
    assert cell.mean == pytest.approx(both.mean()) and cell.deviation == pytest.approx(both.std(ddof=1))


def test_a_seed_that_is_not_in_both_is_no_pair():
    rows = numbers({"plain": [0.5, 0.6], "both": [0.7, 0.9, 5.0]})
    cell = compare(rows, "plain", ["object_knn/micro_k1"])["both"]["object_knn/micro_k1"]
    assert cell.difference == pytest.approx(0.25) and len(cell.values) == 3
    alone = compare(rows[:1] + rows[2:3], "plain", ["object_knn/micro_k1"])["both"]["object_knn/micro_k1"]
    assert alone.half_width is None and alone.verdict == "one seed"


def test_an_interaction_is_a_sum_over_arms_seed_by_seed():
    rng = np.random.default_rng(0)
    of_seed = rng.normal(size=5)  # that all arms share: it must not widen the interval
    noise = 0.02 * rng.normal(size=(4, 5))
    names = ("plain", "both", "plain_known", "both_known")
    values = dict(zip(names, of_seed + noise + np.array([[0.0], [0.3], [0.1], [0.2]]), strict=True))
    cells = compare(numbers(values), "plain", ["object_knn/micro_k1"])
    weights = {"both": 1, "plain": -1, "both_known": -1, "plain_known": 1}
    found = contrast(cells, "object_knn/micro_k1", weights)
    by_hand = (values["both"] - values["plain"]) - (values["both_known"] - values["plain_known"])
    expected = scipy.stats.ttest_1samp(by_hand, 0).confidence_interval(0.95)
    assert found.difference == pytest.approx(by_hand.mean()) and found.verdict == "higher"
    assert found.difference - found.half_width == pytest.approx(expected.low, rel=1e-3)
    fewer = compare(numbers(values | {"both": values["both"][:2]}), "plain", ["object_knn/micro_k1"])
    assert sorted(contrast(fewer, "object_knn/micro_k1", weights).values) == [0, 1]
    assert contrast(cells, "object_knn/micro_k1", {"both": 1, "nobody": -1}) is None


def test_results_and_page_hold_the_rows_that_are_done(write, tmp_path, capsys):
    path = write(
        arms={"plain": {"objective": "byol_region"}, "<script>x": {"objective": "both"}},
        contrasts={"gain": {"<script>x": 1, "plain": -1}},
    )
    sweep = load_sweep(path)
    found = numbers({"plain": [0.2, 0.3, 0.4], "<script>x": [0.25, 0.36]})
    for row in sweep.rows(tmp_path / "out"):
        values = [one for one in found if (one["arm"], one["seed"]) == (row.arm, row.seed)]
        row.file.parent.mkdir(parents=True, exist_ok=True)
        if values:
            row.file.write_text(json.dumps(values[0] | {"fingerprint": row.fingerprint}))
    assert write_results(sweep, tmp_path / "out", tmp_path / "card.json") == 1
    stored = load_sweeps(tmp_path)["card"]
    assert [row["values"] for row in stored["results"]] == [[0.2, 0.3, 0.4], [0.25, 0.36]]
    assert [row["value"] for row in stored["results"]] == pytest.approx([0.3, 0.305])
    assert stored["sweep"]["finished"] == 5 and stored["sweep"]["measure_hours"] == pytest.approx(5 / 3600)
    text = with_sweeps("a <!-- sweep card --> stale <!-- end of card --> b", {"card": stored})
    assert "stale" not in text and text.startswith("a ") and text.endswith(" b")
    assert "0.305 ± 0.078<br>+0.055 [-0.009, +0.119]" in text and "<script>" not in text.replace("`<script>x`", "")
    assert "&lt;script&gt;x" in draw(stored) and draw(stored).count("<circle") == 5
    assert "evidence/tiny_contrasts.svg" in text
    assert "| +0.055 [-0.009, +0.119] |" in text and "gain = +1 `<script>x` -1 `plain`" in text
    assert draw_contrasts(stored).count("<circle") == 2 and 'class="reference"' in draw_contrasts(stored)
    with pytest.raises(ValueError, match="no results/other.json"):
        with_sweeps("<!-- sweep other --> <!-- end of other -->", {"card": stored})
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>x" not in page and "&lt;script&gt;x" in page and "5 of 6 runs" in page
    assert "not told apart" in capsys.readouterr().out


def test_another_machine_goes_on_from_a_published_file(write, tmp_path, capsys):
    arms = {"plain": {"objective": "byol_region"}, "both": {"objective": "both"}}
    here, there = tmp_path / "here", tmp_path / "there"
    found = numbers({"plain": [0.2, 0.3, 0.4], "both": [0.25, 0.36, 0.5]})

    def finish(sweep, output, seeds, commit):
        for row in sweep.rows(output):
            (values,) = (one for one in found if (one["arm"], one["seed"]) == (row.arm, row.seed))
            if row.seed in seeds:
                results = [result | {"commit": commit * 40} for result in values["results"]]
                write_json(row.file, {**values, "fingerprint": row.fingerprint, "images": 64, "results": results})

    sweep = load_sweep(write(arms=arms))
    finish(sweep, here, [0, 1], "a")
    assert write_results(sweep, here, tmp_path / "card.json") == 2
    # Neither another recipe nor numbers that were not published are taken.
    for other in ({"keys": {"max_steps": 5}}, {"show": [*SWEEP["show"], "object_knn/micro_k20"]}):
        assert restore_rows(load_sweep(write(arms=arms, **other)), tmp_path / "other", tmp_path / "card.json") == 0
    more = load_sweep(write(arms={**arms, "mine": {"objective": "decoupling"}}))
    assert restore_rows(more, there, tmp_path / "card.json") == 4
    assert restore_rows(more, there, tmp_path / "card.json") == 0
    finish(sweep, there, [2], "b")
    assert write_results(more, there, tmp_path / "joined.json") == 3
    joined = read_json(tmp_path / "joined.json")
    assert [row["values"] for row in joined["results"]] == [[0.2, 0.3, 0.4], [0.25, 0.36, 0.5]]
    assert all(row["commits"] == ["a" * 40, "b" * 40] for row in joined["results"])
    assert joined["sweep"]["images"] == 6 * 64 and joined["sweep"]["finished"] == 6
    (tmp_path / "list.json").write_text("{}")
    for name in ("list.json", "missing.json"):
        with pytest.raises(ValueError, match=f"{name} is no results file of a sweep"):
            restore_rows(more, there, tmp_path / name)


def test_contrasts_of_arms_left_out_are_left_out(write):
    contrasts = {"gain": {"both": 1, "plain": -1}, "start": {"start": 1, "plain": -1}}
    assert set(load_sweep(write(contrasts=contrasts), only=["both"]).contrasts) == {"gain"}


def test_a_diagnosis_becomes_rows(write, tmp_path):
    def stage(name, leak):
        number = {"value": leak, "low": leak - 0.1, "high": leak + 0.1, "count": 8}
        return {"stage": name, "numbers": {"context_leak": number, "norm_ratio": number}}

    report = {
        "settings": {"data": "scenes", "images": 8, "picture_size_px": 64, "reading": ["aligned"]},
        "protocols": {"context_leak": "context-swap/1"},
        "models": [{"stages": [stage("stage3", 0.3), stage("stage4", 0.6)]}],
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    rows = diagnosis_rows(path, "model", load_sweep(write()).rows()[2], "decodepos-diagnose model")
    assert {row["metric"]: row["value"] for row in rows} == {"context_leak": 0.6, "context_leak_stage3": 0.3}
    assert all(row["protocol"].startswith("diagnosis-context-swap/1:data=scenes,images=8") for row in rows)
    report["settings"]["reading"] = ["known"]
    path.write_text(json.dumps(report))
    centred = diagnosis_rows(path, "model", load_sweep(write()).rows()[2], "decodepos-diagnose model")
    assert all(row["protocol"].endswith(",centre_cells=True") for row in centred)


def test_a_command_that_cannot_run_says_why(write, tmp_path):
    with pytest.raises(SystemExit, match="KEY=VALUE"):
        main([str(write()), "--output", str(tmp_path / "out"), "--set", "max_steps"])
    with pytest.raises(SystemExit, match="no arm 'neither'"):
        main([str(write()), "--output", str(tmp_path / "out"), "--only", "neither"])


@pytest.mark.slow
def test_a_sweep_stops_at_its_budget_and_goes_on(write, scenes, tmp_path):
    """Two trained arms and the untrained network, on real processes; the second call does only what is left."""
    path = write(
        seeds=[0],
        keys={
            "data": str(scenes), "view_size_px": 64, "max_steps": 3, "global_batch_size": 4, "num_workers": 0,
            "measure_steps": 0, "probe_count": 0, "save_steps": 1, "num_regions": 2,
        },
        measures={"object_knn": {"size_px": 32, "neighbours": [1]}},
    )  # fmt: skip
    output = tmp_path / "out"
    command = [sys.executable, "-m", "training.evaluation", "ablation", str(path), "--output", str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def call(*more):
        return subprocess.run(
            [*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
        )

    first = call("--budget-minutes", "0.4")
    assert first.returncode == 75, first.stderr
    done = sorted((output / "rows").glob("*-seed0.json")) if (output / "rows").is_dir() else []
    kept = {file.name: file.stat().st_mtime_ns for file in done}
    second = call("--jobs", "2")
    assert second.returncode == 0, second.stderr
    assert {name: (output / "rows" / name).stat().st_mtime_ns for name in kept} == kept
    rows = json.loads((output / "results.json").read_text())["results"]
    assert {row["arm"] for row in rows} == {"start", "plain", "both"}
    assert all(row["command"] and row["commit"] and row["seeds"] == [0] for row in rows)
    assert "3 of 3 runs" in (output / "report.html").read_text()
    third = call()
    assert third.returncode == 0 and "3 of them done" in third.stdout
