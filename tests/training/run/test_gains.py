"""What a run that continues weights shows at its end: both ends, side by side, on the page, in pictures, on a card."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import MobileNetV2Config, MobileNetV2Model, ViTImageProcessorPil

from model_cards.tables import cell
from modeling_decodepos.diagnosis import diagnose, load_model
from modeling_decodepos.diagnosis.models.networks import build_random
from modeling_decodepos.diagnosis.statistics.estimates import Estimate
from tests.training.publish.test_publish import change
from tests.training.run.test_report import text_of
from tests.training.runs import Make, run_here
from training.probes.during import build_online
from training.publish.__main__ import main as publish
from training.recipe import DEFAULT_RECIPE, load_recipe
from training.run import finish, gains
from training.run.card import write_card
from training.run.folder import read_run
from training.run.gains import as_probe, judge, name_of

MEAN = (0.5, 0.4, 0.3)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "small-net"
    build_random(MobileNetV2Config(depth_multiplier=0.25), seed=0).save_pretrained(folder)
    ViTImageProcessorPil(image_mean=MEAN, image_std=(0.5, 0.25, 0.2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def posttrain(scenes: Path, released: Path) -> dict[str, Any]:
    """A run of `posttrain` that takes seconds, and changes the weights."""
    values = load_recipe(DEFAULT_RECIPE.parent / "posttrain.yaml").values()
    small = {"view_size_px": 64, "alone_size_px": 32, "max_steps": 2, "save_steps": 0, "global_batch_size": 8}
    small |= {"measure_steps": 2, "measure_images": 16, "base_learning_rate": 1.0, "watchdog_share": 0.0}
    return {**values, **small, "data": str(scenes), "backbone": str(released), "num_workers": 0, "cpu": True}


@pytest.fixture(scope="module")
def finished(posttrain: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "continued"
    assert run_here(posttrain | {"output_dir": str(folder)}) == 0
    return folder


def diagnosed(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "diagnosis/report.json").read_text())


def test_both_ends_are_measured_and_none_is_taken_for_the_other(
    finished: Path, posttrain: dict[str, Any], released: Path, make_recipe: Make
):
    report = diagnosed(finished)
    assert [model["name"] for model in report["models"]] == ["small-net (start)", "small-net (after)"]
    recipe = make_recipe(**posttrain)
    data = as_probe(build_online(recipe.data, recipe.run, 64), 64, 0)
    found = []
    ends = [load_model(str(folder), size_px=64) for folder in (released, finished / "export/backbone")]
    assert ends[0].architecture == ends[1].architecture != "", "their random weights are measured twice"
    for end, model in zip(ends, report["models"], strict=True):
        again = diagnose(end, data, size_px=64, random_seeds=1, measures="context")
        found.append(again.models[0].last.numbers["context_leak"].value)
        assert model["stages"][-1]["numbers"]["context_leak"]["value"] == pytest.approx(found[-1], abs=1e-6)
    assert abs(found[0] - found[1]) > 1e-3
    assert report["differences"][0]["numbers"]["context_leak"]["value"] == pytest.approx(found[1] - found[0], abs=1e-6)


def test_the_report_begins_with_what_was_gained_and_links_to_the_diagnosis(finished: Path):
    text, page = text_of(finished), (finished / "report.html").read_text()
    assert "What was gained, and what was lost" in text and "Before and after" not in text
    order = ["Context leak", "Place, read from regions", "embedding std"]
    assert sorted(order, key=text.index) == order
    assert '<a href="diagnosis/report.html">' in page
    (finished / "diagnosis/report.html").stat()
    assert "Where regions are found again" in page and (finished / "similarity.png").is_file()
    for end in diagnosed(finished)["models"]:
        assert f"{100 * end['stages'][-1]['numbers']['context_leak']['value']:.0f}" in text


def test_a_finished_run_is_not_diagnosed_again(
    finished: Path, posttrain: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(finish, "diagnose_both", lambda *_, **__: pytest.fail("a second time"))
    assert run_here(posttrain | {"output_dir": str(finished)}) == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_a_diagnosis_that_fails_loses_nothing_else(
    posttrain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(finish, "diagnose_both", fail)
    (tmp_path / "diagnosis").mkdir()
    (tmp_path / "diagnosis/report.json").write_text("{}")  # of another run: it would be taken for this one's
    assert run_here(posttrain | {"output_dir": str(tmp_path)}) == 0
    assert "the diagnosis failed (RuntimeError: no memory)" in capsys.readouterr().out
    assert not (tmp_path / "diagnosis").exists()
    assert "There is no diagnosis of both ends" in text_of(tmp_path)
    assert "Nothing was measured at both ends." in (tmp_path / "export/backbone/README.md").read_text()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"


def test_without_measures_there_is_no_diagnosis_and_that_is_said(
    posttrain: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert run_here(posttrain | {"output_dir": str(tmp_path), "measure_steps": 0}) == 0
    assert "no diagnosis: measure_steps is 0" in capsys.readouterr().out
    assert not (tmp_path / "similarity.png").exists()


def test_fresh_weights_have_no_start_to_compare_with(recipe_values: dict[str, Any], tmp_path: Path):
    values = recipe_values | {"max_steps": 1, "measure_steps": 1, "measure_images": 8, "diagnose": True}
    assert run_here(values) == 0
    output = Path(values["output_dir"])
    assert not (output / "diagnosis").exists() and not (output / "similarity.png").exists()
    assert not (output / "export/backbone/README.md").exists()
    assert "What was gained" not in text_of(output)


def test_the_card_says_what_it_is_and_where_nothing_lies(finished: Path, released: Path):
    text = (finished / "export/backbone/README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "transformers" and "decodepos" in data["tags"] and "base_model" not in data
    assert "The weights of small-net were trained further" in text
    assert not [place for place in (released.parent, finished.parent, Path.home()) if f"{place}/" in text]
    known = read_run(finished).gains
    assert known and all(f"| {cell(gain.before)} | {cell(gain.after)} |" in text for gain in known)
    # The lines that load it do.
    folder = finished / "export/backbone"
    code = text.split("```python\n")[1].split("```")[0].replace("FOLDER_OR_HUB_ID", str(folder))
    loaded: dict[str, Any] = {}
    exec(code, loaded)
    assert type(loaded["model"]) is MobileNetV2Model
    assert tuple(loaded["processor"].image_mean) == MEAN


@pytest.mark.parametrize(
    ("backbone", "base_model"), [("org/net-b0", "org/net-b0"), ("/gone/export/backbone", None), ("runs/net", None)]
)
def test_a_hub_id_is_the_base_model_and_a_folder_is_none(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, base_model: str | None
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/net").mkdir(parents=True)
    run = read_run(finished)
    run.description["recipe"]["backbone"] = backbone
    write_card(run, tmp_path)
    assert ModelCard((tmp_path / "README.md").read_text()).data.base_model == base_model


def test_the_card_says_that_weights_are_an_average_and_when_they_are_not_the_end(finished: Path, tmp_path: Path):
    run = read_run(finished)
    write_card(run, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert (
        f"an average: {run.recipe['keep_start']} of the start's weights" in text and "What is exported is" not in text
    )
    run.description["left"] = {"step": 0, "why": "What is exported is the start."}
    run.description["recipe"]["keep_start"] = 0.0
    write_card(run, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "**What is exported is the start.**" in text and "an average" not in text


def test_names_are_no_paths(tmp_path: Path):
    (tmp_path / "mine/export/backbone").mkdir(parents=True)
    assert name_of(str(tmp_path / "mine/export/backbone")) == "mine"
    assert (name_of("/no/longer/here"), name_of("org/net")) == ("here", "org/net")


@pytest.mark.parametrize(
    ("change", "better", "word"),
    [
        ((0.1, 0.02, 0.2), "higher", "gained"),
        ((0.1, 0.02, 0.2), "lower", "lost"),
        ((-0.1, -0.2, -0.02), "lower", "gained"),
        ((0.1, -0.02, 0.2), "higher", "no difference"),
        ((0.1, None, None), "higher", "no difference"),  # by both ends: they overlap
    ],
)
def test_the_word_goes_by_the_interval_of_the_difference(change: tuple, better: str, word: str):
    ends = Estimate(0.3, 0.1, 0.5), Estimate(0.4, 0.2, 0.6)
    assert judge(*ends, Estimate(*change), better)[0] == word


def test_without_an_interval_of_the_difference_both_ends_decide():
    assert judge(Estimate(0.3, 0.2, 0.4), Estimate(0.6, 0.5, 0.7), Estimate(0.3), "higher") == ("gained", "good")
    assert judge(Estimate(0.3), Estimate(0.6), Estimate(0.3), "higher")[0] == ""


def test_only_the_first_of_many_pictures_are_shown(make_recipe: Make, monkeypatch: pytest.MonkeyPatch):
    recipe = make_recipe(measure_steps=1, measure_images=24)
    online = build_online(recipe.data, recipe.run, 64)
    assert len(online.queries) > 3 and online.exchanges is not None
    monkeypatch.setattr(gains, "MOST_IMAGES", 3)
    data = as_probe(online, 64, 0)
    assert (len(data.gallery), len(data.queries)) == (3, 3)
    for side in (data.gallery, data.queries):
        assert len(side.labels) == len(side.every_box) == sum(map(len, side.boxes))
    assert len(data.swaps.regions) == len(data.swaps.moved) == int((online.exchanges.images < 3).sum())
    assert torch.equal(data.queries.every_box[data.swaps.regions], data.swaps.boxes)


def test_another_diagnosis_in_the_folder_is_no_gain_and_a_broken_one_is_named(finished: Path, tmp_path: Path):
    (tmp_path / "diagnosis").mkdir()
    (tmp_path / "run.json").write_text((finished / "run.json").read_text())
    report = diagnosed(finished)
    for values, said in (
        (report | {"models": report["models"][1:]}, False),
        ({name: value for name, value in report.items() if name != "differences"}, True),
    ):
        (tmp_path / "diagnosis/report.json").write_text(json.dumps(values))
        run = read_run(tmp_path)
        assert run.gains == [] and any("another version" in problem for problem in run.problems) == said


ABOUT = "license: apache-2.0\ndata: drawn\nbiases: none known\nbase_model: org/small-net\n"


@pytest.mark.parametrize("pictures", [False, True])
def test_it_is_published_without_pictures_of_others(finished: Path, tmp_path: Path, pictures: bool):
    change(finished / "run.json", commit="0123456789abcdef0123456789abcdef01234567")
    (finished / "about.yaml").write_text(f"{ABOUT}pictures: {str(pictures).lower()}\n")
    output = tmp_path / "release"
    assert publish([str(finished), "--repo", "org/mine", "--dry_run", "--output", str(output)]) == 0
    for folder in (output / "mine", output / "mine-pretraining"):
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert "diagnosis/report.json" in files
        assert ({"diagnosis/report.html", "training/similarity.png"} <= files) == pictures
        page = (folder / "training/report.html").read_text()
        card = (folder / "README.md").read_text()
        assert ('href="../diagnosis/report.html"' in page) == pictures
        assert "What was gained, and what was lost" in page and "no diagnosis of both ends" not in page
        assert ("`diagnosis/report.html`" in card) == pictures
        assert "base_model: org/small-net" in card and "## Training" in card  # the release's, not the export's
        assert not [place for place in (finished.parent, tmp_path) if str(place) in page]
