"""Continuing weights: the isolated teacher, frozen batch norms, the network's own pixels, and what comes out."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModel, MobileNetV2Model

from dataset_scripts.files import read_json_lines
from modeling_decodepos.diagnosis.models.load import load_model as diagnosis_model
from modeling_decodepos.diagnosis.models.networks import load_network
from modeling_decodepos.modeling_decodepos import FEATURE_MEAN_MOMENTUM, DecodePosModel
from tests.training.run.conftest import MEAN, STD
from tests.training.runs import Make, run_here, small_run
from training import pretrain
from training.evaluation.models import load_model as evaluation_model
from training.recipe import DEFAULT_RECIPE, load_recipe
from training.run.batch_norms import batch_norms
from training.run.setup import build_run
from training.views.normalise import normalise

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture
def values(recipe_values: dict[str, Any], released: Path) -> dict[str, Any]:
    """A run of `posttrain` that takes seconds."""
    small = {"view_size_px": 64, "alone_size_px": 32, "max_steps": 2, "save_steps": 1, "log_steps": 1}
    posttrain = load_recipe(DEFAULT_RECIPE.parent / "posttrain.yaml").values()
    kept = {name: recipe_values[name] for name in ("data", "output_dir", "global_batch_size", "cpu", "measure_steps")}
    return {**posttrain, **kept, **small, "backbone": str(released), "num_workers": 0}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [n for n in one if one[n].numpy().tobytes() != other[n].numpy().tobytes()]


@pytest.mark.parametrize("objective", ["isolated", "both"])
def test_at_learning_rate_zero_nothing_changes(values: dict[str, Any], released: Path, objective: str):
    extra = {"objective": objective, "base_learning_rate": 0.0, "projector_hidden_size": 16}
    extra |= {"teacher": "ema", "keep_start": 0.0} if objective == "both" else {"keep_start": 0.3}
    assert run_here(values | extra) == 0
    assert_same_bits(weights(Path(values["output_dir"]) / "export/backbone"), weights(released))


def test_recalibration_changes_statistics_only(values: dict[str, Any], released: Path):
    assert run_here(values | {"base_learning_rate": 0.0, "batch_norm": "recalibrated"}) == 0
    output, before = Path(values["output_dir"]), weights(released)
    after = weights(output / "export/backbone")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if name.endswith(STATISTICS[:2])} <= changed
    assert all(name.endswith(STATISTICS) for name in changed)
    # What is exported is what the last checkpoint holds, and the teacher was left alone.
    saved = weights(output / "checkpoints/step_0000002")
    assert_same_bits({n: saved[f"decodepos.backbone.{n}"] for n in after}, after)
    assert_same_bits({n: saved[f"teacher.decodepos.backbone.{n}"] for n in before}, before)


def test_a_network_without_a_backbone_class_trains_and_comes_out_as_it_was(values: dict[str, Any], released: Path):
    assert run_here(values) == 0
    export = Path(values["output_dir"]) / "export"
    model, report = AutoModel.from_pretrained(export / "backbone", output_loading_info=True)
    assert type(model) is MobileNetV2Model and not any(report.values())
    before, after = weights(released), model.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) == name.endswith(STATISTICS), name
    for folder in ("backbone", "pretraining"):
        processor = json.loads((export / folder / "preprocessor_config.json").read_text())
        assert (tuple(processor["image_mean"]), tuple(processor["image_std"])) == (MEAN, STD)
    assert not [name for name in weights(export / "pretraining") if "projector" in name or "predictor" in name]
    # The student of what can be continued is the same network, for the diagnosis and for evaluation too.
    student, report = DecodePosModel.from_pretrained(export / "pretraining", output_loading_info=True)
    assert not any(report.values())
    assert_same_bits(student.backbone.state_dict(), dict(after))
    assert load_network(student).mean == load_network(str(export / "pretraining")).mean == MEAN
    pixels, box = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), [torch.tensor([[0.0, 0.0, 1.0, 1.0]])]
    with torch.no_grad():
        expected = model.eval()(normalise(pixels, MEAN, STD)).last_hidden_state
        last = diagnosis_model(str(export / "pretraining"), size_px=64)(pixels)[-1]
        torch.testing.assert_close(last, expected, atol=1e-3, rtol=1e-2)
        features = evaluation_model(str(export / "pretraining"), seed=0, region_bins=2).embed(pixels, box)
    torch.testing.assert_close(features, expected.mean((2, 3)), atol=1e-3, rtol=1e-2)


def test_the_first_and_the_last_line_say_what_was_measured(values: dict[str, Any], capsys: pytest.CaptureFixture):
    values |= {"measure_steps": 1, "measure_images": 16}
    assert run_here(values) == 0
    said = capsys.readouterr().out
    start, end = (
        re.search(rf"^at the {when}, on 4 pictures \(validation\): (.*)$", said, re.M) for when in ("start", "end")
    )
    assert start and end and start.start() < end.start()
    log = [line for line in read_json_lines(Path(values["output_dir"]) / "log.jsonl") if "object_knn" in line]
    first, last = log[0], log[-1]
    assert (first["step"], last["step"]) == (0, 2)
    for name, words in (("object_knn_moved", "moved"), ("context_leak", "context leak")):
        assert f"{words} {first[name]:.3f}" in start[1]
        assert f"{words} {last[name]:.3f}, was {first[name]:.3f}" in end[1]
    assert "was" not in start[1]
    assert re.search(r"^gained: .*\nlost: ", said[end.end() :], re.M)


@pytest.mark.parametrize(("steps", "told"), [(25, 1), (24, 0)])
def test_the_minutes_to_go_are_told_once_where_there_are_any(
    values: dict[str, Any], capsys: pytest.CaptureFixture, steps: int, told: int
):
    assert run_here(values | {"max_steps": steps, "save_steps": 0}) == 0
    assert capsys.readouterr().out.count("about 1 minute to go on this machine") == told


def test_a_stopped_run_goes_on_with_the_same_running_mean(values: dict[str, Any], tmp_path: Path):
    values |= {"max_steps": 4, "save_steps": 2, "keep_checkpoints": 4}
    straight, halves = ({**values, "output_dir": str(tmp_path / name)} for name in ("straight", "halves"))
    assert run_here(straight) == 0
    shutil.copytree(tmp_path / "straight", tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves/checkpoints/step_0000004")
    shutil.rmtree(tmp_path / "halves/export")
    assert run_here(halves) == 0
    ends = [weights(tmp_path / name / "checkpoints/step_0000004") for name in ("straight", "halves")]
    assert_same_bits(*ends)
    middle = weights(tmp_path / "halves/checkpoints/step_0000002")
    assert (middle["feature_mean_updates"], ends[0]["feature_mean_updates"]) == (2, 4)
    assert not torch.equal(middle["feature_mean"], ends[0]["feature_mean"])


def test_the_running_mean_is_that_of_the_frozen_teachers_features(make_recipe: Make, values: dict[str, Any]):
    run, data = small_run(make_recipe(**values))
    teacher, means = run.net.teacher["decodepos"].eval(), []
    for step in range(3):
        batch = data.__getitems__([(step, index) for index in range(4)])
        view = pretrain.prepare_views(batch, torch.device("cpu"), (MEAN, STD))["alone"]
        with torch.no_grad():
            means.append(teacher(view.pixel_values[view.valid_regions]).pooler_output.mean(0))
        before = run.net.feature_mean.clone()
        output = run.net(pretrain.prepare_views(batch, torch.device("cpu"), (MEAN, STD)), objective=run.objective)
        assert torch.equal(run.net.feature_mean, before), "a forward pass only reads it"
        assert output.loss.item() == pytest.approx(_loss_by_hand(output, before, batch), abs=1e-5)
        pretrain.training_step(run, [batch])
        run.step += 1
        torch.testing.assert_close(run.net.feature_mean, torch.stack(means).mean(0), atol=1e-5, rtol=1e-4)
    run.net.feature_mean_updates.fill_(10_000)
    before = run.net.feature_mean.clone()
    run.net.update_feature_mean(torch.cat([torch.zeros_like(before), torch.ones(1)]))
    torch.testing.assert_close(run.net.feature_mean, FEATURE_MEAN_MOMENTUM * before)


def test_the_first_step_is_centred_too(make_recipe: Make, values: dict[str, Any]):
    run, data = small_run(make_recipe(**values))
    run.peak_learning_rate = 0.0
    batch = data.__getitems__([(0, index) for index in range(4)])
    assert not run.net.feature_mean.any()
    first = float(pretrain.training_step(run, [batch])["loss"])
    assert run.net.feature_mean_updates == 1
    output = run.net(pretrain.prepare_views(batch, torch.device("cpu"), (MEAN, STD)), objective=run.objective)
    assert first == pytest.approx(_loss_by_hand(output, run.net.feature_mean, batch), abs=1e-5)
    assert first != pytest.approx(_loss_by_hand(output, torch.zeros(()), batch), abs=0.1)


def test_what_leaves_a_run_is_the_average_with_the_start(make_recipe: Make, values: dict[str, Any], released: Path):
    run, data = small_run(make_recipe(**values | {"keep_start": 0.25}))
    pretrain.training_step(run, [data.__getitems__([(0, index) for index in range(4)])])
    own = {name: weight.clone() for name, weight in run.net.decodepos.state_dict().items()}
    with run.as_it_leaves():
        left = {name: weight.clone() for name, weight in run.net.decodepos.state_dict().items()}
    assert_same_bits(dict(run.net.decodepos.state_dict()), own)
    start = {f"backbone.{name}": weight for name, weight in weights(released).items()}
    trained = dict(run.net.decodepos.named_parameters())
    assert any(not torch.equal(own[name], start[name]) for name in trained)
    for name, weight in left.items():
        expected = 0.75 * own[name] + 0.25 * start[name] if name in trained else own[name]
        torch.testing.assert_close(weight, expected, msg=name)


def test_the_average_is_what_is_exported_and_the_checkpoint_is_what_goes_on(values: dict[str, Any], released: Path):
    assert run_here(values | {"keep_start": 1.0, "base_learning_rate": 1.0}) == 0
    assert_same_bits(weights(Path(values["output_dir"]) / "export/backbone"), weights(released))
    saved = weights(Path(values["output_dir"]) / "checkpoints/step_0000002")
    before = weights(released)
    assert any(not torch.equal(saved[f"decodepos.backbone.{name}"], before[name]) for name in before)


def test_an_average_with_the_start_needs_a_teacher_that_still_has_it(make_recipe: Make, values: dict[str, Any]):
    with pytest.raises(ValueError, match="keep_start is 0.5, but teacher is ema"):
        make_recipe(**values | {"keep_start": 0.5, "teacher": "ema"})


def _loss_by_hand(output: Any, mean: torch.Tensor, batch: Any) -> float:
    total = 0.0
    for student in ("plain", "repositioned"):
        both = pretrain.matched_regions(batch, student, "alone")
        one, other = output.features[student][both] - mean, output.teacher_features["alone"][both] - mean
        total += (1 - torch.cosine_similarity(one, other)).mean().item()
    return total


def test_student_and_teacher_see_pixels_as_the_network_wants_them(
    make_recipe: Make, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    run, data = small_run(make_recipe(**values))
    batch, seen = data.__getitems__([(0, index) for index in range(4)]), []
    for model in (run.net.decodepos, run.net.teacher["decodepos"]):
        go_on = model.feature_map
        monkeypatch.setattr(model, "feature_map", lambda x, _=None, go_on=go_on: (seen.append(x), go_on(x))[1])
    pretrain.training_step(run, [batch])
    assert [part.shape[-1] for part in seen] == [32, 64, 64, 32]  # the teacher once more, for the first centre
    shown = batch.views["plain"].pixel_values.float() / 255
    torch.testing.assert_close(seen[1], (shown - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])


def test_cuts_and_empty_surroundings_have_the_networks_mean_colour(
    make_recipe: Make, values: dict[str, Any], tmp_path: Path
):
    changes = {
        "objective": "both",
        "teacher": "ema",
        "keep_start": 0.0,
        "donor": "mean",
        "projector_hidden_size": 16,
        "mixed_share": 1.0,
    }
    run, data, _ = build_run(Accelerator(cpu=True), make_recipe(**values | changes), tmp_path / "run")
    batch = data.__getitems__([(0, index) for index in range(4)])
    mean = torch.tensor([round(255 * value) for value in MEAN], dtype=torch.uint8)[:, None, None]
    for name in ("whole_cut", "repositioned"):
        shares = (batch.views[name].pixel_values == mean).all(1).float().mean((1, 2))
        assert shares.min() > 0.05, name


@pytest.mark.parametrize(("choice", "held"), [("auto", True), ("recalibrated", True), ("train", False)])
def test_batch_norms_of_continued_weights(make_recipe: Make, values: dict[str, Any], choice: str, held: bool):
    run, data = small_run(make_recipe(**values | {"batch_norm": choice}))
    norms = {"student": batch_norms(run.net.decodepos), "teacher": batch_norms(run.net.teacher)}
    before = {name: [norm.running_mean.clone() for norm in found] for name, found in norms.items()}
    pretrain.training_step(run, [data.__getitems__([(0, index) for index in range(4)])])
    for name, found in norms.items():
        same = [torch.equal(norm.running_mean, old) for norm, old in zip(found, before[name], strict=True)]
        assert all(same) if held else not any(same), name


def test_a_frozen_teacher_needs_something_to_teach(make_recipe: Make):
    with pytest.raises(ValueError, match="teacher is frozen, but backbone 'resnet_tiny' starts untrained"):
        small_run(make_recipe(objective="isolated", teacher="frozen"))


def test_a_frozen_teacher_stays_what_it_was(make_recipe: Make, values: dict[str, Any]):
    for teacher, same in (("frozen", True), ("ema", False)):
        run, data = small_run(make_recipe(**values | {"teacher": teacher, "keep_start": 0.0}))
        before = {name: value.clone() for name, value in run.net.teacher.state_dict().items()}
        for _ in range(2):
            pretrain.training_step(run, [data.__getitems__([(0, index) for index in range(4)])])
            run.step += 1
        after = run.net.teacher.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before) == same
