"""The command from flags to results, and what it says where data or model cannot be measured."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from modeling_decodepos.data.schema import build_features
from tests.training.evaluation.conftest import NAMES, SIDE, squares_row, write_squares
from training.evaluation.__main__ import main, parse
from training.evaluation.measure import evaluate, find_arm, protocol_id
from training.evaluation.protocols import PROTOCOLS, QUICK
from training.evaluation.results import headline_rows
from training.sweep.__main__ import build_parser

FLAGS = ["--model", "random:resnet_tiny", "--size_px", str(SIDE), "--device", "cpu"]
Measure = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    def call(protocol: str, data: Path, *more: str) -> list[dict[str, Any]]:
        output = tmp_path / "results.json"
        main([protocol, *FLAGS, "--data", str(data), "--output", str(output), *more])
        return json.loads(output.read_text())["results"]

    return call


def refused(measure: Measure, protocol: str, data: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as stop:
        measure(protocol, data, *more)
    return str(stop.value)


def write_rows(folder: Path, features: datasets.Features, rows: Callable[[str], list[dict[str, Any]]]) -> Path:
    """Splits of any columns."""
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        data = datasets.Dataset.from_list(rows(split), features=features)
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_row_says_what_it_is(measure: Measure, squares: Path, capsys: pytest.CaptureFixture):
    rows = measure("object_knn", squares, "--neighbours", "1", "5", "--seeds", "0", "1", "--no-variants")
    assert [row["metric"] for row in rows] == [
        "commonest_class",
        "effective_rank",
        "micro_k1",
        "class_mean_k1",
        "micro_k5",
        "class_mean_k5",
    ]
    row = rows[-1]
    assert row["protocol"].startswith("object_knn-1:size_px=64,")
    assert row["protocol"].endswith("neighbours=1+5,temperature=0.07,variants=False")
    assert row["seeds"] == [0, 1]
    assert row["value"] == pytest.approx(sum(row["values"]) / 2)
    assert row["spread"]["std_over_seeds"] == pytest.approx(abs(row["values"][0] - row["values"][1]) / 2**0.5)
    low, high = row["spread"]["interval_95_over_images"]
    assert low <= row["values"][0] <= high
    assert (row["count"], row["arm"], row["label"]) == (24, "untrained", "reduced scale")
    assert row["data_hash"].startswith("train: ") and "validation: " in row["data_hash"]
    printed = capsys.readouterr().out
    assert "untrained" in printed and row["protocol"] in printed
    again = measure("object_knn", squares, "--neighbours", "1", "5", "--seeds", "0", "1", "--no-variants")
    assert [{**row, "measured": None} for row in again] == [{**row, "measured": None} for row in rows]
    assert len(measure("object_knn", squares, "--neighbours", "1", "--seeds", "0", "--no-variants")) == 6 + 4


def test_the_screen_shows_five_numbers_and_the_file_has_all(
    measure: Measure, squares: Path, capsys: pytest.CaptureFixture
):
    rows = measure("object_knn", squares, "--neighbours", "10", "20")
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("metric "))
    shown = [f"{what}class_mean_k20" for what in ("", "recontextualised_", "repositioned_", "alone_")]
    assert [line.split()[0] for line in lines[start + 1 : start + 6]] == [*shown, "commonest_class"]
    assert lines[-1].endswith(f", with {len(rows) - 5} more numbers") and len(rows) > 15
    assert {"effective_rank", "alone_drop_k10"} <= {row["metric"] for row in rows}


def test_what_is_shown_where_k_is_another():
    rows = [{"metric": name} for name in ("micro_k5", "class_mean_k5", "class_mean_k9", "commonest_class")]
    found = headline_rows(rows, ["class_mean", "alone_class_mean", "commonest_class"])
    assert [row["metric"] for row in found] == ["class_mean_k5", "commonest_class"]
    assert headline_rows(rows, []) == rows


def test_the_commit_is_the_one_that_measured(measure: Measure, squares: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkout that moves on during a measurement, as it does when somebody pulls."""
    state = ["before"]

    def measure_while_it_moves(*arguments: Any) -> Any:
        state[0] = "after"
        return evaluate(*arguments)

    monkeypatch.setattr("training.evaluation.measure.commit", lambda: state[0])
    monkeypatch.setattr("training.evaluation.measure.evaluate", measure_while_it_moves)
    rows = measure("object_knn", squares, "--neighbours", "1", "--no-variants")
    assert {row["commit"] for row in rows} == {"before"}


def test_what_changes_a_number_changes_the_id_and_nothing_else_does(squares: Path):
    def name(*flags: str) -> str:
        given = ["object_knn", *FLAGS, "--data", str(squares), "--output", "x.json", *flags]
        return protocol_id(*parse(given)[1:])

    assert name() == name("--batch_size", "3", "--num_workers", "2", "--seeds", "4")
    changed = [("--size_px", "96"), ("--region_bins", "7"), ("--train_images", "9"), ("--neighbours", "3"),
               ("--validation_split", "test"), ("--temperature", "0.1"), ("--no-variants",)]  # fmt: skip
    assert len({name(), *(name(*flags) for flags in changed)}) == 1 + len(changed)
    assert "size_px=64," in name("--quick") and "train_images=400" in name("--quick")


def test_the_arm_is_the_objective_of_the_run(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"recipe": {"objective": "depositioning"}}')
    assert find_arm(str(tmp_path / "export" / "backbone")) == "depositioning"
    assert find_arm("random:resnet18") == "untrained"
    assert find_arm("some/model") == "as released"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_has_help_and_a_quick_form(protocol: str, capsys: pytest.CaptureFixture, squares: Path):
    with pytest.raises(SystemExit) as stop:
        main([protocol, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    _, entry, common, settings = parse([protocol, *FLAGS, "--data", "x", "--output", "y", "--quick"])
    for name, value in (QUICK | entry.quick).items():
        assert f"--{name}" in shown
        assert getattr(settings, name, getattr(common, name, None)) == (SIDE if name == "size_px" else value)


def test_data_without_boxes(measure: Measure, tmp_path: Path):
    def empty(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"objects": {"bbox": [], "category": [], "area": [], "iscrowd": []}} for row in rows]

    data = write_squares(tmp_path / "empty", empty)
    said = refused(measure, "object_knn", data)
    assert "its `objects` hold no box at all. This protocol needs boxes with classes" in said
    assert said.endswith("can run if the rest is there: linear_segmentation, patch_retrieval, segmentation.")
    features = build_features(NAMES)
    features.pop("objects")

    def without(split: str) -> list[dict[str, Any]]:
        return [{k: v for k, v in squares_row(n, split).items() if k != "objects"} for n in range(4)]

    data = write_rows(tmp_path / "none", features, without)
    assert "has no column `objects`" in refused(measure, "object_linear", data)
    # Maps alone are enough to segment.
    assert measure("patch_retrieval", data, "--memory_patches", "200")[0]["metric"] == "miou"


def test_data_without_classes(measure: Measure, tmp_path: Path):
    def unknown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            row["objects"]["category"] = None
        return rows

    said = refused(measure, "object_knn", write_squares(tmp_path / "unknown", unknown))
    assert "its 2 boxes have no class, or an unknown one" in said
    assert "decodepos-diagnose" in said


def test_data_without_masks(measure: Measure, tmp_path: Path):
    data = write_squares(tmp_path / "no", lambda rows: [row | {"segmentation": None} for row in rows])
    for protocol in ("linear_segmentation", "patch_retrieval", "segmentation"):
        said = refused(measure, protocol, data)
        assert "has no image with a `segmentation` map, of 24 images" in said
        assert said.endswith("object_knn, object_linear, detection.")


def test_maps_and_classes_that_do_not_fit(measure: Measure, tmp_path: Path):
    features = build_features(NAMES[:1])

    def rows(split: str) -> list[dict[str, Any]]:
        made = [squares_row(n, split) for n in range(4)]
        for row in made:
            row["objects"]["category"] = [0, 0]
        return made

    data = write_rows(tmp_path / "few", features, rows)
    assert "but there are 2 (0 = no class" in refused(measure, "patch_retrieval", data)


def test_an_empty_split_and_a_missing_one(measure: Measure, tmp_path: Path, squares: Path):
    data = write_squares(tmp_path / "empty")
    none = datasets.Dataset.from_list([squares_row(0, "train")], features=build_features(NAMES)).select([])
    none.to_parquet(data / "data" / "validation-00000-of-00001.parquet")
    assert "[validation] holds no image" in refused(measure, "object_knn", data)
    assert "val2017" in refused(measure, "object_knn", squares, "--validation_split", "val2017")
    assert "no folder at" in refused(measure, "object_knn", tmp_path / "nowhere")


def test_ragged_boxes(measure: Measure, tmp_path: Path):
    features = build_features(NAMES)
    features["objects"]["bbox"] = datasets.List(datasets.List(datasets.Value("float32")))

    def rows(split: str) -> list[dict[str, Any]]:
        made = [squares_row(n, split) for n in range(4)]
        made[2]["objects"]["bbox"][1] = [3.0, 4.0, 20.0]
        return made

    said = refused(measure, "object_knn", write_rows(tmp_path / "three", features, rows))
    assert "train-002" in said and "objects.bbox holds 2 boxes with 7 numbers" in said

    def lengths(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[3]["objects"]["category"] = [1]
        return rows

    said = refused(measure, "object_knn", write_squares(tmp_path / "lengths", lengths))
    assert "train-003: the lists of objects differ in length: {'bbox': 2, 'category': 1" in said


def test_pictures_without_annotations(measure: Measure, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(squares_row(0, "train")["image"]["bytes"])
    assert "is a folder of plain pictures without annotations" in refused(measure, "object_knn", tmp_path / "pictures")


def test_wrong_flags_and_files(measure: Measure, squares: Path, tmp_path: Path):
    assert "size_px is 0; expected at least 8" in refused(measure, "object_knn", squares, "--size_px", "0")
    assert "neighbours is (0,)" in refused(measure, "object_knn", squares, "--neighbours", "0")
    (tmp_path / "results.json").write_text("[1, 2]")
    assert "is no results file" in refused(measure, "object_knn", squares)
    assert (tmp_path / "results.json").read_text() == "[1, 2]"


def test_an_unknown_model_while_offline(squares: Path, tmp_path: Path):
    flags = ["--data", str(squares), "--output", str(tmp_path / "r.json"), "--device", "cpu"]
    with pytest.raises(SystemExit, match="'nobody/nothing' is neither a folder nor a model on the Hub"):
        main(["object_knn", "--model", "nobody/nothing", *flags])


def test_commands_of_the_page_parse():
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if "-m training.evaluation " in line and "PROTOCOL" not in line]
    words = [shlex.split(line.split("training.evaluation ")[1], comments=True) for line in lines]
    sweeps = [build_parser().parse_args(line[1:]) for line in words if line[0] == "ablation"]
    assert sweeps and all((Path(__file__).parents[3] / sweep.sweep).is_file() for sweep in sweeps)
    assert {parse(line)[0].protocol for line in words if line[0] != "ablation"} == set(PROTOCOLS)
    for name, entry in PROTOCOLS.items():
        assert f"| `{name}-{entry.version}` |" in page
