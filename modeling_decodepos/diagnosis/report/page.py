"""The page of a diagnosis: every number with its controls and a sentence that says what it means."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...page import (
    Html,
    charts,
    code_block,
    details,
    facts,
    format_number,
    join,
    line_chart,
    markup,
    message,
    page,
    picture,
    table,
)
from ..measures.evaluate import StageResult
from ..measures.metrics import BY_KEY, EXTRA_PROTOCOLS, MEASURES, METRICS, Metric
from ..measures.padding import PADDING_MODES
from ..results import Diagnosis, ModelResult
from ..statistics.estimates import Estimate
from .figures import draw_blank_pages, draw_directions, draw_influence, draw_swaps

VERDICTS = {
    "collapsed": "Collapsed: its features are all alike (or lie on one line), whatever is shown. It is not unbiased, "
    "it is empty; the numbers below say nothing about it.",
    "content-blind": "Content-blind: its features are the same whatever is shown, and differ between places only. "
    "Everything it says is position.",
}

_FIGURES: tuple[tuple[str, str, str, Callable[[Diagnosis], Image.Image | None], str], ...] = (
    (
        "blank_pages", "position", "What a blank page looks like to the network",
        lambda found: draw_blank_pages(found.models),
        "Every page is of one colour, so every place looks the same. Bright cells are those that the network "
        "describes differently all the same. The percentage is the mean deviation, relative to the feature's length; "
        "colours run from none to the most of each tile.",
    ),
    (
        "swaps", "context", "The exchanges",
        lambda found: draw_swaps(found.models, found.data),
        "One region, and one thing about it exchanged: what is around it, what is in it, or where it is. The first "
        "pictures of the data, never chosen ones.",
    ),
    (
        "influence", "influence", "Where the gradient falls",
        lambda found: draw_influence(found.models, found.data),
        "How strongly the region's feature at the last stage answers to each pixel. Colours show the root of the "
        "energy, each tile on its own scale.",
    ),
    (
        "directions", "debias", "Features in false colours, before and after",
        lambda found: draw_directions(found.models, found.data),
        "The three strongest directions of all cells as red, green and blue. The first column is the mean of all "
        "pictures: what is left there is place, for pictures have nothing else in common.",
    ),
)  # fmt: skip


def save_report(diagnosis: Diagnosis, output: Path | str) -> Path:
    """Write report.html, report.json, figures/*.png and the debias layers to a folder; the page's path."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    layers = diagnosis.save_layers(output)
    figures: dict[str, Html] = {}
    for name, measure, title, draw, caption in _FIGURES:
        if measure not in diagnosis.measures:
            continue
        drawn = draw(diagnosis)
        if drawn is not None:
            (output / "figures").mkdir(exist_ok=True)
            drawn.save(output / "figures" / f"{name}.png")
            caption_html = markup("<p><strong>{}.</strong> {}</p>", title, caption)
            figures[measure] = picture(_jpeg(drawn), title, caption_html)
    text = json.dumps(diagnosis.to_dict(), indent=1, allow_nan=False)
    (output / "report.json").write_text(text + "\n", encoding="utf-8")
    html = output / "report.html"
    html.write_text(build_page(diagnosis, figures, layers), encoding="utf-8")
    return html


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=86, optimize=True)
    return buffer.getvalue()


def build_page(diagnosis: Diagnosis, figures: dict[str, Html], layers: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        diagnosis: What was measured.
        figures: A picture per measure, for those that have one.
        layers: Files of the debias layers.
    """
    names = ", ".join(model.name for model in diagnosis.models)
    settings = diagnosis.settings
    status = (
        f"{settings['data']} · {settings['images']} pictures asked about, {settings['gallery_images']} to learn "
        f"from · {settings['picture_size_px']} px · seed {settings['seed']}"
        + (f", {settings['seeds']} repetitions" if settings["seeds"] > 1 else "")
    )
    lead = [
        markup('<p class="status">{}</p>', status),
        markup(
            "<p>How much of a feature is <em>what</em> is there, and how much is <em>where</em> it is and what is "
            "<em>around</em> it. No number stands alone: each has the same architecture with random weights, and "
            "plain colour and edge statistics, beside it.</p>"
        ),
    ]
    for model in diagnosis.models:
        bad = model.last.verdict != "ok"
        text = markup("<strong>{}.</strong> {}", model.name, summarise(model))
        lead.append(message(text, "bad" if bad else "plain"))
    sections: list[tuple[str, Any]] = [("At a glance", _glance(diagnosis))]
    for measure, heading in MEASURES.items():
        if measure in diagnosis.measures:
            title, _, question = heading.partition(": ")
            sections.append((title, _section(diagnosis, measure, question, figures.get(measure), layers)))
    sections += [
        ("Every number", _every_number(diagnosis)),
        ("How it was measured", _provenance(diagnosis)),
    ]
    footer = markup("Written by <code>decodepos-diagnose</code>. The page holds everything it shows; report.json has "
                    "the same numbers for programs.")  # fmt: skip
    return page(f"Diagnosis: {names}", sections, lead=join(lead), footer=footer)


# -------------------------------------------------------------------------------------------------------------- words


def summarise(model: ModelResult) -> str:
    """The last stage in a few plain sentences, each number beside that of random weights."""
    stage = model.last
    if stage.verdict != "ok":
        return VERDICTS[stage.verdict]
    control = model.random[-1] if model.random else None
    guessing = is_guessing(stage)
    found = [
        _say(stage, control, "position_blank", "On a blank page, a linear read-out finds a patch's place with R² {}"),
        _say(stage, control, "position_regions", "A region's feature tells its place with R² {}"),
        _say(
            stage,
            control,
            "context_leak",
            "A region's feature follows its surroundings by {}, its content by the rest",
        ),
        _say(
            stage,
            control,
            "content_wins",
            "An object looks more like itself elsewhere than like another object in its place in {} of comparisons",
        ),
        _GUESSING if guessing else _say(stage, control, "knn_clean", "Its nearest neighbours tell its class in {}"),
    ]
    changes = "" if guessing else _knn_change(stage)
    sentences = [sentence for sentence in [*found, changes] if sentence]
    return " ".join(sentences) or "Nothing was measured at its last stage."


def _say(stage: StageResult, control: StageResult | None, key: str, template: str) -> str:
    value = stage.numbers.get(key)
    if value is None or value.value is None:
        return ""
    text = template.format(write(value.value, BY_KEY[key]))
    other = control.numbers.get(key) if control else None
    if other is None or other.value is None:
        return text + "."
    return f"{text} (random weights: {write(other.value, BY_KEY[key])}{_differs(value, other)})."


def _differs(value: Estimate, other: Estimate) -> str:
    if None in (value.low, value.high, other.low, other.high):
        return ""
    assert value.low is not None and value.high is not None and other.low is not None and other.high is not None
    return "" if value.low > other.high or value.high < other.low else "; no clear difference"


_GUESSING = (
    "Object k-NN is no better than naming the most frequent class here, so its other versions say nothing: more "
    "--images may help."
)


def is_guessing(stage: StageResult) -> bool:
    """Whether object k-NN cannot be told from knowing nothing."""
    clean, prior = stage.numbers.get("knn_clean"), stage.numbers.get("knn_prior")
    if clean is None or prior is None or clean.low is None or prior.value is None:
        return False
    return clean.low <= prior.value


def _knn_change(stage: StageResult) -> str:
    clean, context, moved = (
        stage.numbers.get(f"knn_{name}") for name in ("clean", "recontextualised", "repositioned")
    )
    if not (clean and context and moved) or None in (clean.value, context.value, moved.value) or not clean.value:
        return ""
    assert context.value is not None and moved.value is not None
    return (
        f"In other surroundings that becomes {write(context.value, BY_KEY['knn_recontextualised'])}, in another place "
        f"{write(moved.value, BY_KEY['knn_repositioned'])}."
    )


_PERCENT = "\N{NO-BREAK SPACE}%"


def write(value: float | None, metric: Metric) -> str:
    """A number as people read it."""
    if value is None or not math.isfinite(value):
        return format_number(None)
    if metric.key.startswith("position_") and metric.key != "position_share":
        return f"{value:.2f}"
    return f"{format_number(round(100 * value))}{_PERCENT}" if metric.percent else format_number(value)


def _interval(value: Estimate, metric: Metric) -> str:
    if value.low is None or value.high is None:
        return ""
    return f" ({write(value.low, metric).removesuffix(_PERCENT)} to {write(value.high, metric)})"


# ----------------------------------------------------------------------------------------------------------- sections

_GLANCE = ("position_natural", "position_blank", "position_regions", "content_wins", "context_leak",
           "neighbour_advantage", "influence_outside", "knn_clean", "knn_recontextualised",
           "knn_repositioned")  # fmt: skip


def _glance(diagnosis: Diagnosis) -> Html:
    """The last stages of all models side by side."""
    header = ["last stage of", *(model.name for model in diagnosis.models)]
    rows = []
    for key in _GLANCE:
        metric = BY_KEY[key]
        if metric.measure not in diagnosis.measures:
            continue
        cells = []
        for model in diagnosis.models:
            value = model.last.numbers.get(key)
            control = model.random[-1].numbers.get(key) if model.random else None
            text = "not measured" if value is None else write(value.value, metric)
            beside = (
                ""
                if control is None or control.value is None
                else f"random\N{NO-BREAK SPACE}{write(control.value, metric)}"
            )
            cells.append(markup('<b>{}</b> <span class="note">{}</span>', text, beside))
        better = {"lower": "lower is less bias", "higher": "higher is better", "neither": ""}[metric.better]
        rows.append([markup('{} <span class="note">{}</span>', metric.title, better), *cells])
    parts = [table(header, rows)] if rows else []
    parts += [
        message(f"{MEASURES[name].partition(': ')[0]} is left out: {reason}.")
        for name, reason in diagnosis.skipped.items()
        if name in diagnosis.measures
    ]
    parts += [message(note) for note in diagnosis.settings["notes"]]
    parts += [message(f"{m.name}: {m.model.note}.") for m in diagnosis.models if m.model.note]
    without = [model.name for model in diagnosis.models if model.random is None]
    if without:
        parts.append(
            message(
                f"No random weights beside {', '.join(without)}: how to draw them anew is not known for a function."
            )
        )
    return join(parts)


def _section(diagnosis: Diagnosis, measure: str, question: str, figure: Html | None, layers: Sequence[str]) -> Html:
    parts: list[Html] = [markup("<p>{}</p>", question[:1].upper() + question[1:])]
    if measure in diagnosis.skipped:
        return join([*parts, message(f"Not measured: {diagnosis.skipped[measure]}.")])
    metrics = [metric for metric in METRICS if metric.measure == measure]
    parts += [_KEYS] if metrics else []
    for metric in metrics:
        parts.append(_bars(diagnosis, metric))
    if figure is not None and measure not in ("debias",):
        parts.append(figure)
    drawn = [chart for metric in metrics for chart in _stage_charts(diagnosis, metric)]
    if drawn:
        parts.append(charts(drawn))
    if measure == "border":
        parts += _border_parts(diagnosis)
    if measure == "subspace":
        parts += _subspace_parts(diagnosis)
    if measure == "debias":
        parts += _debias_parts(diagnosis, layers)
        parts += [figure] if figure is not None else []
    return join(parts)


_KEYS = Html(
    '<div class="keys"><span><i class="control"></i>same architecture, random weights</span>'
    '<span><i class="control square"></i>image statistics</span><span>dashed: what chance gives; '
    "whisker: 95 % interval over pictures</span></div>"
)


def _bars(diagnosis: Diagnosis, metric: Metric) -> Html:
    """One bar per model, its last stage, with both controls as marks on it."""
    values = [
        value.value
        for model in diagnosis.models
        for stages in (model.stages, model.random, model.statistics)
        if stages and (value := stages[-1].numbers.get(metric.key)) is not None and value.value is not None
    ]
    if not values:
        reasons = {
            value.reason for model in diagnosis.models if (value := model.last.numbers.get(metric.key)) is not None
        }
        return message(f"{metric.title}: not measured. {'; '.join(sorted(reasons))}")
    high = 1.0 if metric.percent and max(values) > 0.35 else max(*values, 1e-9) * 1.15
    if metric.percent:
        high = max(high, 0.2)  # or noise around nothing fills the bar
    if metric.chance is not None:
        high = max(high, metric.chance * 1.15)
    lines = [_bar(model, metric, number, high) for number, model in enumerate(diagnosis.models)]
    head = markup("<p><strong>{}</strong>, last stage. {}</p>", metric.title, metric.reading)
    return markup('{}<div class="bars wide">{}</div>', head, join(lines))


def _bar(model: ModelResult, metric: Metric, number: int, high: float) -> Html:
    def place(value: float) -> str:
        return f"{100 * min(max(value / high, 0.0), 1.0):.2f}%"

    value = model.last.numbers.get(metric.key)
    parts = []
    if value is None or value.value is None:
        text = f"not measured: {value.reason}" if value is not None and value.reason else "not measured"
    else:
        parts.append(
            markup('<i class="fill" style="width:{};background:var(--c{})"></i>', place(value.value), number % 6)
        )
        if value.low is not None and value.high is not None:
            width = f"calc({place(value.high)} - {place(value.low)})"
            parts.append(markup('<i class="whisker" style="left:{};width:{}"></i>', place(value.low), width))
        text = write(value.value, metric) + _interval(value, metric)
    if metric.chance is not None and metric.chance > 0:
        parts.append(markup('<i class="mark" style="left:{}"></i>', place(metric.chance)))
    for stages, kind in ((model.random, ""), (model.statistics, " square")):
        other = stages[-1].numbers.get(metric.key) if stages else None
        if other is not None and other.value is not None:
            parts.append(markup('<i class="control{}" style="left:{}"></i>', kind, place(other.value)))
    return markup(
        '<div class="bar"><span>{}</span><span class="groove">{}</span><b>{}</b></div>',
        model.name, join(parts, ""), text,
    )  # fmt: skip


def _stage_charts(diagnosis: Diagnosis, metric: Metric) -> list[Html]:
    """The number by stage: of the models, and of their random twins."""
    if all(len(model.stages) < 2 for model in diagnosis.models):
        return []
    found = []
    arms: tuple[tuple[str, Callable[[ModelResult], list[StageResult] | None]], ...] = (
        ("by stage", lambda model: model.stages),
        ("by stage, random weights", lambda model: model.random),
    )
    # One scale for both, so that they can be compared by eye.
    values = [
        value.value
        for model in diagnosis.models
        for stage in (*model.stages, *(model.random or []))
        if (value := stage.numbers.get(metric.key)) is not None and value.value is not None
    ]
    greatest = max(values, default=0.0)
    y_range = (0.0, 1.0 if metric.percent and greatest > 0.35 else 1.05 * max(greatest, metric.chance or 0.0) or None)
    for title, stages_of in arms:
        series = {}
        for number, model in enumerate(diagnosis.models):
            stages = stages_of(model)
            if stages:
                name = model.name if model.name not in series else f"{model.name} ({number + 1})"
                ys = [stage.numbers[metric.key].value if metric.key in stage.numbers else None for stage in stages]
                series[name] = (list(range(1, len(ys) + 1)), ys)
        if any(y is not None for _, ys in series.values() for y in ys):
            references = {"chance": metric.chance} if metric.chance else {}
            found.append(
                line_chart(
                    series, title=metric.title, y_label=title, x_label="stage", references=references,
                    y_range=y_range,
                )
            )  # fmt: skip
    return found


def _border_parts(diagnosis: Diagnosis) -> list[Html]:
    series = {}
    for number, model in enumerate(diagnosis.models):
        if model.last.border:
            name = model.name if model.name not in series else f"{model.name} ({number + 1})"
            ys = [ring.value for ring in model.last.border]
            series[name] = ([float(k) for k in range(len(ys))], ys)
    parts = []
    if any(len(ys) > 1 for _, ys in series.values()):  # one ring is the bar above
        parts.append(
            charts(
                [
                    line_chart(
                        series,
                        title="Drift by distance to the border",
                        y_label="last stage",
                        x_label="cells from the border",
                        y_range=(0.0, None),
                    )
                ]
            )
        )
    for model in diagnosis.models:
        if not model.last.padding:
            parts.append(message(f"{model.name}: no padded convolutions, so there is no padding to exchange."))
            continue
        rows = []
        for mode in PADDING_MODES:
            found = model.last.padding.get(mode, {})
            cells = []
            for key in ("position_blank", "border_contrast"):
                value = found.get(key)
                shown = value is not None and value.value is not None
                cells.append(
                    write(value.value, BY_KEY[key]) + _interval(value, BY_KEY[key])
                    if shown and value is not None
                    else (value.reason if value is not None else "not measured")
                )
            rows.append([mode, *cells])
        parts.append(markup("<p><strong>{}</strong> with other paddings, the weights unchanged.</p>", model.name))
        parts.append(table(["padding", "position on blank pages, R²", "drift at the border"], rows))
    parts.append(
        markup(
            '<p class="note">Circular padding has no border: a CNN that knows its place on a blank page with zeros '
            "around it, and not with circular padding, has its coordinates from the zeros. Weights that were trained "
            "with one padding may do badly with another; this is a test of where place comes from, not a remedy.</p>"
        )
    )
    return parts


def _subspace_parts(diagnosis: Diagnosis) -> list[Html]:
    energy, position, accuracy = {}, {}, {}
    for number, model in enumerate(diagnosis.models):
        name = model.name if model.name not in energy else f"{model.name} ({number + 1})"
        stage = model.last
        if stage.energy:
            shares = stage.energy[:24]
            energy[name] = ([float(k + 1) for k in range(len(shares))], list(shares))
        if stage.removal:
            counts = [float(point.count) for point in stage.removal]
            position[name] = (counts, [point.position for point in stage.removal])
            accuracy[name] = (counts, [point.accuracy for point in stage.removal])
    drawn = []
    if energy:
        drawn.append(
            line_chart(energy, title="Share of place in the first k directions", y_label="last stage",
                       x_label="directions", y_range=(0.0, 1.0))
        )  # fmt: skip
    if position:
        drawn.append(
            line_chart(position, title="Position R² after removing k", y_label="on the gallery",
                       x_label="directions removed", y_range=(0.0, None))
        )  # fmt: skip
    if any(value is not None for _, ys in accuracy.values() for value in ys):
        drawn.append(
            line_chart(accuracy, title="Object k-NN after removing k", y_label="on the gallery",
                       x_label="directions removed", y_range=(0.0, None))
        )  # fmt: skip
    return [charts(drawn)] if drawn else []


def _debias_parts(diagnosis: Diagnosis, layers: Sequence[str]) -> list[Html]:
    parts: list[Html] = [
        markup(
            "<p>The strongest positional directions of the last stage are projected out; how many, the gallery "
            "decides: as much position as can go without costing object k-NN there more than one standard error. What "
            "follows was measured on other pictures.</p>"
        )
    ]
    for number, model in enumerate(diagnosis.models):
        debias = model.debias
        if debias is None:
            parts.append(message(f"{model.name}: nothing to project out. {VERDICTS.get(model.last.verdict, '')}"))
            continue
        rows = []
        for key, (before, after) in debias.changes.items():
            metric = BY_KEY[key]
            if before.value is None or after.value is None:
                continue
            rows.append(
                [
                    metric.title,
                    write(before.value, metric) + _interval(before, metric),
                    write(after.value, metric) + _interval(after, metric),
                    _judge(metric, before, after),
                ]
            )
        noun = "direction" if debias.count == 1 else "directions"
        head = f"{debias.count} of {model.last.channels} {noun} removed after {model.stages[debias.stage].name}"
        if debias.count == 0:
            head = "no number of directions lowers position without cost, so the layer is the identity"
        parts.append(markup("<p><strong>{}</strong>: {}.</p>", model.name, head))
        parts.append(table(["", "before", "after", ""], rows))
        file = f"debias_{number}.safetensors"
        if file in layers:
            parts.append(
                details(
                    "Use this layer",
                    code_block(
                        "from modeling_decodepos.diagnosis import load_debias\n"
                        f'layer = load_debias("{file}")\n'
                        f"features = layer(feature_map)  # (B, {model.last.channels}, h, w) of "
                        f"{model.stages[debias.stage].name}"
                    ),
                )
            )
    return parts


def _judge(metric: Metric, before: Estimate, after: Estimate) -> Html:
    assert before.value is not None and after.value is not None
    if None in (before.low, before.high, after.low, after.high):
        return Html("")
    assert before.low is not None and before.high is not None and after.low is not None and after.high is not None
    if after.high >= before.low and after.low <= before.high:
        return Html("no clear change")
    lower = after.value < before.value
    # Less position is what this is for, on pictures too.
    gain = lower if metric.better in ("lower", "neither") else not lower
    return Html("<strong>gain</strong>" if gain else "<strong>cost</strong>")


def _every_number(diagnosis: Diagnosis) -> Html:
    parts = []
    for model in diagnosis.models:
        rows = []
        arms = (("model", model.stages), ("random", model.random), ("statistics", model.statistics))
        for metric in METRICS:
            for number, stage in enumerate(model.stages):
                cells = []
                for _, stages in arms:
                    value = stages[number].numbers.get(metric.key) if stages else None
                    if value is None:
                        cells.append(format_number(None))
                    elif value.value is None:
                        cells.append(value.reason)
                    else:
                        cells.append(write(value.value, metric) + _interval(value, metric))
                if any(cell != format_number(None) for cell in cells):
                    rows.append([metric.title, stage.name, *cells])
        header = ["", "stage", "model", "random weights", "image statistics"]
        parts.append(details(f"{model.name}: all stages and both controls", table(header, rows)))
    return join(parts)


def _provenance(diagnosis: Diagnosis) -> Html:
    settings = {name.replace("_", " "): value for name, value in diagnosis.settings.items() if name != "notes"}
    seconds = {f"seconds for {model.name}": f"{model.seconds:.0f}" for model in diagnosis.models}
    protocols = {metric.title: metric.protocol for metric in METRICS if metric.measure in diagnosis.measures}
    extra = {key.replace("_", " "): protocol for key, protocol in EXTRA_PROTOCOLS.items()}
    return join(
        [
            markup(
                "<p>Intervals come from a bootstrap over pictures{}. Heat maps lie as PNG files beside this page; "
                "curves are part of the page itself.</p>",
                " and repetitions" if diagnosis.settings["seeds"] > 1 else "",
            ),
            facts(settings | seconds),
            details("Protocols", facts(protocols | extra)),
        ]
    )
