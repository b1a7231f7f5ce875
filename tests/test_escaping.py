"""Whatever models, classes, data sets and runs are called: their names never become markup of a page."""

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from benchmarks.known_cases import scenes, small_resnet
from dataset_scripts import prepare, preview
from modeling_decodepos.diagnosis import diagnose, load_model, save_report
from modeling_decodepos.diagnosis.report.patches import SCRIPT
from tests.modeling.drawing.test_page import classes_without_a_style
from training.sweep.results import write_page
from training.sweep.sweep import Sweep

NASTY = "<script>alert(1)</script>\"'&{0}"


class Markup(HTMLParser):
    """Tags of a page, and the names of their attributes."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.scripts += [""] * (tag == "script")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def check(path: Path, least: int, script: str = "") -> None:
    """The page shows the name at least so many times, as text."""
    page = Markup(path)
    # No script but our own, which its policy knows by its contents.
    assert page.scripts == [script] * bool(script)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.findall(r"script-src ([^;\"]*)", page.text) == [f"'sha256-{digest}'"] * bool(script)
    assert "default-src 'none'" in page.text and page.text.count("unsafe") == 1  # of styles
    assert not [name for name in page.attributes if name.startswith("on")]
    assert page.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= least
    assert not classes_without_a_style(page.text)


def test_the_page_of_the_diagnosis(tmp_path: Path):
    torch.manual_seed(0)
    data = dataclasses.replace(scenes(), name=NASTY, class_names=(NASTY,) * 100, notes=(NASTY,))
    model = load_model(small_resnet(), size_px=64, name=NASTY)
    model = dataclasses.replace(model, stages=tuple(f"{NASTY}{k}" for k in range(len(model.stages))), note=NASTY)
    check(save_report(diagnose([model], data, size_px=64, measures="object_knn,context,norms"), tmp_path), 5, SCRIPT)


@pytest.mark.parametrize("failed", [False, True])
def test_the_page_of_a_sweep(tmp_path: Path, failed: bool):
    sweep = Sweep(NASTY, Path(NASTY), {"base": {}, NASTY: {}}, (0, 1), "base", {"object_knn": {}})
    result = {"protocol": "object_knn-1", "metric": NASTY, "value": 0.5}
    rows = [
        {"arm": arm, "seed": seed, "results": [result], "measure_seconds": 1.0, "train_seconds": 1.0, "command": NASTY}
        for arm in sweep.arms
        for seed in sweep.seeds
    ]
    if failed:
        rows[0]["failure"] = NASTY
    write_page(tmp_path / "sweep.html", sweep, rows, NASTY)
    check(tmp_path / "sweep.html", least=8)


def test_the_preview_of_a_data_folder(tmp_path: Path):
    folder = tmp_path / NASTY.replace("/", "")  # a folder's name has none
    size = ["--train", "1", "--validation", "0", "--size-px", "32", "--workers", "1"]
    assert prepare.main(["scenes", "--output", str(folder), *size]) == 0
    assert preview.main([str(folder), "--output", str(tmp_path / "preview.html")]) == 0
    page = Markup(tmp_path / "preview.html")
    assert "script" not in page.tags and "&lt;script&gt;" in page.text
