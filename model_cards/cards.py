"""The card of a model, a YAML header and Markdown, from the facts of a release and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData

from model_cards.results import Row, measured_on, protocol_name
from model_cards.tables import cell, code, metric_list, number_table, origin_table
from modeling_decodepos.drawing.page import render

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
CONTINUED = Path(__file__).with_name("continued_card.md.jinja")
MISSING = "[More Information Needed]"
TASK = "image-feature-extraction"
TAGS = ["decodepos", "self-supervised-learning", "dense-features", "vision", "arxiv:2303.16947"]

Facts = Mapping[str, Any]


def render_card(facts: Facts, rows: Sequence[Row], folder: str = "", is_template: bool = False) -> str:
    """The text of a card, from what `release.json` holds and rows that `refuse_unfounded` has checked.

    `folder` is where in a checkout the weights lie, if they do not load from the Hub. A template stands alone, without
    a release that was published or lies beside it.
    """
    text = render(
        TEMPLATE,
        {"cell": cell, "code": code, "or_missing": lambda text: text or MISSING},
        header=card_data(facts, rows).to_yaml(),
        numbers=number_table(rows) if rows else "",
        meanings=metric_list(rows),
        origins=origin_table(rows) if rows else "",
        folder=folder,
        place=folder or facts["repo"],
        is_template=is_template,
        **facts,
    )
    return text + "\n"


def render_continued(*, base_model: str, objective: str, **facts: Any) -> str:
    """The text of the card that a run writes beside weights it continued; `base_model` is a Hub id, or empty.

    The other facts are those that the template names. What is released has the card of `render_card`.
    """
    header = ModelCardData(
        library_name="transformers", pipeline_tag=TASK, tags=TAGS, base_model=base_model or None
    ).to_yaml()
    isolated = objective.startswith("isolated")
    known = {"header": header, "base_model": base_model, "objective": objective, "isolated": isolated}
    return render(CONTINUED, {"cell": cell, "code": code}, **known, **facts) + "\n"


def card_data(facts: Facts, rows: Sequence[Row]) -> ModelCardData:
    """The header of a card, with its numbers in the legacy form `model-index`."""
    about, is_backbone = facts["about"], facts["kind"] == "backbone"
    own = own_rows(facts, rows)
    return ModelCardData(
        license=about["license"] or MISSING,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=TAGS if is_backbone else [*TAGS, "custom_code"],
        base_model=about["base_model"] or None,
        datasets=sorted(set(about["hub_datasets"].values())) or None,
        model_name=facts["repo"].partition("/")[2] if own else None,
        eval_results=[_legacy_result(row, about["hub_datasets"]) for row in own] or None,
    )


def eval_entries(facts: Facts, rows: Sequence[Row]) -> list[EvalResultEntry]:
    """The numbers for `.eval_results`: those that were measured on a data set of the Hub."""
    known: Mapping[str, str] = facts["about"]["hub_datasets"]
    return [
        EvalResultEntry(
            dataset_id=known[measured_on(row)],
            task_id=f"{protocol_name(row)}_{row['metric']}",
            value=row["value"],
            date=row.get("measured"),
            notes=f"{row['label']}; seeds {', '.join(map(str, row['seeds']))}; {row['protocol']}; "
            f"`{row['command']}` at commit {row['commit']}",
        )
        for row in own_rows(facts, rows)
        if measured_on(row) in known
    ]


def own_rows(facts: Facts, rows: Sequence[Row]) -> list[Row]:
    """The numbers of the released weights, without those beside them for comparison."""
    return [row for row in rows if row["model"] == facts["model"] and row.get("arm") == facts["arm"]]


def _legacy_result(row: Row, hub_datasets: Mapping[str, str]) -> EvalResult:
    name = measured_on(row)
    return EvalResult(
        task_type=TASK,
        dataset_type=hub_datasets.get(name, name),
        dataset_name=name,
        metric_type=row["metric"],
        metric_name=f"{protocol_name(row)} {row['metric']} ({row['label']})",
        metric_value=row["value"],
        metric_args={name: row[name] for name in ("protocol", "seeds", "command", "commit", "label")},
    )
