"""The page of a diagnosis: verdicts first, then pictures, then numbers by stage, and everything else on a click."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from ...drawing.page import (
    NO_NUMBER,
    Control,
    Points,
    charts,
    code_block,
    details,
    facts,
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
from ..statistics.estimates import difference
from .figures import draw_blank_pages, draw_directions, draw_influence, draw_swaps
from .patches import SCRIPT, show_patches
from .verdicts import EMPTY_STAGES, Row, find_rows, write_estimate

_THEMES = {
    "Place": ("position", "retrieval", "border", "subspace"),
    "Surroundings": ("context", "neighbour", "influence"),
    "Objects": ("object_knn", "same_object"),
    "Long tokens": ("norms",),
    "A remedy": ("debias",),
}
"""Measures by the heading of the page that they stand under."""

_FOLDED = ("position_natural", "position_noise", "subspace_size", "knn_clean", "knn_recontextualised",
           "knn_repositioned", "knn_alone", "norm_ratio")  # fmt: skip
"""Numbers whose charts open on a click."""

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


_KEYS = Markup(
    '<div class="keys"><span><i class="key dashed"></i>the same architecture with random weights</span>'
    '<span><i class="key dotted"></i>colours and edges</span><span>grey: what chance gives</span></div>'
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
    lead = Markup('<p class="status">{}</p>\n').format(status) + _verdicts(diagnosis)
    sections = [("Pictures", _pictures(diagnosis))]
    for theme, names in _THEMES.items():
        if chosen := [name for name in names if name in diagnosis.measures and name not in diagnosis.skipped]:
            sections.append((theme, _theme(diagnosis, chosen, figures, layers)))
    sections += [("Every number", _every_number(diagnosis)), ("How it was measured", _provenance(diagnosis))]
    footer = Markup(
        "Written by <code>decodepos-diagnose</code>. Everything shown is in this file; report.json has the same "
        "numbers for programs."
    )
    title = f"Diagnosis: {', '.join(model.name for model in diagnosis.models)}"
    return page(title, sections, lead=lead, footer=footer, contents=True, script=SCRIPT)


# ----------------------------------------------------------------------------------------------------------- sections


def _verdicts(diagnosis: Diagnosis) -> Markup:
    """What was found, with a column for each model, and what is missing."""
    models = diagnosis.models
    stages = list(dict.fromkeys(model.last.name for model in models))
    rows: list[list[Any]] = []
    for row in find_rows(models):
        note = " · ".join(part for part in (row.note, f"after {', '.join(stages)}") if part)
        title = Markup('<strong>{}</strong><br><span class="note">{}</span>').format(row.title, note)
        rows.append([title, *(_cell(row, model) for model in models)])
    columns = table(["What was found", *map(_column_head, models)], rows)
    shown = Markup('<div class="verdicts" style="--models:{}">{}</div>').format(len(models), columns)
    notes = Markup('<p class="note">{}</p>').format(" ".join(_gaps(diagnosis)))
    return _empty_stages(models) + _mixed_kinds(models) + shown + notes


def _column_head(model: ModelResult) -> Markup:
    height, width = model.features.queries[-1].norms.shape[1:]
    kind = "embeddings of regions" if _is_of_regions(model) else f"a map of {height} x {width} cells"
    head = Markup('{}<br><span class="note">{}: {}</span>').format(model.name, model.last.name, kind)
    if model.last.verdict != "ok":
        head += Markup('<br><span class="verdict bad">{}</span>').format(model.last.verdict)
    return head


def _cell(row: Row, model: ModelResult) -> Markup:
    found = row.find(model)
    verdict = Markup('<span class="verdict {}">{}</span>').format(found.tone, found.verdict)
    if not found.verdict or model.last.verdict != "ok":  # features that say nothing are neither good nor bad
        verdict = Markup()
    return Markup('{}<b>{}</b><br><span class="note">{}</span>').format(verdict, found.text, found.beside)


def _is_of_regions(model: ModelResult) -> bool:
    return model.model.region_net is not None


def _mixed_kinds(models: Sequence[ModelResult]) -> Markup:
    """What must be known before columns are compared."""
    regions = [model.name for model in models if _is_of_regions(model)]
    if len(regions) in (0, len(models)):
        return Markup()
    return message(
        f"The last stage of {', '.join(regions)} gives embeddings of regions, that of the others a map. These are not "
        "the same kind of thing: compare each with its own random weights, not with one another."
    )


def _empty_stages(models: Sequence[ModelResult]) -> Markup:
    """A warning of every model whose features say nothing."""
    return Markup().join(
        message(f"{model.name}: {EMPTY_STAGES[model.last.verdict]}", "bad")
        for model in models
        if model.last.verdict != "ok"
    )


def _gaps(diagnosis: Diagnosis) -> list[str]:
    """What is missing, and what else a reader must know."""
    models, notes = diagnosis.models, []
    skipped: dict[str, list[str]] = {}
    for name, reason in diagnosis.skipped.items():
        if name in diagnosis.measures:
            skipped.setdefault(reason, []).append(_title(name))
    notes += [f"Not measured: {', '.join(names)}, because {reason}." for reason, names in skipped.items()]
    notes += diagnosis.settings["notes"]
    notes += [f"{model.name}: {model.model.note}." for model in models if model.model.note]
    if without := [model.name for model in models if model.random is None]:
        notes.append(
            f"No random weights beside {', '.join(without)}: how to draw them anew is not known for a function."
        )
    return notes


def _pictures(diagnosis: Diagnosis) -> Markup:
    text = (
        "Left: how like the patch under the dot each cell of the last map is, from dark (not at all) to pale yellow "
        "(the same); click another place. Right: the three strongest directions of the map as red, green and blue. "
        "Bands along the border are place; what is like everything around it has its feature from there."
    )
    return Markup("<p>{}</p>").format(text) + show_patches(diagnosis)


def _title(measure: str) -> str:
    return MEASURES[measure].partition(": ")[0]


def _theme(diagnosis: Diagnosis, names: Sequence[str], figures: Mapping[str, Markup], layers: Sequence[str]) -> Markup:
    """The charts of some measures, and on a click how to read them and what else there is."""
    if names == ["debias"]:
        return _debias(diagnosis, layers) + _more(figures.get("debias"))
    metrics = [metric for metric in METRICS if metric.measure in names]
    drawn, folded = (
        [chart for metric in metrics if (metric.key in _FOLDED) == hidden for chart in _charts(diagnosis, metric)]
        for hidden in (False, True)
    )
    folded += [chart for name in names for chart in _curves(diagnosis, name)]
    parts = [_KEYS, charts(drawn)] if drawn else []
    questions = {_title(name): MEASURES[name].partition(": ")[2] for name in names}
    readings = facts(questions) + facts({metric.title: metric.reading for metric in metrics})
    parts.append(details("How to read these", readings))
    pictures = [figures[name] for name in names if name in figures]
    if "border" in names:
        pictures.append(_paddings(diagnosis))
    return Markup("\n").join([*parts, _more(*([charts(folded)] if folded else []), *pictures)])


def _more(*parts: Markup | None) -> Markup:
    """What opens on a click, if there is anything."""
    shown = [part for part in parts if part]
    return details("More charts and pictures", Markup("\n").join(shown)) if shown else Markup()


def _by_kind(models: Sequence[ModelResult]) -> list[list[ModelResult]]:
    """Models whose last stages can stand in one chart."""
    kinds = [[model for model in models if _is_of_regions(model) == of_regions] for of_regions in (True, False)]
    return [kind for kind in kinds if kind]


def _named(models: Sequence[ModelResult]) -> list[tuple[str, ModelResult]]:
    """Every model under a name of its own."""
    names = [model.name for model in models]
    return [
        (model.name if names.count(model.name) == 1 else f"{model.name} ({number})", model)
        for number, model in enumerate(models, start=1)
    ]


def _charts(diagnosis: Diagnosis, metric: Metric) -> list[Markup]:
    """A number by stage, of models and their controls; a chart for each kind of last stage."""

    def by_stage(stages: Sequence[StageResult] | None) -> Points:
        values = [stage.numbers.get(metric.key) for stage in stages or ()]
        return range(1, len(values) + 1), [None if value is None else value.value for value in values]

    found = []
    for models in map(_named, _by_kind(diagnosis.models)):
        series = {name: by_stage(model.stages) for name, model in models}
        controls: list[Control] = [
            (name, label, style, by_stage(stages))
            for name, model in models
            for label, style, stages in (
                ("random weights", "dashed", model.random),
                ("colours and edges", "dotted", model.statistics),
            )
        ]
        values = [y for _, ys in (*series.values(), *(points for *_, points in controls)) for y in ys if y is not None]
        greatest = max([*values, metric.chance or 0.0])
        high = 1.0 if metric.percent and greatest > 0.35 else 1.05 * greatest or None
        how: dict[str, Any] = {"references": {"chance": metric.chance} if metric.chance else {}}
        how |= {"y_range": (0.0, high), "controls": controls, "x_label": "stage"}
        if any(y is not None for _, ys in series.values() for y in ys):
            found.append(line_chart(series, title=metric.title, **how))
    return found or [message(f"{metric.title}: not measured. {_reasons(diagnosis, metric)}")]


def _reasons(diagnosis: Diagnosis, metric: Metric) -> str:
    values = [model.last.numbers.get(metric.key) for model in diagnosis.models]
    return "; ".join(sorted({value.reason for value in values if value is not None}))


def _curves(diagnosis: Diagnosis, measure: str) -> list[Markup]:
    """Other curves of the last stage."""
    found = []
    for title, y_label, x_label, y_range, points in _CURVES.get(measure, ()):
        for models in map(_named, _by_kind(diagnosis.models)):
            series = {name: points(model.last) for name, model in models}
            if any(len(xs) > 1 and any(y is not None for y in ys) for xs, ys in series.values()):
                found.append(line_chart(series, title=title, y_label=y_label, x_label=x_label, y_range=y_range))
    return found


def _paddings(diagnosis: Diagnosis) -> Markup:
    """What other paddings do to each model."""
    parts, keys = [], ("position_blank", "border_contrast")
    for model in diagnosis.models:
        if not (found := model.last.padding):
            parts.append(message(f"{model.name}: no padded convolutions, so there is no padding to exchange."))
            continue
        rows = [
            (mode, *(write_estimate(found.get(mode, {}).get(key), BY_KEY[key]) for key in keys))
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
            parts.append(message(f"{model.name}: no layer can be fitted. {EMPTY_STAGES.get(model.last.verdict, '')}"))
            continue
        stage = model.stages[debias.stage].name
        head = f"{describe_debias(debias)}, after {stage}; fitted on {debias.objects} objects"
        changes = _changes(debias)
        judged = {word: [row[0] for row in changes if row[4] == word] for word in ("gain", "cost")}
        said = " ".join(f"{word.capitalize()}: {', '.join(names) or 'none'}." for word, names in judged.items())
        parts.append(Markup("<p><strong>{}</strong>: {}. {}</p>").format(model.name, head, said))
        shown = table(["", "before", "after", "gain", "", *debias.controls], changes)
        parts.append(details("Every number before and after, and behind the controls", shown))
        if file in layers:
            code = (
                "from modeling_decodepos.diagnosis import load_debias\n"
                f'layer = load_debias("{file}")\n'
                f"features = layer(feature_map)  # (B, {model.last.channels}, h, w) of {stage}"
            )
            parts.append(details("Use this layer", code_block(code)))
    return Markup("\n").join(parts)


def _changes(debias: Debias) -> list[tuple[str, ...]]:
    """Numbers before and after, each with the word gain, cost or no clear change."""
    rows: list[tuple[str, ...]] = []
    for key, (before, after) in debias.changes.items():
        gain = difference(after, before)
        if gain.value is None:
            continue
        metric = BY_KEY[key]
        # Less position is what this is for, on pictures too.
        better = (gain.value < 0) == (metric.better in ("lower", "neither"))
        judgement = "gain" if better else "cost"
        if gain.low is None or gain.high is None:
            judgement = ""
        elif gain.low <= 0 <= gain.high:
            judgement = "no clear change"
        others = [write_estimate(values[key], metric) for values in debias.controls.values()]
        rows.append(
            (metric.title, *(write_estimate(value, metric) for value in (before, after, gain)), judgement, *others)
        )
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
                    cells = [write_estimate(value, metric) if value else NO_NUMBER for value in values]
                    rows.append([metric.title, stage.name, *cells])
        shown = table(["", "stage", "model", "random weights", "image statistics"], rows)
        parts.append(details(f"{model.name}: all stages and both controls", shown))
    return Markup("\n").join(parts)


def _provenance(diagnosis: Diagnosis) -> Markup:
    """Settings, time and protocols."""
    known: dict[str, Any] = {k.replace("_", " "): v for k, v in diagnosis.settings.items() if k != "notes"}
    known["reading"] = ", ".join(diagnosis.settings["reading"])
    known |= {f"seconds for {model.name}": f"{model.seconds:.0f}" for model in diagnosis.models}
    protocols = {metric.title: metric.protocol for metric in METRICS if metric.measure in diagnosis.measures}
    protocols |= {key.replace("_", " "): protocol for key, protocol in EXTRA_PROTOCOLS.items()}
    text = Markup(
        "<p>Intervals come from a bootstrap over pictures{}; for random weights they are where one more such network "
        "is expected. Heat maps are PNG files beside this page; curves are part of the page itself.</p>"
    ).format(" and repetitions" if diagnosis.settings["seeds"] > 1 else "")
    return text + details("Settings", facts(known)) + details("Protocols", facts(protocols))
