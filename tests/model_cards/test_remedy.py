"""The tables of post-training show what its results say, and its bench compares what it says."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.remedy import Gain, Seen, compare, main
from model_cards.remedy import FRONT, SITUATIONS, TABLES, draw, with_tables
from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.diagnosis.models.networks import build_random
from modeling_decodepos.diagnosis.statistics.estimates import estimate_mean
from tests.real_data import COCO_MULTIOBJECT

NUMBERS = [*FRONT, *(f"micro, {name}" for name in SITUATIONS), "whole pictures"]


def entries() -> dict:
    def gains(after: list[float], low: float) -> list[dict]:
        return [{"name": name, "start": 0.1, "after": after, "low": low, "high": 0.3} for name in NUMBERS]

    return {
        "net|1": {"command": "python -m x", "commit": "abcdef0123", "gains": gains([0.2, 0.3], 0.05)},
        "choice: no donor": {"command": "python -m x", "commit": "abcdef0123", "gains": gains([0.15], -0.1)},
        "dose: 600 steps": {"command": "python -m y", "commit": "abcdef0123", "gains": gains([0.1, 0.2], -0.1)},
    }


def test_tables_and_drawing_say_what_the_results_say():
    page = with_tables("a\n<!-- remedy front -->\nold\n<!-- end of front -->\nb", entries())
    assert "old" not in page and page.count("0.100 → 0.250") == len(FRONT) and "no donor" not in page
    gains = TABLES["gains"](entries())
    assert "| 0.200, 0.300 | **+0.150** (+0.050 to +0.300) | 2.50 |" in gains and "no donor" not in gains
    choices = TABLES["choices"](entries())
    assert choices.splitlines()[2].startswith("| the start | 0.100") and "| no donor | 0.150" in choices
    doses = TABLES["doses"](entries())
    assert "| 600 steps | 0.150, +0.050 (-0.100 to +0.300) |" in doses and "no donor" not in doses
    assert "600 steps" not in gains and "600 steps | `python -m y`" in TABLES["commands"](entries())
    assert "net&#124;1 | `python -m x` | abcdef01 |" in TABLES["commands"](entries())
    told = entries()
    told["net|1"]["gains"][0]["low"] = -0.05
    assert "| +0.150 (-0.050 to +0.300) |" in TABLES["gains"](told)
    drawn = [element.text for element in ElementTree.fromstring(draw(entries())).iter() if element.text]
    assert {"net|1", "0.100 → 0.250", "net|1, moved, seed 1: 0.300"} <= set(drawn)


def seen(right: list[bool], leak: list[float]) -> Seen:
    flags = np.array(right)
    return Seen({"knn": lambda kept: float(flags[kept].mean())}, {"leak": estimate_mean(leak)}, len(right))


def test_gains_are_paired_and_know_of_seeds():
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.5
    leaks = rng.random(400)
    start = seen([*hard], [*leaks])
    better = hard.copy()
    better[np.flatnonzero(~hard)[:20]] = True
    knn, leak = compare(start, [seen([*better], [*(leaks - 0.1)])])
    # What is hard in both cancels: 0.05 of 400 is told from nothing, though 0.5 is known to 0.05 only.
    assert knn.after[0] - knn.start == pytest.approx(0.05)
    assert knn.low is not None and knn.high is not None and 0.02 < knn.low < 0.05 < knn.high < 0.08
    assert (leak.low, leak.high) == (pytest.approx(-0.1), pytest.approx(-0.1))
    worse = seen([*(better & (rng.random(400) < 0.8))], [*leaks])
    unsure = compare(start, [seen([*better], [*leaks]), worse])[0]
    assert unsure.low is not None and unsure.low < 0 < unsure.high, "two seeds that differ tell little"
    assert "x 0.50" in Gain("n", 0.2, [0.1], None, None).row()[-1]


@pytest.mark.skipif(not COCO_MULTIOBJECT.is_dir(), reason="needs the photos")
def test_a_network_beside_itself_gains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    torch.manual_seed(0)
    build_random(BACKBONES["resnet_tiny"](), seed=0).save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    few = ["--validation_images", "12", "--train_images", "30", "--size_px", "96"]
    out = ["--output", str(tmp_path / "found.json"), "--name", "tiny"]
    main([str(tmp_path / "one"), str(tmp_path / "other"), "--data", str(COCO_MULTIOBJECT), *few, *out])
    gains = json.loads((tmp_path / "found.json").read_text())["tiny"]["gains"]
    assert {"class mean, other surroundings", "micro, moved", "whole pictures", "leak", "place"} <= {
        g["name"] for g in gains
    }
    for gain in gains:
        assert gain["after"] == [gain["start"]], gain["name"]
        assert gain["low"] is None or gain["low"] == gain["high"] == 0, gain["name"]
    assert "other surroundings" in capsys.readouterr().out
