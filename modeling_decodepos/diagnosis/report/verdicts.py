"""What a diagnosis found, in words: answers, and verdicts beside random weights, for the page and the command.

A verdict needs intervals: "no clear difference" where they overlap, none at all where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...drawing.page import NO_NUMBER, PERCENT, format_number
from ..measures.evaluate import StageResult
from ..measures.metrics import BY_KEY, METRICS, Metric
from ..results import ModelResult
from ..statistics.estimates import Estimate, overlap

EMPTY_STAGES = {
    "collapsed": "Collapsed: its features are all alike (or lie on one line), whatever is shown. It is not unbiased, "
    "it is empty; its numbers say nothing about it.",
    "content-blind": "Content-blind: its features are the same whatever is shown, and differ between places only. "
    "Everything they tell is position.",
    "faded": "Faded: next to nothing is left of what is shown. Features of this size come of weights that were never "
    "trained, or not loaded; its numbers say nothing about it.",
}
UNCLEAR = "no clear difference"


@dataclass(frozen=True)
class Finding:
    """What was found of one model: a number, what stands beside it, and a verdict with its tone (good, bad, plain)."""

    text: str
    beside: str = ""
    verdict: str = ""
    tone: str = "plain"


@dataclass(frozen=True)
class Row:
    """One line of the table of verdicts."""

    title: str
    note: str
    find: Callable[[ModelResult], Finding]
    brief: bool = True  # said on the command line too


@dataclass(frozen=True)
class Question:
    """What a version of the objects answers: the verdicts where object k-NN loses by it, and where it gains."""

    title: str
    note: str
    lost: tuple[str, str]
    gained: tuple[str, str]
    word: str


_QUESTIONS = {
    "alone": Question(
        "Do surroundings help?", "cut out and larger", ("they help", "good"), ("better without", "bad"), "alone"
    ),
    "recontextualised": Question(
        "Do other surroundings mislead?", "same pixels, same place", ("they mislead", "bad"),
        ("better in others", "plain"), "in others",
    ),
    "repositioned": Question(
        "Is it known elsewhere?", "on photos also smaller", ("less well", "bad"),
        ("better elsewhere", "plain"), "moved",
    ),
}  # fmt: skip

# Numbers of the last stage with a verdict, and whether they are said on the command line.
TITLES = {
    "context_leak": ("Context leak", True),
    "position_blank": ("Place, read from blank pages", False),
    "position_regions": ("Place, read from regions", True),
    "content_wins": ("Same object elsewhere is nearer", False),
    "knn_clean_class_mean": ("Object k-NN, as it is", True),
    "knn_recontextualised_class_mean": ("Object k-NN, in other surroundings", False),
    "knn_repositioned_class_mean": ("Object k-NN, moved", False),
    "knn_alone_class_mean": ("Object k-NN, alone", False),
    "same_recontextualised": ("Finds itself in other surroundings", False),
    "same_repositioned": ("Finds itself moved", False),
    "same_alone": ("Finds itself alone", True),
}


def find_rows(models: Sequence[ModelResult]) -> list[Row]:
    """The table of verdicts: questions first, then numbers; only what was measured."""
    measured = {key for model in models for key in model.last.numbers}
    rows = [
        Row(question.title, f"object k-NN; {question.note}", _lost(key, question))
        for key, question in _QUESTIONS.items()
        if f"knn_lost_{key}" in measured
    ]
    if "position_blank" in measured:
        rows.append(Row("Does place leak?", "read from blank pages; 1 exactly", _place))
    titles = {key: title for key, title in TITLES.items() if key in measured}
    # Of measures without a headline, whatever there is.
    titles = titles or {metric.key: (metric.title, True) for metric in METRICS if metric.key in measured}
    notes = {"lower": "lower is less bias", "higher": "higher is better", "neither": ""}
    return rows + [
        Row(title, notes[BY_KEY[key].better], _beside_random(BY_KEY[key]), brief)
        for key, (title, brief) in titles.items()
    ]


def summarise(model: ModelResult) -> str:
    """A few lines about the last stage, the headline first, each number with its interval beside random weights."""
    stage = model.last
    lines = [f"{model.name}, last stage {stage.name}"]
    if stage.verdict != "ok":
        return f"{lines[0]}\n  {EMPTY_STAGES[stage.verdict]}"
    for row in find_rows([model]):
        found = row.find(model)
        if row.brief:
            said = "; ".join(part for part in (found.verdict, found.text, found.beside) if part)
            lines.append(f"  {row.title}{'' if row.title.endswith('?') else ':'} {said}")
    return "\n".join(lines)


def _lost(version: str, question: Question) -> Callable[[ModelResult], Finding]:
    """Whether object k-NN differs from that of the same objects as they are."""
    metric = BY_KEY["knn_clean_class_mean"]

    def find(model: ModelResult) -> Finding:
        numbers = model.last.numbers
        change = numbers.get(f"knn_lost_{version}")
        if change is None or change.value is None:
            return Finding(write_estimate(change, metric))
        clean, changed = numbers[metric.key], numbers[f"knn_{version}_class_mean"]
        text = f"{write(clean.value, metric)} as it is, {write(changed.value, metric)} {question.word}"
        beside = f"difference {write_estimate(change, metric, signed=True).replace(PERCENT, '')} points"
        if change.low is None or change.high is None:
            return Finding(text, beside)
        if not change.low <= 0 <= change.high:
            return Finding(text, beside, *(question.lost if change.value > 0 else question.gained))
        if is_guessing(model.last):
            return Finding(text, "no better than guessing: more --images may help", "cannot be told")
        return Finding(text, beside, UNCLEAR)

    return find


def _place(model: ModelResult) -> Finding:
    """Whether place is read from blank pages better than from their colours and edges."""
    metric = BY_KEY["position_blank"]
    value, plain, control = (
        last_number(stages, metric.key) for stages in (model.stages, model.statistics, model.random)
    )
    if value is None or plain is None:
        return Finding(write_estimate(model.last.numbers.get(metric.key), metric))
    text = f"R² {write_estimate(value, metric)}"
    beside = f"colours and edges {write_estimate(plain, metric)}"
    beside += f", random {write_estimate(control, metric)}" if control else ""
    if overlap(value, plain) or value.low is None:
        return Finding(text, beside, "not found")
    return Finding(text, beside, *(("it leaks", "bad") if (value.value or 0) > (plain.value or 0) else ("no", "good")))


def _beside_random(metric: Metric) -> Callable[[ModelResult], Finding]:
    def find(model: ModelResult) -> Finding:
        value, control = model.last.numbers.get(metric.key), last_number(model.random, metric.key)
        text = write_estimate(value, metric)
        if value is None or value.value is None or control is None:
            return Finding(text)
        return Finding(text, f"random {write_estimate(control, metric)}", *compare(value, control, metric.better))

    return find


def compare(value: Estimate, control: Estimate, better: str) -> tuple[str, str]:
    """A verdict on a number beside that of random weights, and its tone; empty where no interval allows one."""
    if value.value is None or control.value is None or None in (value.low, value.high, control.low, control.high):
        return "", "plain"
    if overlap(value, control):
        return "like random", "plain"
    higher = value.value > control.value
    if better == "neither":
        return f"{'higher' if higher else 'lower'} than random", "plain"
    return ("better than random", "good") if higher == (better == "higher") else ("worse than random", "bad")


def is_guessing(stage: StageResult) -> bool:
    """Whether object k-NN cannot be told from knowing nothing."""
    clean, prior = (stage.numbers.get(f"knn_{name}_class_mean") for name in ("clean", "prior"))
    if clean is None or prior is None or clean.low is None or prior.value is None:
        return False
    return clean.low <= prior.value


def last_number(stages: Sequence[StageResult] | None, key: str) -> Estimate | None:
    """The number of the last stage, if there is one."""
    value = stages[-1].numbers.get(key) if stages else None
    return None if value is None or value.value is None else value


def write(value: float | None, metric: Metric) -> str:
    """A number as people read it."""
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    if metric.key.startswith("position_") and metric.key != "position_share":
        return f"{value:.2f}"
    return f"{format_number(round(100 * value))}{PERCENT}" if metric.percent else format_number(value)


def write_estimate(value: Estimate | None, metric: Metric, *, signed: bool = False) -> str:
    """An estimate with its interval, or why there is none; `signed` where it is a difference."""
    if value is None or value.value is None:
        return (value and value.reason) or "not measured"
    text = write(value.value, metric)
    if value.low is None or value.high is None:
        return text
    low, high = value.low, value.high
    if not signed:  # Student's t does not know where a number ends
        low, high = max(low, min(0.0, value.value)), min(high, 1.0) if metric.percent else high
    return f"{text} ({write(low, metric).removesuffix(PERCENT)} to {write(high, metric)})"
