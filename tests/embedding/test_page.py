"""What docs/embed.md tells a reader to type works as it is printed there."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset

from modeling_decodepos.embedding import embed
from modeling_decodepos.embedding.choices import KINDS, REGIONS
from modeling_decodepos.embedding.command import build_parser as embed_parser
from modeling_decodepos.looking.command import build_parser as look_parser

PAGE = (Path(__file__).parents[2] / "docs" / "embed.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_its_commands_parse():
    lines = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    parsers = {"embed": embed_parser, "look": look_parser}
    found = [parsers[words[1]]().parse_args(words[2:]) for words in lines if words[0] == "decodepos"]
    assert len(found) == len(lines) == 5


def test_it_tells_every_choice():
    assert all(f"`{name}`" in PAGE for name in KINDS)
    assert all(re.search(rf"`(--regions )?{name}`", PAGE) for name in REGIONS)
    flags = set(re.findall(r"`--(\w+)", PAGE)) - {"help"}
    known = {flag for parser in (embed_parser(), look_parser()) for flag in parser._option_string_actions}
    assert {f"--{flag}" for flag in flags} <= known


def test_its_examples_run(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """With a network that needs no download, and scenes in place of photos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "coco").symlink_to(scenes)
    embed("random:resnet_tiny", "data/coco", "features.parquet", size_px=64)
    read, search, mapped = (text.replace("facebook/dinov2-small", "random:resnet_tiny") for text in blocks("python"))
    rows = load_dataset("data/coco", split="validation", cache_dir="cache")
    values: dict[str, Any] = {"dataset": rows}
    for text in (read, search, mapped):
        exec(compile(text, "embed.md", "exec"), values)
    assert values["table"].kind == ["regions"] * len(values["table"].feature)
    shown = capsys.readouterr().out.strip().splitlines()
    objects = values["objects"]
    assert len(shown) == 5 and not any(objects.image_id[0] in line.split() for line in shown)
    alike = values["rows"] @ values["rows"][0]
    alike[np.array(objects.image_id) == objects.image_id[0]] = -np.inf
    best = int(alike.argmax())
    assert shown[0].startswith(f"{objects.label[best]} {objects.image_id[best]} ")
    assert len(search.strip().splitlines()) <= 10
    assert {"image_feature", "region_boxes", "region_features"} <= set(values["dataset"].column_names)
