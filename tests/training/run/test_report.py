import dataclasses
import json
import re

import pytest
import torch
from PIL import Image

from modeling_decodepos.losses import OBJECTIVES, pair_loss
from tests.modeling.drawing.test_page import Reader, classes_without_a_style
from training.probes.before_after import ProbeResult
from training.recipe import DEFAULT_RECIPE, load_recipe, origins
from training.run.folder import read_run
from training.run.report import main, write_report

BEFORE = ProbeResult(0.07, (0.04, 0.1), -0.05, 0.79, (0.1, -0.2), (0.8, 0.78), seed=0, size_px=64)
AFTER = ProbeResult(0.81, (0.76, 0.86), 0.62, 0.21, (0.7, 0.5), (0.3, 0.1), seed=0, size_px=64)


def log_line(step, **changes):
    line = {
        "step": step, "epoch": step / 125, "loss": -1.0 - step / 50, "decoupling": -0.5 - step / 100,
        "depositioning": -0.5 - step / 100, "learning_rate": 1e-3, "momentum": 0.98, "embedding_std": 0.08,
        "slack": 0.53, "can_move": 1.0, "images_per_second": 60.0, "data_wait": 0.25, "seconds": 2.5,
    }  # fmt: skip
    return line | changes


@pytest.fixture
def run_dir(tmp_path):
    """A finished run with everything a report can show."""
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    description = {
        "name": "demo",
        "command": "python training/pretrain.py --max_steps 100",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:09:05+00:00",
        "status": "finished",
        "steps": 100,
        "recipe": load_recipe(DEFAULT_RECIPE).values()
        | {"max_steps": 100, "objective": "both", "pair_loss": "attract"},
        "origins": origins(),
        "terms": ["decoupling", "depositioning"],
        "projection_size": 128,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "commit": "0123abcd",
        "data": {"path": "data/scenes", "split": "train", "images": 4000, "hash": "sha256:feed"},
        "machine": {"system": "Linux x86_64", "cores": 2, "threads": 2, "device": "cpu"},
        "export": {"backbone": "runs/demo/export/backbone", "pretraining": "runs/demo/export/pretraining"},
    }
    write(folder, run=description, log=[log_line(step) for step in range(5, 101, 5)])
    write(folder, probe={"before": BEFORE.to_dict(), "after": AFTER.to_dict()})
    for name in ("views.png", "probe.png"):
        Image.new("RGB", (40, 20), "teal").save(folder / name)
    return folder


def write(folder, run=None, log=None, probe=None):
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run))
    if log is not None:
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if probe is not None:
        (folder / "probe.json").write_text(json.dumps(probe))


def change(folder, **values):
    write(folder, run=json.loads((folder / "run.json").read_text()) | values)


def text_of(folder):
    """What a reader sees, on one line."""
    document = write_report(folder).read_text(encoding="utf-8")
    read = Reader(document)  # fails on tags that do not nest
    return re.sub(r"\s+", " ", " ".join(read.texts))


def test_a_finished_run_is_told_in_full(run_dir):
    text = text_of(run_dir)
    for part in (
        "resnet_mini was trained for 100 of 100 steps on 4,000 images (3,200 seen, 0.80 passes)",
        "loss −1.10 → −3 about 0 by chance, −8 at best",  # noqa: RUF001
        "a perfect spread is 0.0884",  # 1 / sqrt(128)
        "prefers the same object elsewhere in 81 % of 2 cases",
        "the untrained one in 7 %: its features follow the object more than before",
        "7 % → 81 %",
        "76 % to 86 %",
        "training time 0:00:50 on cpu, 2 cores",  # 20 lines of 2.5 seconds
        "25 % of the time waiting for data",
        "53 % of a view",
        'AutoModel.from_pretrained("runs/demo/export/backbone")',
        "sha256:feed",
        "python training/pretrain.py --max_steps 100",
        "2026-01-02 03:09:05 UTC",
    ):
        assert part in text, part
    document = (run_dir / "report.html").read_text()
    assert document.count("data:image/png;base64,") == 2
    assert document.count("<svg") == 7
    assert not re.search(r"(src|href)=\"(?!data:)", document)


def test_loss_ranges_follow_the_table_of_pairs(run_dir):
    recipe = json.loads((run_dir / "run.json").read_text())["recipe"]

    def read(terms=("decoupling", "depositioning"), **keys):
        change(run_dir, recipe=recipe | keys, terms=list(terms))
        return text_of(run_dir)

    assert "best depositioning −4" in read() and "best decoupling −4" in read()  # noqa: RUF001
    assert "−6 at best" in read(depositioning_weight=0.5)  # noqa: RUF001
    assert "about 0 by chance, −4 at best" in read(depositioning_weight=0.0)  # noqa: RUF001
    assert "about −3 at the start, −7 at best" in read(depositioning_weight=0.0, anchor_weight=1.5)  # noqa: RUF001
    assert "−4 at best" in read(["decoupling"], objective="decoupling")  # noqa: RUF001
    assert "about 7.76 by chance, 0 at best" in read(pair_loss="contrast")  # 4 pairs of 0.4 times ln(32 x 4)
    assert "at best" not in read(["decoupling"], objective="a_later_one")  # unknown table: no range is made up


def test_a_term_that_keeps_regions_apart_is_at_best_0(run_dir):
    recipe = json.loads((run_dir / "run.json").read_text())["recipe"]
    terms = ["decoupling", "depositioning", "apart"]
    change(run_dir, recipe=recipe | {"objective": "both_apart"}, terms=terms)
    write(run_dir, log=[log_line(step, apart=0.1) for step in (5, 10)])
    text = text_of(run_dir)
    assert "−8 at best" in text and "best apart 0" in text  # noqa: RUF001
    values = {"crop_cut_small": torch.eye(4)[:3], "whole_cut": torch.eye(4)[:3], "crop": torch.eye(4)[:3]}
    values = {name: rows[None] for name, rows in (values | {"repositioned": torch.eye(4)[:3]}).items()}
    valid = {name: torch.ones(1, 3, dtype=torch.bool) for name in values}
    assert pair_loss(values, values, valid, OBJECTIVES["both_apart"])[0] == -8  # and that can be reached


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (AFTER, "its features follow the object more than before. The object decides more often"),
        (dataclasses.replace(BEFORE, content_wins=0.01, interval=(0.0, 0.02)), "follow the object less than before"),
        (dataclasses.replace(BEFORE, content_wins=0.12, interval=(0.08, 0.16)), "no clear change"),
        (dataclasses.replace(BEFORE, content_wins=0.5, interval=(0.44, 0.56)), "Neither the object nor its place"),
    ],
)
def test_the_probe_is_read_as_it_came_out(run_dir, after, sentence):
    write(run_dir, probe={"before": BEFORE.to_dict(), "after": after.to_dict()})
    assert sentence in text_of(run_dir)


@pytest.mark.parametrize(
    ("std", "keys", "sentence"),
    [
        (0.08, {}, "stay spread out"),
        (0.03, {}, "narrow"),
        (0.002, {}, "have collapsed"),
        (0.03, {"collapse_warn": 0.3}, "stay spread out"),
        (0.03, {"collapse_stop": 0.4}, "have collapsed"),
        (0.002, {"collapse_stop": 0.0, "collapse_warn": 0.0}, "stay spread out"),
    ],
)
def test_a_collapse_is_called_one_by_the_thresholds_of_the_recipe(run_dir, std, keys, sentence):
    recipe = json.loads((run_dir / "run.json").read_text())["recipe"]
    change(run_dir, recipe=recipe | keys)
    write(run_dir, log=[log_line(5), log_line(10, embedding_std=std)])
    assert sentence in text_of(run_dir)


def test_embeddings_on_one_line_are_collapsed_however_wide_they_are(run_dir):
    write(run_dir, log=[log_line(5, effective_rank=1.1, full_rank=64.0)])
    assert "have collapsed" in text_of(run_dir)


@pytest.mark.parametrize(("share", "tone"), [(0.2, "bad"), (0.5, "good")])
def test_too_little_room_is_what_the_recipe_says(run_dir, share, tone):
    recipe = json.loads((run_dir / "run.json").read_text())["recipe"]
    change(run_dir, recipe=recipe | {"max_immobile_share": share})
    write(run_dir, log=[log_line(5, can_move=0.6)])
    document = write_report(run_dir).read_text()
    assert f'<div class="tile {tone}"><div class="label">mean slack</div>' in document


def test_everything_on_the_page_has_a_style(run_dir):
    change(run_dir, status="stopped", reason="it did")
    assert not classes_without_a_style(write_report(run_dir).read_text())


def test_a_killed_run_says_so(run_dir):
    change(run_dir, status="running", finished=None, export=None)
    with (run_dir / "log.jsonl").open("a") as file:
        file.write('{"step": 105, "los')
    write(run_dir, probe={"before": BEFORE.to_dict()})
    for name in ("views.png", "probe.png"):
        (run_dir / name).unlink()
    text = text_of(run_dir)
    for part in (
        "not finished: still running, or stopped at about step 100",
        "log.jsonl breaks off: 1 line after step 100",
        "only measured before training",
        "Nothing has been exported",
        "There is no views.png",
    ):
        assert part in text, part


def test_an_empty_log_and_no_probe_say_so(run_dir):
    (run_dir / "log.jsonl").write_text("")
    (run_dir / "probe.json").unlink()
    text = text_of(run_dir)
    assert "No step was logged" in text
    assert "There are no curves" in text
    assert "There is no probe" in text


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"recipe": 3, "terms": "x", "data": null}', None])
def test_a_broken_run_file_still_gives_a_page(run_dir, content):
    if content is None:
        (run_dir / "run.json").unlink()
    else:
        (run_dir / "run.json").write_text(content)
    (run_dir / "probe.json").write_text('{"before": {"count": 3}, "after": 7}')
    (run_dir / "views.png").write_bytes(b"")
    text = text_of(run_dir)
    assert "run.json" in text
    assert "probe.json: 'before' is not a probe result" in text
    assert "views.png is not a PNG file" in text


def test_odd_values_in_the_log_do_not_break_the_page(run_dir):
    # Baselines log no slack; a diverging run logs NaN; a hand may have added a line.
    lines = [
        log_line(5, slack=None, can_move=None, loss=float("nan")),
        {"note": 1},
        log_line(10, slack=None, can_move=None),
    ]
    write(run_dir, log=[*lines, log_line(15, slack=None, can_move=None, decoupling=float("inf"), grad_norm=3.0)])
    text = text_of(run_dir)
    assert "mean slack" not in text
    assert "Gradient norm" in text
    document = (run_dir / "report.html").read_text()
    assert not re.search(
        r'="[^"]*(nan|inf)[^"]*"', " ".join(re.findall(r"<(?:path|circle|rect|line|text)[^>]*>", document))
    )


def test_names_from_outside_are_escaped(run_dir):
    nasty = "<script>alert(1)</script>"
    recipe = json.loads((run_dir / "run.json").read_text())["recipe"]
    change(
        run_dir,
        name=f"demo {nasty}",
        command=nasty,
        commit=nasty,
        recipe=recipe | {"data": nasty, "backbone": nasty, "global_batch_size": nasty, nasty: nasty},
        data={"path": nasty, "split": nasty, "images": nasty, "hash": nasty},
        steps=nasty,
        versions={nasty: nasty},
        machine={"device": nasty, "cores": nasty},
        export={"backbone": nasty, "pretraining": f'"{nasty}'},
        terms=[nasty],
    )
    document = write_report(run_dir).read_text()
    assert "script" not in Reader(document).tags
    assert "&lt;script&gt;" in document


def test_command_line_writes_the_page_and_refuses_other_folders(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", str(run_dir)])
    main()
    assert str(run_dir / "report.html") in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "holds neither run.json nor log.jsonl" in capsys.readouterr().err


def test_a_run_folder_is_read_without_being_changed(run_dir):
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    read_run(run_dir)
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before
    write_report(run_dir)
    assert {path.name for path in run_dir.iterdir()} == {*before, "report.html"}


MEASURED_ON = {
    "gallery": "train: 256 images, 914 regions",
    "queries": "validation: 200 images, 700 regions",
    "classes": 40,
    "chance": {"object_knn": 0.31, "object_knn_class_mean": 0.025},
}


def measure_line(step, **changes):
    line = {"step": step, "object_knn": 0.35, "object_knn_class_mean": 0.02 + step / 1000, "position_r2": -0.05}
    return line | {"context_leak": 0.4, "region_retrieval": 0.11} | changes


def test_measures_are_drawn_from_lines_of_their_own(run_dir):
    change(run_dir, measured_on=MEASURED_ON)
    lines = [measure_line(0)]
    for step in range(5, 101, 5):
        lines.append(log_line(step, effective_rank=23.0, full_rank=112.0))
        lines += [measure_line(step)] if step % 50 == 0 else []
    write(run_dir, log=lines)
    text = text_of(run_dir)
    for part in (
        "name the class of 12 % of objects (mean over classes); at the start 2 %",
        "2 % → 12 %",
        "train: 256 images, 914 regions",
        "validation: 200 images, 700 regions",
        "always the most frequent class 0.310",
        "always the most frequent class 0.0250",
        "Position",
        "Context leak",
        "Region retrieval",
        "at the start",
        "Effective rank",
        "full rank 112",
    ):
        assert part in text, part
    document = (run_dir / "report.html").read_text()
    assert document.count("<svg") == 7 + 5 + 1
    assert "before other surroundings" not in text and "class mean low" not in text, "earlier runs have none"
    # A measure's line is a gap in no other curve: every line of a chart is drawn in one piece.
    paths = re.findall(r'<path class="line s\d" d="([^"]*)"', document)
    assert paths
    assert all(path.count("M") == 1 for path in paths)


def test_the_three_situations_and_the_interval_are_drawn(run_dir):
    change(run_dir, measured_on=MEASURED_ON)
    three = {f"object_knn_{name}": 0.1 for name in ("same_regions", "surroundings", "moved")}
    three |= {"object_knn_class_mean_low": 0.01, "object_knn_class_mean_high": 0.2}
    write(run_dir, log=[measure_line(0, **three), log_line(5), measure_line(5, **three)])
    text = text_of(run_dir)
    for part in (
        "The same before other surroundings",
        "The same moved",
        "class mean high 0.200",
        "of the largest regions",
    ):
        assert part in text, part


def test_without_classes_the_page_says_why_there_is_no_knn(run_dir):
    asked = "other images of train, which training sees: 9 images, 20 regions"
    change(run_dir, measured_on={**MEASURED_ON, "classes": 0, "chance": {}, "queries": asked})
    write(run_dir, log=[{"step": 0, "region_retrieval": 0.0}, log_line(5), {"step": 5, "region_retrieval": 0.0}])
    Image.new("RGB", (40, 20), "teal").save(run_dir / "neighbours.jpg")
    text = text_of(run_dir)
    assert "Green:" not in text and "one per class" not in text and "held aside" not in text
    retrieval = write_report(run_dir).read_text().split("Region retrieval")[1].split("</svg>")[0]
    assert ">−1" not in retrieval  # noqa: RUF001  a share of 0 is drawn on an axis from 0 to 1
    assert "There is no object k-NN: the data name no classes." in text
    assert "Region retrieval" in text
    assert "name the right class" not in text


def test_sections_without_data_say_why(run_dir):
    text = text_of(run_dir)
    assert "resumed never" in text
    assert "Nothing was measured on the way: the recipe's measure_steps is 0" in text
    assert "There is no neighbours.jpg" in text
    assert "could not be read" not in text
    assert "Effective rank" not in text


def test_neighbours_are_shown_and_must_be_a_picture(run_dir):
    Image.new("RGB", (40, 20), "teal").save(run_dir / "neighbours.jpg")
    change(run_dir, resumed=[{"step": 40, "started": "2026-01-02T03:07:05+00:00"}])
    document = write_report(run_dir).read_text()
    assert "2026-01-02 03:07:05 UTC at step 40" in document
    assert (
        "Green: the class" in document and "one per class" in document and "Regions of images held aside" in document
    )
    assert document.count("data:image/jpeg;base64,") == 1
    (run_dir / "neighbours.jpg").write_bytes(b"\x89PNG")
    assert "neighbours.jpg is not a JPEG file" in text_of(run_dir)


def test_images_that_could_not_be_read_are_counted_once_each(run_dir):
    lines = [{"image_id": f"photo {number % 12}", "reason": f"<b>cut off</b> {number}"} for number in range(24)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "broken_images.jsonl").write_text(text + "[1]\n{")
    text = text_of(run_dir)
    assert "12 images could not be read" in text
    assert "broken_images.jsonl names all" in text
    assert "photo 9 (<b>cut off</b> 9)." in text  # escaped: the reader sees the signs
    assert "photo 10" not in text


def test_a_run_that_stopped_itself_says_why_first(run_dir):
    change(run_dir, status="stopped", finished=None, export=None, reason="stopped at step 100: the embeddings have")
    text = text_of(run_dir)
    assert "stopped itself at about step 100" in text
    assert text.index("stopped at step 100: the embeddings have") < text.index("embedding std")
