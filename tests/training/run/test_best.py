"""What a run leaves that made its network worse: the best state so far, the start included."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining
from tests.training.run.test_posttrain import assert_same_bits, weights
from tests.training.runs import Make, run_here, small_run
from training.errors import WentWrong
from training.probes.during import OnlineMeasures
from training.publish.numbers import _own_rows
from training.recipe import DEFAULT_RECIPE, load_recipe
from training.run.best import best_so_far, better_than_end, score
from training.run.folder import read_run

THREE = ("object_knn_class_mean", "object_knn_surroundings", "object_knn_moved")


@pytest.fixture
def values(recipe_values: dict[str, Any], released: Path) -> dict[str, Any]:
    """A run of `posttrain` that takes seconds."""
    small = {"view_size_px": 64, "alone_size_px": 32, "max_steps": 3, "log_steps": 1, "num_workers": 0}
    posttrain = load_recipe(DEFAULT_RECIPE.parent / "posttrain.yaml").values()
    kept = {name: recipe_values[name] for name in ("data", "output_dir", "global_batch_size", "cpu")}
    measured = {"measure_images": 16, "measure_steps": 1, "keep_start": 0.0, "warmup_steps": 0, "diagnose": False}
    return {**posttrain, **kept, **small, **measured, "backbone": str(released)}


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch):
    """Let runs measure these scores in turn, among so many regions that nothing is noise."""

    def play(*scores: float, regions: int = 10**6) -> None:
        left = list(scores)

        def measure(self: OnlineMeasures, model: Any) -> dict[str, float]:
            return dict.fromkeys(THREE, left.pop(0)) | {"measured_regions": regions}

        monkeypatch.setattr(OnlineMeasures, "measure", measure)

    return play


def output(values: dict[str, Any]) -> Path:
    return Path(values["output_dir"])


def exported(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    return weights(output(values) / "export/backbone")


def described(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads((output(values) / "run.json").read_text())


def test_a_learning_rate_that_destroys_the_network_leaves_the_start(values: dict[str, Any], released: Path):
    destroying = {
        "base_learning_rate": 2e9,
        "warmup_share": 0.0,
        "warmup_steps": 0,
        "max_steps": 20,
        "measure_steps": 100,
    }
    said = str(run_here(values | destroying | {"collapse_grace_steps": 0, "collapse_patience": 1}))
    assert "the embeddings have collapsed" in said
    assert "What is exported is the start" in said and "Likely cause: the embeddings collapsed" in said
    assert "lower base_learning_rate, which is 2e+09" in said and 'AutoModel.from_pretrained("' in said
    assert_same_bits(exported(values), weights(released))
    teacher = weights(output(values) / "export/pretraining")
    assert all(torch.isfinite(value).all() for value in teacher.values())
    description = described(values)
    assert (description["status"], description["left"]["step"]) == ("stopped", 0)
    assert "have collapsed" in description["reason"] and Path(description["export"]["backbone"]).is_dir()
    page = (output(values) / "report.html").read_text()
    assert "What is exported is the start" in page and "embeddings have collapsed" in page and "stopped itself" in page


def test_a_loss_that_is_not_finite_leaves_the_best_state(
    values: dict[str, Any], play, monkeypatch: pytest.MonkeyPatch
):
    play(0.5, 0.6)
    go_on, losses = DecodePosForPreTraining.forward, iter((1.0, 1.0, torch.nan))

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = go_on(self, *args, **kwargs)
        return dataclasses.replace(output, loss=output.loss * next(losses))

    monkeypatch.setattr(DecodePosForPreTraining, "forward", forward)
    said = str(run_here(values | {"measure_steps": 2}))
    assert "the loss is nan at step 2; stopped before the update" in said
    assert "What is exported is the state of step 2" in said and "Likely cause: the loss was not finite." in said
    saved = weights(output(values) / "checkpoints/step_0000002")
    assert_same_bits(exported(values), {name: saved[f"decodepos.backbone.{name}"] for name in exported(values)})


def test_a_stopped_run_leaves_its_best_checkpoint(values: dict[str, Any], released: Path, play):
    play(0.5, 0.6, 0.3)
    said = str(run_here(values | {"keep_start": 0.25, "base_learning_rate": 0.1, "keep_checkpoints": 1}))
    assert "object_knn_class_mean fell to 0.3 from 0.5" in said
    assert "What is exported is the state of step 1, the best so far" in said and "0.600" in said
    best = weights(output(values) / "checkpoints/step_0000001")
    start = weights(released)
    for name, value in exported(values).items():
        own = best[f"decodepos.backbone.{name}"]
        expected = torch.lerp(own, start[name], 0.25) if own.is_floating_point() and "running" not in name else own
        torch.testing.assert_close(value, expected, msg=name)
    assert any(not torch.equal(value, start[name]) for name, value in exported(values).items())


@pytest.mark.parametrize("scores", [(0.5, 0.6, 0.62, 0.45), (0.7, 0.5, 0.6, 0.55)], ids=["on the way", "the start"])
def test_an_end_that_is_worse_is_not_exported_and_that_is_said_loudly(
    values: dict[str, Any], released: Path, capsys: pytest.CaptureFixture, play, scores: tuple[float, ...]
):
    play(*scores)
    values |= {"base_learning_rate": 0.1}
    assert run_here(values) == 0
    said = capsys.readouterr().out
    best = max(range(4), key=scores.__getitem__)
    where = f"the state of step {best}" if best else "the start"
    assert f"THE END OF THIS RUN IS NOT WHAT IT LEAVES. What is exported is {where}, not the end" in said
    if best:
        saved = weights(output(values) / f"checkpoints/step_000000{best}")
        assert_same_bits(exported(values), {name: saved[f"decodepos.backbone.{name}"] for name in exported(values)})
    else:
        assert_same_bits(exported(values), weights(released))
    assert (described(values)["status"], described(values)["left"]["step"]) == ("finished", best)
    assert f"What is exported is {where}" in (output(values) / "report.html").read_text()
    rows = [row for row in _own_rows(read_run(output(values)), "it") if row["metric"] == THREE[0]]
    assert [row["value"] for row in rows][1] == scores[best], "the published number is that of what is exported"
    first = exported(values)
    assert run_here(values) == 0, "the same command again leaves it as it is"
    assert_same_bits(exported(values), first)


@pytest.mark.parametrize(("scores", "regions"), [((0.5, 0.6, 0.58, 0.59), 100), ((0.5, 0.4, 0.5, 0.6), 10**6)])
def test_an_end_that_is_best_or_worse_by_noise_only_is_exported(
    values: dict[str, Any], capsys: pytest.CaptureFixture, play, scores: tuple[float, ...], regions: int
):
    play(*scores, regions=regions)
    assert run_here(values) == 0
    assert "NOT WHAT IT LEAVES" not in capsys.readouterr().out and "left" not in described(values)
    saved = weights(output(values) / "checkpoints/step_0000003")
    assert_same_bits(exported(values), {name: saved[f"decodepos.backbone.{name}"] for name in exported(values)})


def test_a_run_shorter_than_its_save_steps_is_measured_and_saved_at_its_end(values: dict[str, Any], play):
    play(0.5, 0.6)
    assert run_here(values | {"measure_steps": 200, "save_steps": 200}) == 0
    assert [path.name for path in (output(values) / "checkpoints").glob("step_*")] == ["step_0000003"]
    assert [line["step"] for line in read_run(output(values)).log if THREE[0] in line] == [0, 3]
    state = json.loads((output(values) / "checkpoints/step_0000003/state.json").read_text())
    assert state["best"] == {"step": 3, "measure": "object_knn_three_situations", "value": pytest.approx(0.6)}


def test_the_score_is_the_mean_over_the_situations():
    three = dict(zip(THREE, (0.2, 0.1, 0.3), strict=True))
    assert score(three | {"region_retrieval": 0.9}) == ("object_knn_three_situations", pytest.approx(0.2))
    assert score({"object_knn_class_mean": 0.2, "region_retrieval": 0.9}) == ("object_knn_class_mean", 0.2)
    assert score({"region_retrieval": 0.9, "position_r2": 0.1}) == ("region_retrieval", 0.9)
    assert score({"position_r2": 0.1}) is None


@pytest.mark.parametrize(
    ("changes", "best", "known", "words"),
    [
        ({}, 0, "", ["a learning rate above what keeps", "lower base_learning_rate, which is 0.0032"]),
        ({}, 0, "the embeddings collapsed", ["the embeddings collapsed; or a learning rate"]),
        ({"batch_norm": "train", "base_learning_rate": 0.0}, 0, "", ["cause: batch norms", "batch_norm to frozen)."]),
        ({}, 3, "", ["Likely cause: what it was trained on"]),
    ],
)
def test_the_cause_is_named_where_it_can_be_told(
    make_recipe: Make, values: dict[str, Any], changes: dict[str, Any], best: int, known: str, words: list[str]
):
    run, _ = small_run(make_recipe(**values | {"base_learning_rate": 3.2e-3} | changes), total_steps=40)
    run.peak_learning_rate = run.recipe.run.base_learning_rate
    for folder in ("start", f"checkpoints/step_{best:07d}"):
        (output(values) / folder).mkdir(parents=True)
        (output(values) / folder / "state.json").write_text("{}")
    run.state = {"best": {"step": best, "measure": "region_retrieval", "value": 0.5}}
    left = best_so_far(run, known)
    assert left is not None and left.step == best
    for part in words:
        assert part in left.why, left.why


def test_fresh_weights_leave_nothing_and_their_end(make_recipe: Make):
    run, _ = small_run(make_recipe())
    run.state = {"best": {"step": 2, "measure": "region_retrieval", "value": 0.9}}
    run.state["measured"] = {"last": {"region_retrieval": 0.1, "measured_regions": 10**6}}
    assert best_so_far(run, "it collapsed") is None and better_than_end(run) is None


def test_without_measures_the_start_is_all_that_is_known(make_recipe: Make, values: dict[str, Any]):
    run, _ = small_run(make_recipe(**values))
    (output(values) / "start").mkdir(parents=True)
    left = best_so_far(run, WentWrong("", "the loss was not finite").cause)
    assert left is not None and left.step == 0 and "nothing was measured" in left.why
    assert better_than_end(run) is None
