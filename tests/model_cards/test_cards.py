"""What is committed is what the JSON says, and nothing unfounded can be rendered."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from jinja2 import UndefinedError

from dataset_scripts.hub.release import card_problems
from model_cards import render
from model_cards.cards import render_card
from model_cards.results import load_rows, measured_on, row_problems
from model_cards.tables import cell, code, number_table, origin_table

HERE = Path(render.__file__).parent
CARDS = sorted([*(HERE / "cards").glob("*.md"), *(HERE / "weights").glob("*/README.md")])
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def our_row(**values: Any) -> dict[str, Any]:
    row = {
        "model": "tiny", "arm": "both", "protocol": "object_knn-1:k=20", "metric": "accuracy", "value": 0.5,
        "spread": {"std_over_seeds": None, "interval_95_over_images": None}, "seeds": [0], "label": "reduced scale",
        "command": "python -m x --data a/b/scenes", "commit": COMMIT,
    }  # fmt: skip
    return row | values


def quoted_row(**values: Any) -> dict[str, Any]:
    source = {"title": "README of X", "url": "https://x.org", "place": "first table", "read": "2026-01-31"} | values
    return {"model": "X", "protocol": "theirs", "metric": "AP", "value": 1, "label": "quoted", "source": source}


def test_the_committed_pages_are_what_the_json_says(capsys: pytest.CaptureFixture):
    assert render.main(["--check"]) == 0, capsys.readouterr().out
    for path in CARDS:
        assert card_problems(path.read_text(encoding="utf-8"), ModelCard) == []


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.relative_to(HERE).as_posix())
def test_a_card_points_to_nothing_that_is_not_there(card: Path):
    text = card.read_text(encoding="utf-8")
    outside_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", outside_code)
    assert [target for target in targets if not (card.parent / target).exists()] == []
    loaded = re.findall(r'from_(?:pretrained|backbone)\("([^"]+)"', text)
    assert loaded
    if "**A template**" not in text:
        assert [place for place in loaded if not (HERE.parent / place / "config.json").is_file()] == []
        assert "ORG/" not in outside_code


def test_a_published_card_loads_from_the_hub_and_shows_its_pictures():
    facts = json.loads(sorted((HERE / "models").glob("*.json"))[0].read_text(encoding="utf-8"))
    card = render_card(facts, [])
    assert f'from_pretrained("{facts["repo"]}"' in card and "](training/loss.svg)" in card and "A template" not in card


def test_a_page_changed_by_hand_is_noticed_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(json.dumps({"results": [our_row(value=0.123)]}))
    monkeypatch.setattr(render, "HERE", tmp_path)
    assert render.main([]) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| tiny | object_knn-1 (both) | accuracy | 0.123 |" in page and page.count("None yet.") == 2
    (tmp_path / "RESULTS.md").write_text(page.replace("0.123", "0.923"))
    assert render.main(["--check"]) == 1 and "differs" in capsys.readouterr().out
    assert "0.923" in (tmp_path / "RESULTS.md").read_text()
    render.main([])
    assert (tmp_path / "RESULTS.md").read_text() == page
    (tmp_path / "results" / "a.json").write_text(json.dumps({"results": [our_row(commit="unknown")]}))
    assert render.main([]) == 2
    said = capsys.readouterr().err
    assert "a.json has numbers that cannot be shown" in said and "tiny, object_knn-1, accuracy: the commit" in said


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (our_row(), ""),
        (quoted_row(), ""),
        (our_row(value=True), "the value is True"),
        (our_row(value=float("inf")), "the value is inf"),
        (our_row(seeds=[True]), "the seeds are"),
        (our_row(seeds=None), "the seeds are"),
        (our_row(commit=COMMIT[:12]), "the commit is"),
        (our_row(label="state of the art"), "the label is"),
        (our_row(model=""), "no model"),
        (quoted_row(url="x.org"), "expected https"),
        (quoted_row(read="lately"), "expected the day"),
        (quoted_row(title="arXiv 2303.16947, Table 2"), "nobody here has read a number"),
    ],
)
def test_a_number_says_where_it_comes_from(row: dict[str, Any], problem: str):
    assert problem in "; ".join(row_problems(row)) if problem else row_problems(row) == []


@pytest.mark.parametrize("text", ["", "[]", '{"results": 3}', '{"results": [1]}'])
def test_another_file_is_no_results_file(tmp_path: Path, text: str):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="is no results file"):
        load_rows(tmp_path / "x.json")


def test_the_quoted_numbers_name_a_commit_of_a_page():
    rows = load_rows(HERE / "results" / "quoted.json")
    assert rows and all(row["label"] == "quoted" for row in rows)
    assert all(re.search(r"/blob/[0-9a-f]{40}/README\.md$", row["source"]["url"]) for row in rows)


def test_tables_keep_their_columns_whatever_is_in_them():
    nasty = "a|b\n[x](javascript:y) <script> `c`"
    rows = [
        our_row(model=nasty, arm=nasty, protocol=nasty, metric=nasty, command=nasty),
        our_row(),
        our_row(metric="b"),
    ]
    for text in (number_table(rows, with_model=True), origin_table(rows)):
        lines = text.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        outside = re.sub(r"`[^`]*`", "", text)
        assert "<script" not in outside and "](javascript" not in outside
    assert origin_table(rows).count(COMMIT) == 2  # the last two were made by one command
    assert cell("a") == "a" and code("") == ""


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (our_row(data="scenes of the probe"), "scenes of the probe"),
        (our_row(), "scenes"),
        (our_row(command="python -m x --data=ORG/photos"), "photos"),
        (quoted_row(), "data that its protocol names"),
    ],
)
def test_what_a_number_was_measured_on(row: dict[str, Any], name: str):
    assert measured_on(row) == name


def test_a_fact_that_is_missing_is_an_error_and_not_a_gap():
    facts = json.loads(sorted((HERE / "models").glob("*.json"))[0].read_text(encoding="utf-8"))
    assert render_card(facts, [])
    for name in set(facts) - {"project", "recipe_name", "started", "version", "model", "arm", "kind", "repo", "about"}:
        with pytest.raises((UndefinedError, TypeError)):
            render_card({key: value for key, value in facts.items() if key != name}, [])


def test_what_only_the_publisher_knows_stays_a_placeholder():
    facts = json.loads(sorted((HERE / "models").glob("*.json"))[0].read_text(encoding="utf-8"))
    empty = facts["about"] | {"license": "", "data": "", "biases": ""}
    problems = card_problems(render_card(facts | {"about": empty}, []), ModelCard)
    assert len(problems) == 3 and all("still says [More Information Needed]" in line for line in problems)
