"""What networks make of pictures: the right numbers, in a picture and on a page where they can be read."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from modeling_decodepos import DecodePosConfig, DecodePosModel
from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.diagnosis.measures.influence import gradient_energies
from modeling_decodepos.diagnosis.models.load import load_model
from modeling_decodepos.diagnosis.report.figures import share_outside
from modeling_decodepos.drawing.sheet import SCALE, Sheet
from modeling_decodepos.looking import draw_look, look
from modeling_decodepos.looking.command import main
from modeling_decodepos.looking.leaks import BESIDE, _references, ask, ask_common
from modeling_decodepos.looking.page import look_page
from modeling_decodepos.looking.run import Look
from modeling_decodepos.looking.sheet import _like


def colours(pixels: Tensor) -> Tensor:
    """A network that averages colours in cells of 16 pixels and knows nothing else."""
    return F.avg_pool2d(pixels, 16)


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A picture, twice as wide as high, whose middle square is red at the left and blue at the right."""
    pixels = np.zeros((200, 400, 3), np.uint8)
    pixels[:, :200] = (220, 40, 40)
    pixels[:, 200:] = (40, 40, 220)
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    return tmp_path / "halves.png"


def test_what_is_like_a_point_has_its_colour(halves: Path):
    found = look(colours, [halves], points=[(0.2, 0.5), (0.9, 0.1)], size_px=96)
    left, right = (_like(found.seen[0], 0, point) for point in found.asked[0].points)
    assert torch.allclose(left[:, :3], torch.ones(6, 3).double()) and (left[:, 3:] < 0).all()
    assert torch.allclose(right[:, 3:], torch.ones(6, 3).double()) and (right[:, :3] < 0).all()
    assert found.seen[0].features.grid == (6, 6)


def test_fine_maps_are_not_made_coarse(halves: Path):
    """The diagnosis averages a map to at most 14 cells a side."""
    assert look(colours, [halves], size_px=320).seen[0].features.grid == (20, 20)


def test_the_leak_is_that_of_the_space():
    found = look("random:resnet_tiny", ["scene:1"], size_px=96)
    model, asked = load_model("random:resnet_tiny", size_px=96), found.asked[0]
    again = ask(ask_common(model, 96), asked.view, asked.box)
    assert found.seen[0].leaks[0].leak == again.leak and found.seen[0].leaks[0].outside == again.outside


def ours() -> DecodePosModel:
    """A network of ours, whose last stage runs on regions of a map before."""
    torch.manual_seed(0)
    return DecodePosModel(DecodePosConfig(backbone_config=BACKBONES["resnet_tiny"](), region_bins=4)).eval()


@pytest.mark.parametrize("reading", ["known", "legacy"])
@pytest.mark.parametrize("build", [lambda: "random:resnet_tiny", ours], ids=["resnet", "region stage"])
def test_every_stage_is_read_where_it_lies(build: Any, reading: str):
    """Each with its own cells: with those of another stage, boxes would lie off the map."""
    found = look(build(), ["scene:0"], size_px=64, reading=reading)
    seen, asked = found.seen[0], found.asked[0]
    model = load_model(build(), size_px=64, reading=reading)
    data, swaps = _references(64)
    pixels = torch.cat([asked.view[None], data.queries.pixels[swaps.images[:BESIDE]]])
    energies = gradient_energies(model, pixels, torch.cat([asked.box[None], swaps.boxes[:BESIDE]]))
    assert energies is not None
    shares = [share_outside(energy[0].float(), asked.box) for energy in energies]
    assert seen.leaks[0].outside == pytest.approx(shares) and 0 < shares[0] < 0.6
    assert len(shares) == len(model.stages)


def test_the_sheet_writes_only_what_its_font_has(monkeypatch: pytest.MonkeyPatch):
    sheet = Sheet(["a"], 1)
    drawn: list[str] = []
    monkeypatch.setattr(sheet.draw, "text", lambda place, text, **_: drawn.append(text))
    sheet.text(0, 0, "\N{MINUS SIGN}0.02 \N{EN DASH}")
    assert drawn == ["-0.02 -"]


def look_at_both(halves: Path, **how: Any) -> Look:
    return look([colours, "random:resnet_tiny"], [halves, "scene:0"], size_px=96, **how)


def test_the_picture_has_a_row_for_each_and_marks_what_was_asked(halves: Path):
    found = look_at_both(halves, points=[(0.25, 0.5), (0.75, 0.5)], box=(0.2, 0.2, 0.6, 0.6))
    drawn = draw_look(found)
    columns, rows = 5, 4
    like = Sheet([""] * columns, rows, tile=200, left=176)
    assert drawn.size == like.image.size
    pixels = np.asarray(drawn)
    for row in range(rows):
        for column, x in ((0, 0.25), (2, 0.25), (3, 0.75)):
            left, top = like.corner(row, column)
            place = round((left + x * 200) * SCALE) + 8, round((top + 100) * SCALE)  # beside the number
            assert pixels[place[1], place[0]].tolist() == [255, 212, 0], (row, column)
    left, top = like.corner(0, 0)
    assert pixels[round((top + 0.2 * 200) * SCALE), round((left + 0.4 * 200) * SCALE)].tolist() == [255, 212, 0]


def test_the_page_loads_nothing_and_escapes_names(halves: Path):
    found = look_at_both(halves)
    evil = '<img src=x onerror="alert(1)">'
    found.seen[0].model.name = evil
    text = look_page(found)
    assert evil not in text and "&lt;img src=x" in text
    assert not re.search(r'(src|href)="(?!data:image/|#)', text)
    assert text.count('class="patches') == 2 and text.count('data-cosines="') == 4  # a click is answered in every one
    assert "halves.png" in text and "scene:0" in text and text.count("<details>") == 4


def test_the_command_writes_both(halves: Path, capsys: Any, tmp_path: Path):
    words = ["random:resnet_tiny", str(halves), "--beside", "random:resnet_tiny", "--size-px", "64"]
    assert main([*words, "--point", "0.2,0.3", "--output", str(tmp_path / "new" / "v1.0")]) == 0
    assert "v1.0.png and" in capsys.readouterr().out
    with Image.open(tmp_path / "new" / "v1.0.png") as drawn:
        assert drawn.size[0] > 1600
    assert (tmp_path / "new" / "v1.0.html").stat().st_size < 2**20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jpg"], "there is no picture nowhere.jpg. Give a file, or scene:0"),
        (["scene:x"], "scene:x is no scene; expected a number"),
        (["scene:0", "--box", "0.5,0.5,0.4,0.9"], "expected x1, y1, x2, y2 in [0, 1]"),
        (["scene:0", "--box", "0,0,1,1"], "at most half of its area"),
        (["scene:0", "--point", "1.2,0"], "expected x and y in [0, 1]"),
        (["scene:0", "--beside", "resnet18"], "say random:resnet18"),
    ],
)
def test_what_cannot_be_looked_at_is_said_in_a_line(words: list[str], said: str, capsys: Any, tmp_path: Path):
    assert main(["random:resnet_tiny", *words, "--output", str(tmp_path / "look"), "--size", "64"]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_form_that_is_none(capsys: Any):
    with pytest.raises(SystemExit):
        main(["random:resnet_tiny", "scene:0", "--box", "0.5"])
    assert "'0.5' is not of the form X1,Y1,X2,Y2, such as 0.3,0.3,0.7,0.7" in capsys.readouterr().err
