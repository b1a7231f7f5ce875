"""The page of a diagnosis: every number with its controls and a sentence that says what it means."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from ...page import (
    NO_NUMBER,
    PERCENT,
    Bar,
    Points,
    bars,
    charts,
    code_block,
    details,
    facts,
    format_number,
    line_chart,
    message,
    page,
    picture,
    table,
)
from ..measures.evaluate import StageResult
from ..measures.metrics import BY_KEY, EXTRA_PROTOCOLS, MEASURES, METRICS, Metric
from ..measures.padding import PADDING_MODES
from ..results import Debias, Diagnosis, ModelResult, describe_debias
from ..statistics.estimates import Estimate, difference, overlap
from .figures import draw_blank_pages, draw_directions, draw_influence, draw_swaps

VERDICTS = {
    "collapsed": "Collapsed: its features are all alike (or lie on one line), whatever is shown. It is not unbiased, "
    "it is empty; the numbers below say nothing about it.",
    "content-blind": "Content-blind: its features are the same whatever is shown, and differ between places only. "
    "Everything they tell is position.",
}

_SENTENCES = {
    "position_blank": "On a blank page, a linear read-out finds a patch's place with R² {}",
    "position_regions": "A region's feature tells its place with R² {}",
    "context_leak": "A region's feature follows its surroundings by {}, its content by the rest",
    "content_wins": "An object looks more like itself elsewhere than like another object in its place in {} of "
    "comparisons",
    "knn_clean": "Its nearest neighbours tell its class in {}",
    "same_alone": "Cut out of its picture, an object is nearest to itself as it was in {}",
}
_GUESSING = (
    "Object k-NN is no better than naming the most frequent class here, so its other versions say nothing: more "
    "--images may help."
)

# By measure: name of the file, title, caption, and what draws it.
_FIGURES: dict[str, tuple[str, str, str, Callable[[Diagnosis], Image.Image | None]]] = {
    "position": (
        "blank_pages", "What a blank page looks like to the network",
        "Every page is of one colour, so every place looks the same. Bright cells are those that the network "
        "describes differently all the same. The percentage is the mean deviation, relative to the feature's length; "
        "colours run from none to the most of each tile.",
        lambda found: draw_blank_pages(found.models),
    ),
    "context": (
        "swaps", "The exchanges",
        "One region, and one thing about it exchanged: what is around it, what is in it, or where it is. The first "
        "pictures of the data, not selected.",
        lambda found: draw_swaps(found.models, found.data),
    ),
    "influence": (
        "influence", "Where the gradient falls",
        "How strongly the region's feature at the last stage responds to each pixel. Colours show the root of the "
        "energy, each tile on its own scale.",
        lambda found: draw_influence(found.models, found.data),
    ),
    "debias": (
        "directions", "Features in false colours, before and after",
        "The three strongest directions of all cells as red, green and blue. The first column is the mean of all "
        "pictures: what remains there is place, for pictures have nothing else in common.",
        lambda found: draw_directions(found.models, found.data),
    ),
}  # fmt: skip

# By measure: title, y axis, x axis, range of y, and the points of a stage.
_CURVES: dict[str, tuple[tuple[str, str, str, tuple[float, float | None], Callable[[StageResult], Points]], ...]] = {
    "border": (
        (
            "Drift by distance to the border", "last stage", "cells from the border", (0.0, None),
            lambda stage: (range(len(stage.border)), [ring.value for ring in stage.border]),
        ),
    ),
    "subspace": (
        (
            "Share of place in the first k directions", "last stage", "directions", (0.0, 1.0),
            lambda stage: (range(1, len(stage.energy[:24]) + 1), stage.energy[:24]),
        ),
        (
            "Position R² after removing k", "on the gallery", "directions removed", (0.0, None),
            lambda stage: ([point.count for point in stage.removal], [point.position for point in stage.removal]),
        ),
        (
            "Object k-NN after removing k", "on the gallery", "directions removed", (0.0, None),
            lambda stage: ([point.count for point in stage.removal], [point.accuracy for point in stage.removal]),
        ),
    ),
}  # fmt: skip

_GLANCE = ("position_natural", "position_blank", "position_regions", "content_wins", "context_leak",
           "neighbour_advantage", "influence_outside", "knn_clean", "knn_recontextualised",
           "knn_repositioned", "knn_alone", "same_recontextualised", "same_repositioned", "same_alone")  # fmt: skip

_KEYS = Markup(
    '<div class="keys"><span><i class="control"></i>same architecture, random weights</span>'
    '<span><i class="control square"></i>image statistics</span><span>dashed: what chance gives; '
    "whisker: 95 % interval over pictures</span></div>"
)


def save_report(diagnosis: Diagnosis, output: Path | str) -> Path:
    """Write report.html, report.json, figures/*.png and the debias layers to a folder; the page's path."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    layers = diagnosis.save_layers(output)
    figures: dict[str, Markup] = {}
    for measure, (name, title, caption, draw) in _FIGURES.items():
        drawn = draw(diagnosis) if measure in diagnosis.measures else None
        if drawn is not None:
            (output / "figures").mkdir(exist_ok=True)
            drawn.save(output / "figures" / f"{name}.png")
            text = Markup("<p><strong>{}.</strong> {}</p>").format(title, caption)
            figures[measure] = picture(drawn, title, text, quality=86)
    numbers = json.dumps(diagnosis.to_dict(), indent=1, allow_nan=False)
    (output / "report.json").write_text(numbers + "\n", encoding="utf-8")
    html = output / "report.html"
    html.write_text(build_page(diagnosis, figures, layers), encoding="utf-8")
    return html


def build_page(diagnosis: Diagnosis, figures: Mapping[str, Markup], layers: Sequence[str] = ()) -> str:
    """The whole page, with a picture for those measures that have one, and the names of files of debias layers."""
    about = diagnosis.settings
    status = f"{about['data']} · {about['images']} query pictures, {about['gallery_images']} gallery pictures · "
    status += f"{about['picture_size_px']} px · seed {about['seed']}"
    status += f", {about['seeds']} repetitions" if about["seeds"] > 1 else ""
    lead = Markup(
        '<p class="status">{}</p>\n<p>How much of a feature is <em>what</em> is there, and how much is <em>where</em> '
        "it is and what is <em>around</em> it. No number stands alone: each has the same architecture with random "
        "weights, and plain colour and edge statistics, beside it.</p>\n"
    ).format(status)
    for model in diagnosis.models:
        text = Markup("<strong>{}.</strong> {}").format(model.name, summarise(model))
        lead += message(text, "plain" if model.last.verdict == "ok" else "bad")
    sections = [("At a glance", _glance(diagnosis))]
    for measure in (name for name in MEASURES if name in diagnosis.measures):
        sections.append((_title(measure), _section(diagnosis, measure, figures.get(measure, Markup()), layers)))
    sections += [("Every number", _every_number(diagnosis)), ("How it was measured", _provenance(diagnosis))]
    footer = Markup(
        "Written by <code>decodepos-diagnose</code>. Everything shown is in this file; report.json has the same "
        "numbers for programs."
    )
    title = f"Diagnosis: {', '.join(model.name for model in diagnosis.models)}"
    return page(title, sections, lead=lead, footer=footer)


# -------------------------------------------------------------------------------------------------------------- words


def summarise(model: ModelResult) -> str:
    """The last stage in a few plain sentences, each number beside that of random weights."""
    stage = model.last
    if stage.verdict != "ok":
        return VERDICTS[stage.verdict]
    found = []
    for key, template in _SENTENCES.items():
        value, control = _last(model.stages, key), _last(model.random, key)
        if key == "knn_clean" and is_guessing(stage):
            found.append(_GUESSING)
        elif value is not None:
            text = template.format(_write_whole(value, BY_KEY[key]))
            if control is not None:
                unclear = ", no clear difference" if overlap(value, control) else ""
                text += f"; random weights: {_write_whole(control, BY_KEY[key])}{unclear}"
            found.append(text + ".")
    versions = {"knn_recontextualised": "in other surroundings", "knn_repositioned": "in another place",
                "knn_alone": "alone"}  # fmt: skip
    values = {text: (value, BY_KEY[key]) for key, text in versions.items() if (value := _last(model.stages, key))}
    if values and not is_guessing(stage):
        others = (f"{text} {_write_whole(*value)}" for text, value in values.items())
        found.append(f"Of the same objects their neighbours tell the class {', '.join(others)}.")
    return " ".join(found) or "Nothing was measured at its last stage."


def is_guessing(stage: StageResult) -> bool:
    """Whether object k-NN cannot be told from knowing nothing."""
    clean, prior = stage.numbers.get("knn_clean"), stage.numbers.get("knn_prior")
    if clean is None or prior is None or clean.low is None or prior.value is None:
        return False
    return clean.low <= prior.value


def write(value: float | None, metric: Metric) -> str:
    """A number as people read it."""
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    if metric.key.startswith("position_") and metric.key != "position_share":
        return f"{value:.2f}"
    return f"{format_number(round(100 * value))}{PERCENT}" if metric.percent else format_number(value)


def _write_whole(value: Estimate | None, metric: Metric) -> str:
    """An estimate with its interval, or why there is none."""
    if value is None or value.value is None:
        return (value and value.reason) or "not measured"
    text = write(value.value, metric)
    if ends := _interval(value):
        # Student's t does not know where a number ends.
        low, high = max(ends[0], min(0.0, value.value)), min(ends[1], 1.0) if metric.percent else ends[1]
        text += f" ({write(low, metric).removesuffix(PERCENT)} to {write(high, metric)})"
    return text


def _interval(value: Estimate | None) -> tuple[float, float] | None:
    return None if value is None or value.low is None or value.high is None else (value.low, value.high)


def _title(measure: str) -> str:
    return MEASURES[measure].partition(": ")[0]


def _last(stages: Sequence[StageResult] | None, key: str) -> Estimate | None:
    """The number of the last stage, if there is one."""
    value = stages[-1].numbers.get(key) if stages else None
    return None if value is None or value.value is None else value


# ----------------------------------------------------------------------------------------------------------- sections


def _glance(diagnosis: Diagnosis) -> Markup:
    """The last stages of all models side by side, and what is missing."""
    rows = []
    for metric in (BY_KEY[key] for key in _GLANCE if BY_KEY[key].measure in diagnosis.measures):
        better = {"lower": "lower is less bias", "higher": "higher is better", "neither": ""}[metric.better]
        row = [Markup('{} <span class="note">{}</span>').format(metric.title, better)]
        for model in diagnosis.models:
            value, control = model.last.numbers.get(metric.key), _last(model.random, metric.key)
            text = "not measured" if value is None else write(value.value, metric)
            beside = f"random\N{NO-BREAK SPACE}{write(control.value, metric)}" if control else ""
            row.append(Markup('<b>{}</b> <span class="note">{}</span>').format(text, beside))
        rows.append(row)
    skipped = {name: reason for name, reason in diagnosis.skipped.items() if name in diagnosis.measures}
    notes = [f"{_title(name)} is left out: {reason}." for name, reason in skipped.items()]
    notes += diagnosis.settings["notes"]
    notes += [f"{model.name}: {model.model.note}." for model in diagnosis.models if model.model.note]
    if without := [model.name for model in diagnosis.models if model.random is None]:
        notes.append(
            f"No random weights beside {', '.join(without)}: how to draw them anew is not known for a function."
        )
    shown = table(["last stage of", *(model.name for model in diagnosis.models)], rows) if rows else Markup()
    return shown + Markup().join(map(message, notes))


def _section(diagnosis: Diagnosis, measure: str, figure: Markup, layers: Sequence[str]) -> Markup:
    question = MEASURES[measure].partition(": ")[2]
    head = Markup("<p>{}</p>").format(question[:1].upper() + question[1:])
    if measure in diagnosis.skipped:
        return head + message(f"Not measured: {diagnosis.skipped[measure]}.")
    if measure == "debias":
        return head + _debias(diagnosis, layers) + figure
    metrics = [metric for metric in METRICS if metric.measure == measure]
    drawn = [chart for metric in metrics for chart in _stage_charts(diagnosis.models, metric)]
    for title, y_label, x_label, y_range, points in _CURVES.get(measure, ()):
        series = _series(diagnosis.models, [points(model.last) for model in diagnosis.models])
        if series:
            drawn.append(line_chart(series, title=title, y_label=y_label, x_label=x_label, y_range=y_range))
    parts = [head, _KEYS, *(_bars(diagnosis, metric) for metric in metrics), figure]
    parts += [charts(drawn)] if drawn else []
    parts += [_paddings(diagnosis)] if measure == "border" else []
    return Markup("\n").join(parts)


def _bars(diagnosis: Diagnosis, metric: Metric) -> Markup:
    """One bar per model, its last stage, with both controls as marks on it."""
    items: list[Bar] = []
    values: list[float] = []
    for number, model in enumerate(diagnosis.models):
        arms = {"value": model.stages, "control": model.random, "control square": model.statistics}
        known = {kind: found.value for kind, stages in arms.items() if (found := _last(stages, metric.key))}
        drawn = {kind: value for kind, value in known.items() if value is not None}
        values += drawn.values()
        value = drawn.pop("value", None)
        marks = [("mark", metric.chance), *drawn.items()] if metric.chance else list(drawn.items())
        estimate = model.last.numbers.get(metric.key)
        whisker = None if value is None else _interval(estimate)
        items.append(Bar(model.name, value, _write_whole(estimate, metric), whisker, marks, number % 6))
    if not values:
        reasons = {found.reason for model in diagnosis.models if (found := model.last.numbers.get(metric.key))}
        return message(f"{metric.title}: not measured. {'; '.join(sorted(reasons))}")
    high = 1.0 if metric.percent and max(values) > 0.35 else max(*values, 1e-9) * 1.15
    # Or noise around nothing fills the bar.
    high = max(high, 0.2 if metric.percent else 0.0, (metric.chance or 0.0) * 1.15)
    head = Markup("<p><strong>{}</strong>, last stage. {}</p>").format(metric.title, metric.reading)
    return head + bars(items, high)


def _series(models: Sequence[ModelResult], points: Sequence[Points]) -> dict[str, Points]:
    """A series per model that has points, each under a name of its own; none if no line could be drawn."""
    found: dict[str, Points] = {}
    for number, (model, (xs, ys)) in enumerate(zip(models, points, strict=True), start=1):
        if any(y is not None for y in ys):
            found[model.name if model.name not in found else f"{model.name} ({number})"] = (xs, ys)
    return found if any(len(xs) > 1 for xs, _ in found.values()) else {}


def _stage_charts(models: Sequence[ModelResult], metric: Metric) -> list[Markup]:
    """The number by stage: of the models, and of the same architectures with random weights, on one scale."""

    def by_stage(stages: Sequence[StageResult] | None) -> Points:
        values = [stage.numbers.get(metric.key) for stage in stages or ()]
        return range(1, len(values) + 1), [None if value is None else value.value for value in values]

    arms = {
        "by stage": _series(models, [by_stage(model.stages) for model in models]),
        "by stage, random weights": _series(models, [by_stage(model.random) for model in models]),
    }
    greatest = max(
        (y for series in arms.values() for _, ys in series.values() for y in ys if y is not None), default=0.0
    )
    high = 1.0 if metric.percent and greatest > 0.35 else 1.05 * max(greatest, metric.chance or 0.0) or None
    how: dict[str, Any] = {"references": {"chance": metric.chance} if metric.chance else {}, "y_range": (0.0, high)}
    return [
        line_chart(series, title=metric.title, y_label=label, x_label="stage", **how)
        for label, series in arms.items()
        if series
    ]


def _paddings(diagnosis: Diagnosis) -> Markup:
    """What other paddings do to each model."""
    parts, keys = [], ("position_blank", "border_contrast")
    for model in diagnosis.models:
        if not (found := model.last.padding):
            parts.append(message(f"{model.name}: no padded convolutions, so there is no padding to exchange."))
            continue
        rows = [
            (mode, *(_write_whole(found.get(mode, {}).get(key), BY_KEY[key]) for key in keys))
            for mode in PADDING_MODES
        ]
        text = Markup("<p><strong>{}</strong> with other paddings, the weights unchanged.</p>").format(model.name)
        parts.append(text + table(["padding", "position on blank pages, R²", "drift at the border"], rows))
    note = Markup(
        '<p class="note">Circular padding has no border: a CNN that knows its place on a blank page with zeros around '
        "it, and not with circular padding, has its coordinates from the zeros. Weights that were trained with one "
        "padding may do badly with another; this is a test of where place comes from, not a remedy.</p>"
    )
    return Markup("\n").join([*parts, note])


def _debias(diagnosis: Diagnosis, layers: Sequence[str]) -> Markup:
    """What the layer against place and surroundings changes, model by model, and how to use it."""
    parts = [
        Markup(
            "<p>One linear layer behind the last stage. It subtracts the mean, removes positional directions, and "
            "shrinks what changes about an object when its surroundings or place are exchanged. Fitted and set on "
            "the gallery, without classes; the numbers below were measured on other pictures. <em>Before</em> is "
            "after subtracting the mean, as everywhere on this page. Beside it are two other layers: the positional "
            "directions removed and nothing else, and plain whitening.</p>"
        )
    ]
    for number, model in enumerate(diagnosis.models):
        debias, file = model.debias, f"debias_{number}.safetensors"
        if debias is None:
            parts.append(message(f"{model.name}: no layer can be fitted. {VERDICTS.get(model.last.verdict, '')}"))
            continue
        stage = model.stages[debias.stage].name
        head = f"{describe_debias(debias)}, after {stage}; fitted on {debias.objects} objects"
        parts.append(Markup("<p><strong>{}</strong>: {}.</p>").format(model.name, head))
        parts.append(table(["", "before", "after", "gain", "", *debias.controls], _changes(debias)))
        if file in layers:
            code = (
                "from modeling_decodepos.diagnosis import load_debias\n"
                f'layer = load_debias("{file}")\n'
                f"features = layer(feature_map)  # (B, {model.last.channels}, h, w) of {stage}"
            )
            parts.append(details("Use this layer", code_block(code)))
    return Markup("\n").join(parts)


def _changes(debias: Debias) -> list[tuple[str | Markup, ...]]:
    rows: list[tuple[str | Markup, ...]] = []
    for key, (before, after) in debias.changes.items():
        gain = difference(before, after)
        if gain.value is None:
            continue
        metric = BY_KEY[key]
        # Less position is what this is for, on pictures too.
        better = (gain.value < 0) == (metric.better in ("lower", "neither"))
        judgement: str | Markup = Markup("<strong>{}</strong>").format("gain" if better else "cost")
        if gain.low is None or gain.high is None:
            judgement = ""
        elif gain.low <= 0 <= gain.high:
            judgement = "no clear change"
        others = [_write_whole(values[key], metric) for values in debias.controls.values()]
        shown = (_write_whole(value, metric) for value in (before, after, gain))
        rows.append((metric.title, *shown, judgement, *others))
    return rows


def _every_number(diagnosis: Diagnosis) -> Markup:
    """All stages of each model beside both controls, to open on a click."""
    parts = []
    for model in diagnosis.models:
        rows = []
        for metric in METRICS:
            for number, stage in enumerate(model.stages):
                arms = (stage, *(stages[number] if stages else None for stages in (model.random, model.statistics)))
                values = [arm.numbers.get(metric.key) if arm else None for arm in arms]
                if any(values):
                    cells = [_write_whole(value, metric) if value else NO_NUMBER for value in values]
                    rows.append([metric.title, stage.name, *cells])
        shown = table(["", "stage", "model", "random weights", "image statistics"], rows)
        parts.append(details(f"{model.name}: all stages and both controls", shown))
    return Markup("\n").join(parts)


def _provenance(diagnosis: Diagnosis) -> Markup:
    """Settings, time and protocols."""
    known: dict[str, Any] = {k.replace("_", " "): v for k, v in diagnosis.settings.items() if k != "notes"}
    known |= {f"seconds for {model.name}": f"{model.seconds:.0f}" for model in diagnosis.models}
    protocols = {metric.title: metric.protocol for metric in METRICS if metric.measure in diagnosis.measures}
    protocols |= {key.replace("_", " "): protocol for key, protocol in EXTRA_PROTOCOLS.items()}
    text = Markup(
        "<p>Intervals come from a bootstrap over pictures{}; for random weights they are where one more such network "
        "is expected. Heat maps are PNG files beside this page; curves are part of the page itself.</p>"
    ).format(" and repetitions" if diagnosis.settings["seeds"] > 1 else "")
    return text + facts(known) + details("Protocols", facts(protocols))
