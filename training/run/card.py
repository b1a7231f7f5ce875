"""The card of a backbone that a run continued, beside its weights."""

from __future__ import annotations

import re
from pathlib import Path

from model_cards.cards import render_continued
from model_cards.tables import cell, markdown_table
from training.run.folder import RunFiles
from training.run.gains import Gain, name_of
from training.run.places import command_without_places


def write_card(run: RunFiles, export: Path) -> None:
    """Writes README.md of an exported backbone from what the run folder holds; no path of this machine is in it."""
    recipe, data, measured = run.recipe, run.about("data"), run.about("measured_on")
    backbone = str(recipe.get("backbone"))
    queries = str(measured.get("queries", ""))
    card = render_continued(
        base_model=backbone if is_hub_id(backbone) else "",
        start=name_of(backbone),
        objective=str(recipe.get("objective")),
        steps=run.step,
        batch_size=recipe.get("global_batch_size"),
        images=data.get("images"),
        data=name_of(str(data.get("path"))),
        command=command_without_places(str(run.description.get("command") or "")),
        image_size_px=recipe.get("view_size_px"),
        keep_start=recipe.get("keep_start"),
        left=str(run.about("left").get("why") or ""),
        gains=gain_table(run.gains) if run.gains else "",
        measured_on=queries,
        training_sees="training sees" in queries,
    )
    (export / "README.md").write_text(card, encoding="utf-8")


def is_hub_id(backbone: str) -> bool:
    """Whether weights were named by a Hub id, and not by a folder."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", backbone)) and not Path(backbone).exists()


def gain_table(gains: list[Gain]) -> str:
    """The numbers of both ends in Markdown."""
    header = ["last stage", "start", "after", "difference", ""]
    rows = [
        [f"{gain.title} ({gain.better} is better)", gain.before, gain.after, gain.change, gain.word] for gain in gains
    ]
    return markdown_table(header, [[cell(part) for part in row] for row in rows])
