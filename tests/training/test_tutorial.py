"""The tutorial does what it says, as a newcomer runs it."""

import re
from pathlib import Path

from safetensors.torch import load_file

from tests.forks import ROOT, python
from tests.training.runs import ENVIRONMENT


def test_the_tutorial_goes_from_nothing_to_a_number(tmp_path: Path):
    done = python().run(["-m", "training.tutorial"], env=ENVIRONMENT | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("decodepos-tutorial-*")
    printed = {Path(path) for path in re.findall(rf"{folder}[\w/.-]*\w", done.stdout)}
    assert len(printed) >= 3 and all(path.exists() for path in printed)
    said = dict(re.findall(r"^(loaded|regions|context leak) +(.*)$", done.stdout, re.MULTILINE))
    assert said["loaded"] == "ResNetModel, and DecodePosModel around the same weights"
    assert re.fullmatch(r"[2-7] objects, 128 numbers each", said["regions"])
    leaks = [float(value) for value in re.findall(r"stage\d (\d\.\d\d)", said["context leak"])]
    assert len(leaks) == 3 and all(0 <= leak <= 1 for leak in leaks)
    assert leaks[0] < leaks[-1]  # a cell of the first stage sees little beyond its region, one of the last nearly all
    plain = load_file(folder / "run" / "export" / "backbone" / "model.safetensors")
    trained = load_file(folder / "run" / "checkpoints" / "step_0000006" / "model.safetensors")
    assert sum(key.startswith("decodepos.backbone.") for key in trained) == len(plain)


def test_every_step_says_where_to_read_on():
    text = (ROOT / "training" / "tutorial.py").read_text(encoding="utf-8")
    assert re.findall(r'^    """(Step \d):', text, re.MULTILINE) == [f"Step {number}" for number in range(1, 6)]
    named = re.findall(r"\b(?:docs|training|modeling_decodepos)/[\w/]+\.(?:md|py)\b", text)
    assert len(named) >= 7
    assert not [path for path in named if not (ROOT / path).is_file()]
