"""The page a run ends with: what was trained, whether it learned anything, how to load it and how to do it again.

    python -m training.run.report runs/scenes_smoke

regenerates report.html from what lies in the run folder. Whatever is missing there is named on the page.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from modeling_decodepos.settings import CommandParser


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(prog="python -m training.run.report", description="Write the report of a run folder.")
    parser.add_argument("run_dir", type=Path, help="output_dir of a run")
    return parser


if __name__ == "__main__":
    build_parser().parse_args()  # --help answers before the imports below, which take seconds

from dataset_scripts.files import write_text
from modeling_decodepos.losses import OBJECTIVES, Objective
from modeling_decodepos.page import (
    Html,
    bar_pair,
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
    stat_tile,
    table,
    tiles,
)
from training.probes.before_after import ProbeResult
from training.recipe import GROUPS
from training.run.log import count_things, read_log

VIEW_TEXTS = {
    "image": "the image as it is stored, with all its regions in grey; the sample takes a few of them",
    "whole": "the whole image, resized",
    "crop": "a random crop",
    "crop_small": "the crop at half size",
    "whole_cut": "the whole image with parts of its regions cut out",
    "crop_cut_small": "the crop at half size with parts of its regions cut out",
    "repositioned": "the crop's regions, shrunk and moved, over the donor",
    "donor": "another image, which gives new surroundings",
}

# Title, y axis and meaning of the charts of `training.probes.during`, by key of the log.
MEASURES = {
    "object_knn": ("Object k-NN", "share named right", "Higher is better."),
    "object_knn_class_mean": ("Object k-NN, mean over classes", "share named right", "Higher is better."),
    "position_r2": (
        "Position",
        "R²",
        "How much of a region's place its feature tells: 1 all, 0 nothing. Lower is better, but read it beside the "
        "k-NN: a feature that holds nothing tells no place either.",
    ),
    "context_leak": (
        "Context leak",
        "share of the surroundings",
        "In a region's feature, against its content: 0 none, 0.5 as much as the content. Lower is better.",
    ),
    "region_retrieval": (
        "Regions found again",
        "share of regions",
        "Among all measured regions, seen smaller, elsewhere and before another image. Higher is better.",
    ),
}

# Of the standard deviation of a perfect spread. Ours: trial runs that learned stayed above the first.
HEALTHY_SPREAD, COLLAPSED_SPREAD = 0.5, 0.1


@dataclass
class RunFiles:
    """What a run folder holds, as far as it can be read."""

    folder: Path
    description: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    before: ProbeResult | None = None
    after: ProbeResult | None = None
    views: bytes | None = None
    probe_picture: bytes | None = None
    neighbours: bytes | None = None
    broken: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> dict[str, Any]:
        """Every key of the recipe."""
        return _dictionary(self.description.get("recipe"))

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.description.get("name") or self.folder.resolve().name)

    @property
    def objective(self) -> Objective | None:
        """The table of loss pairs, if it is one this version knows."""
        return OBJECTIVES.get(str(self.recipe.get("objective")))

    @property
    def terms(self) -> list[str]:
        """Names of the loss terms."""
        named = self.description.get("terms")
        if isinstance(named, list):
            return [str(name) for name in named]
        return [term.name for term in self.objective.terms] if self.objective else []

    @property
    def step(self) -> int:
        """The last logged step."""
        return _whole(_last(self.log, "step"))

    @property
    def total_steps(self) -> int:
        """Steps the run was to have; 0 if nothing says."""
        return _whole(self.description.get("steps")) or _whole(self.recipe.get("max_steps"))

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.description.get("status") == "finished"

    def points(self, key: str) -> tuple[list[float], list[float | None]]:
        """Steps and values of a key, from the log lines that have it (measures have lines of their own)."""
        lines = [line for line in self.log if key in line and _is_number(line.get("step"))]
        return [line["step"] for line in lines], [_number(line[key]) for line in lines]


def write_report(run_dir: Path | str) -> Path:
    """The page of a run folder, written anew as report.html.

    Raises:
        FileNotFoundError: The folder is not there, or no run has ever written to it.
    """
    run = read_run(Path(run_dir))
    sections: list[tuple[str, Html]] = [
        ("At a glance", tiles(_build_tiles(run))),
        ("Before and after", _probe_section(run)),
        ("What the features hold", _measures_section(run)),
        ("What is near what", _neighbours_section(run)),
        ("Load the result", _loading_section(run)),
        ("How training went", _curves_section(run)),
        ("What the networks saw", _views_section(run)),
        ("Images that could not be read", _broken_section(run)),
        ("Recipe", _recipe_section(run)),
        ("Where it came from", _provenance_section(run)),
    ]
    lead = join([markup('<p class="status">{}</p>', _status(run)), markup("<p>{}</p>", _reading(run))])
    if run.description.get("status") == "stopped":
        lead = join([lead, message(run.description.get("reason") or "The run was stopped; nothing says why.", "bad")])
    lead = join([lead, *(message(problem, "bad") for problem in run.problems)])
    footer = markup(
        "Written by <code>python -m training.run.report {}</code>; it holds everything it shows.", run.folder
    )
    path = run.folder / "report.html"
    write_text(path, page(run.name, sections, lead=lead, footer=footer))
    return path


def read_run(folder: Path) -> RunFiles:
    """What a run folder holds; pieces that are missing or broken are named in `problems`."""
    if not (folder / "run.json").is_file() and not (folder / "log.jsonl").is_file():
        raise FileNotFoundError(f"{folder} holds neither run.json nor log.jsonl; expected the output_dir of a run.")
    run = RunFiles(folder)
    run.description = _dictionary(_read_json(folder / "run.json", run.problems, required=True))
    log_file = folder / "log.jsonl"
    run.log = [line for line in read_log(log_file) if isinstance(line, dict)]
    written = log_file.read_text(encoding="utf-8", errors="replace").splitlines() if log_file.is_file() else []
    unread = sum(1 for line in written if line.strip()) - len(run.log)
    if unread > 0:
        run.problems.append(
            f"log.jsonl breaks off: {count_things(unread, 'line')} after step {run.step} could not be read. The run "
            "was probably stopped while it wrote."
        )
    elif not run.log:
        run.problems.append("log.jsonl has no lines: the run ended before it logged a step, so there are no curves.")
    probe = _dictionary(_read_json(folder / "probe.json", run.problems))
    for name in ("before", "after"):
        if name in probe:
            try:
                setattr(run, name, ProbeResult.from_dict(probe[name]))
            except (KeyError, TypeError):
                run.problems.append(f"probe.json: {name!r} is not a probe result of this version; it is left out.")
    run.views = _read_picture(folder / "views.png", run.problems)
    run.probe_picture = _read_picture(folder / "probe.png", run.problems)
    run.neighbours = _read_picture(folder / "neighbours.jpg", run.problems)
    for line in read_log(folder / "broken_images.jsonl"):
        if isinstance(line, dict):
            run.broken.setdefault(str(line.get("image_id")), str(line.get("reason")))
    return run


# ------------------------------------------------------------------------------------------------------------- words


def _status(run: RunFiles) -> str:
    parts = []
    if run.is_finished:
        parts.append(f"finished {_time(run.description.get('finished'))}")
    elif run.description.get("status") == "stopped":
        parts.append(f"stopped itself at about step {run.step:,}")
    else:
        parts.append(f"not finished: still running, or stopped at about step {run.step:,}")
    recipe_name = run.description.get("recipe_name")
    parts += [f"recipe {recipe_name}"] if recipe_name else []
    device = _dictionary(run.description.get("machine")).get("device")
    parts += [f"on {device}"] if device else []
    return " · ".join(parts)


def _reading(run: RunFiles) -> str:
    """The run in a few plain sentences."""
    sentences = []
    recipe, data = run.recipe, _dictionary(run.description.get("data"))
    if run.log:
        seen = run.step * _whole(recipe.get("global_batch_size"))
        of_all = f" of {run.total_steps:,}" if run.total_steps else ""
        text = f"{recipe.get('backbone', 'A network')} was trained for {run.step:,}{of_all} steps"
        images = _whole(data.get("images"))
        if seen and images:
            passes = format_number(seen / images, 2)
            text += f" on {images:,} images ({seen:,} seen, {passes} passes)"
        sentences.append(text + ".")
        losses = [line.get("loss") for line in run.log if _is_number(line.get("loss"))]
        if losses:
            best = _least_loss(run)
            text = f"The loss went from {format_number(losses[0])} to {format_number(losses[-1])}"
            sentences.append(text + (f"; {format_number(best)} would be full agreement." if best else "."))
        sentences.append(_spread_reading(run))
    else:
        sentences.append("No step was logged, so there is nothing to say about training yet.")
    sentences += [_measures_reading(run), _probe_reading(run)]
    return " ".join(sentence for sentence in sentences if sentence)


def _spread_reading(run: RunFiles) -> str:
    spread, healthy = _last(run.log, "embedding_std"), _healthy_std(run)
    if spread is None or healthy is None:
        return ""
    numbers = f"(standard deviation {format_number(spread)}; a perfect spread is {format_number(healthy)})"
    if spread < COLLAPSED_SPREAD * healthy:
        return f"The embeddings have collapsed: all regions look alike to the network {numbers}. Do not use this run."
    if spread < HEALTHY_SPREAD * healthy:
        return f"The embeddings have become narrow {numbers}; watch for collapse."
    return f"The embeddings stay spread out {numbers}."


def _measures_reading(run: RunFiles) -> str:
    steps, values = run.points("object_knn_class_mean")
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    return (
        f"The nearest neighbours of objects name the right class in {_precise(known[-1])} of cases (mean over "
        f"classes); at step {steps[0]:,.0f} it was {_precise(known[0])}."
    )


def _probe_reading(run: RunFiles) -> str:
    before, after = run.before, run.after
    if after is None:
        return "" if before is None else "The probe was only measured before training."
    text = (
        "Asked which is closer, the same object somewhere else or another object in its place, the trained network "
        f"picks the same object in {_percent(after.content_wins)} of {after.count} cases"
    )
    if before is None:
        return f"{text}. {_probe_level(after)}"
    text += f", the untrained one in {_percent(before.content_wins)}"
    if after.interval[0] > before.interval[1]:
        text += ": its features follow the object more than before."
    elif after.interval[1] < before.interval[0]:
        text += ": its features follow the object less than before."
    else:
        text += ": no clear change, since the two intervals overlap."
    return f"{text} {_probe_level(after)}"


def _probe_level(result: ProbeResult) -> str:
    if result.interval[0] > 0.5:
        return "The object decides more often than its place and surroundings."
    if result.interval[1] < 0.5:
        return "Place and surroundings still decide more often than the object."
    return "Neither the object nor its place and surroundings clearly decides."


# ---------------------------------------------------------------------------------------------------------- sections


def _build_tiles(run: RunFiles) -> list[Html]:
    seen = run.step * _whole(run.recipe.get("global_batch_size"))
    items = [
        stat_tile(
            "steps",
            f"{run.step:,}",
            f"of {run.total_steps:,}" if run.total_steps else "",
            "plain" if run.is_finished or run.step >= run.total_steps else "bad",
        ),
        stat_tile("images seen", f"{seen:,}" if seen else "–", _batch_note(run)),  # noqa: RUF001
    ]
    best = _least_loss(run)
    # The anchor begins where its weights are: at full agreement with themselves.
    start, by = (-2.0 * anchor, "at the start") if (anchor := _anchor_weight(run)) else (0.0, "by chance")
    limits = f"about {format_number(start)} {by}, {format_number(best)} at full agreement" if best else ""
    items.append(stat_tile("final loss", format_number(_last(run.log, "loss")), limits))

    spread, healthy = _last(run.log, "embedding_std"), _healthy_std(run)
    tone = "plain"
    if spread is not None and healthy is not None:
        tone = "good" if spread >= HEALTHY_SPREAD * healthy else "bad"
    note = f"perfect spread {format_number(healthy)}, collapse 0" if healthy else ""
    items.append(stat_tile("embedding std", format_number(spread), note, tone))

    knn = [value for value in run.points("object_knn_class_mean")[1] if value is not None]
    if knn:
        change = " → ".join(_precise(value) for value in ([knn[0], knn[-1]] if len(knn) > 1 else knn))
        items.append(stat_tile("object k-NN", change, f"mean over classes, on {_asked_images(run)}"))

    if run.after is not None:
        low, high = run.after.interval
        value = f"{_percent(run.after.content_wins)}"
        if run.before is not None:
            value = f"{_percent(run.before.content_wins)} → {value}"
        note = f"95 % interval {_percent(low)} to {_percent(high)}; 50 % is a coin toss"
        items.append(stat_tile("probe: the object wins", value, note, _probe_tone(run)))
    else:
        items.append(stat_tile("probe: the object wins", format_number(None), "not measured after training"))

    seconds = sum(line["seconds"] for line in run.log if _is_number(line.get("seconds")))
    speed = _weighted_mean(run.log, "images_per_second")
    waited = _weighted_mean(run.log, "data_wait")
    note = f"{_percent(waited)} of the time waiting for data" if waited is not None else ""
    items.append(stat_tile("images per second", format_number(speed), note))
    items.append(
        stat_tile("training time", _duration(seconds) if seconds else format_number(None), _machine_note(run))
    )
    memory = _last(run.log, "peak_memory_gb")
    if memory is not None:
        items.append(stat_tile("peak memory", f"{memory:.1f} GiB", "of the main process or its GPU, without workers"))

    slack, moves = _mean(run.log, "slack"), _mean(run.log, "can_move")
    if slack is not None and moves is not None:
        note = f"{_percent(moves)} of samples could move their regions"
        tone = "good" if moves >= 0.8 else "bad"
        items.append(stat_tile("mean slack", f"{_percent(slack)} of a view", note, tone))
    return items


def _probe_section(run: RunFiles) -> Html:
    before, after = run.before, run.after
    if before is None and after is None:
        return message("There is no probe: the recipe's probe_count is 0, or the run ended before it was measured.")
    result = after or before
    assert result is not None
    parts = [
        markup(
            "<p>One object is drawn twice: in another place, before another background, among other neighbours. A "
            "third picture keeps the place and everything around it and swaps the object for another. Which of the "
            "two does the network find closer to the original? The share of {} such questions that <b>the same "
            "object</b> wins:"
            "</p>",
            result.count,
        ),
        bar_pair(
            before.content_wins if before else None,
            after.content_wins if after else None,
            marks={"surroundings": 0.0, "coin toss": 0.5, "the object": 1.0},
            intervals=(before.interval if before else None, after.interval if after else None),
        ),
    ]
    rows = [
        (name, f"{item.cosine_same:+.2f}".replace("-", "−"), f"{item.cosine_other:+.2f}".replace("-", "−"))  # noqa: RUF001
        for name, item in (("before", before), ("after", after))
        if item is not None
    ]
    parts.append(table(["mean cosine with the original", "same object elsewhere", "other object in its place"], rows))
    if after is None:
        parts.append(message("Measured before training only: the run has not come to its end."))
    if run.probe_picture:
        caption = (
            f"The first triplets of the probe, not chosen ones, at the {result.size_px} x {result.size_px} pixels the "
            "network gets. Bars: cosine of the boxed region with the anchor's, from −1 to 1, after "  # noqa: RUF001
            "subtracting the mean of all probed regions. Whiskers above: 95 % bootstrap intervals over triplets."
        )
        parts.append(
            picture(run.probe_picture, "Probe triplets with their cosines before and after training", caption)
        )
    return join(parts)


def _measures_section(run: RunFiles) -> Html:
    """Curves of the measures of `training.probes.during`."""
    measured_on = _dictionary(run.description.get("measured_on"))
    chance = {key: float(value) for key, value in _dictionary(measured_on.get("chance")).items() if _is_number(value)}
    items = []
    for key, (title, label, note) in MEASURES.items():
        steps, values = run.points(key)
        first = next((value for value in values if value is not None), None)
        if first is None:
            continue
        if key in chance:
            note += f" Naming the most frequent class always gives {format_number(chance[key])}."
        items.append(
            line_chart(
                {key: (steps, values)},
                title=title,
                y_label=label,
                references={"at the start": first},
                y_range=(0.0, None),
                note=note,
            )
        )
    if not items:
        return message("Nothing was measured on the way: the recipe's measure_steps is 0, or the run ended before it.")
    parts = [
        markup(
            "<p>Measured during training, always on the same images: neighbours and regressions come from the gallery "
            "({}) and are asked about the queries ({}).</p>",
            measured_on.get("gallery", "unknown"),
            measured_on.get("queries", "unknown"),
        )
    ]
    if measured_on.get("classes") == 0:
        parts.append(message("There is no object k-NN: the data name no classes."))
    return join([*parts, charts(items)])


def _neighbours_section(run: RunFiles) -> Html:
    if not run.neighbours:
        return message(
            "There is no neighbours.jpg: it is drawn when a run ends, where the recipe's measure_steps is not 0."
        )
    has_classes = _dictionary(run.description.get("measured_on")).get("classes") != 0
    caption = (
        f"Regions of {_asked_images(run)}, each with the regions of the gallery whose features are closest, cut from "
        "the images as they are stored. Not chosen ones: the largest region of each image in turn"
        f"{', one per class. Green: the class of the region on the left' if has_classes else ''}. Networks see "
        "regions inside their image, resized to the view."
    )
    return picture(run.neighbours, "Regions and their nearest regions before and after training", caption)


def _asked_images(run: RunFiles) -> str:
    """Whose regions the measures ask about."""
    queries = str(_dictionary(run.description.get("measured_on")).get("queries", ""))
    return "images that training sees, but not in the gallery" if "training sees" in queries else "images held aside"


def _broken_section(run: RunFiles) -> Html:
    if not run.broken:
        return message("None: no broken_images.jsonl names any.")
    first = list(run.broken.items())[:10]
    text = count_things(len(run.broken), "image") + " could not be read and took no part in training."
    text += f" The first {len(first)}; broken_images.jsonl names all." if len(run.broken) > len(first) else ""
    return join([markup("<p>{}</p>", text), table(["image", "reason"], first)])


def _loading_section(run: RunFiles) -> Html:
    export = _dictionary(run.description.get("export"))
    parts = []
    if export.get("backbone"):
        path = str(export["backbone"])
        parts += [
            Html("<p>The trained backbone is a plain transformers model; it needs no code of this project.</p>"),
            code_block(
                "from transformers import AutoImageProcessor, AutoModel\n"
                f"processor = AutoImageProcessor.from_pretrained({json.dumps(path)})\n"
                f"model = AutoModel.from_pretrained({json.dumps(path)})"
            ),
        ]
    if export.get("pretraining"):
        path = str(export["pretraining"])
        parts += [
            Html("<p>Embeddings of regions: boxes are xyxy in [0, 1], one tensor per image.</p>"),
            code_block(
                "from modeling_decodepos import DecodePosModel\n"
                f"model = DecodePosModel.from_pretrained({json.dumps(path)})\n"
                "embeddings = model(pixel_values, regions=[boxes]).region_embeddings"
            ),
        ]
    return join(parts) if parts else message("Nothing has been exported: weights are exported when a run ends.")


def _curves_section(run: RunFiles) -> Html:
    if not run.log:
        return message("There are no curves: nothing was logged.")

    points = run.points
    healthy = _healthy_std(run)
    has_slack = _mean(run.log, "slack") is not None
    items = [_loss_chart(run, {name: points(name) for name in run.terms or ["loss"]})]
    items.append(
        line_chart(
            {"embedding std": points("embedding_std")},
            title="Embedding spread",
            y_label="standard deviation",
            references={"perfect spread": healthy, "collapse": 0.0} if healthy else {"collapse": 0.0},
            note="Of the teacher's normalised projections, mean over dimensions. A perfect spread over the sphere is "
            f"1 / √{run.description.get('projection_size', 'D')}; 0 means that all regions look alike.",
        )
    )
    full = _last(run.log, "full_rank")
    if full is not None:
        items.append(
            line_chart(
                {"effective rank": points("effective_rank")},
                title="Effective rank",
                y_label="directions",
                y_range=(0.0, None),
                references={"all directions": full, "one line": 1.0},
                note="How many directions the teacher's normalised projections of a step fill, of as many as there "
                "are regions or dimensions. Near 1, all lie on one line: a collapse that the spread may miss.",
            )
        )
    if has_slack:
        items.append(
            line_chart(
                {"mean slack": points("slack"), "samples that can move": points("can_move")},
                title="Room to move",
                y_label="share",
                y_range=(0.0, 1.0),
                note="Slack is the share of the mixed view, on its roomier axis, that the regions can move into.",
            )
        )
    items += [
        line_chart({"learning rate": points("learning_rate")}, title="Learning rate", y_range=(0.0, None)),
        line_chart(
            {"momentum": points("momentum")},
            title="Teacher momentum",
            y_label="share kept per step",
            references={"frozen": 1.0},
        ),
    ]
    if _mean(run.log, "grad_norm") is not None:
        items.append(
            line_chart(
                {"gradient norm": points("grad_norm")},
                title="Gradient norm",
                y_label="before clipping",
                y_range=(0.0, None),
            )
        )
    items += [
        line_chart(
            {"images per second": points("images_per_second")},
            title="Speed",
            y_label="images per second",
            y_range=(0.0, None),
        ),
        line_chart(
            {"data wait": points("data_wait")},
            title="Waiting for data",
            y_label="share of the time",
            y_range=(0.0, 1.0),
        ),
    ]
    return charts(items)


def _loss_chart(run: RunFiles, series: Mapping[str, Any]) -> Html:
    """The loss terms with the ends of their range."""
    counts = {term.name: len(term.pairs) for term in run.objective.terms} if run.objective else {}
    references, notes = {"chance": 0.0}, []
    least: dict[float, list[str]] = {}
    for name in series:
        if name in counts:
            least.setdefault(-2.0 * counts[name], []).append(name)
    for value, names in least.items():
        references["full agreement" if len(least) == 1 else f"full agreement: {', '.join(names)}"] = value
        pairs = count_things(counts[names[0]], "pair")
        notes.append(f"{' and '.join(names)}: {pairs} of views, so from about 0 to {format_number(value)}")
    if "anchor" in series:
        notes.append("anchor: -2 as long as the features are those of the weights it started from")
    note = "Each pair goes from about 0 (chance) to −2 (same direction). " + "; ".join(notes)  # noqa: RUF001
    return line_chart(
        series,
        title="Loss terms" if run.terms else "Loss",
        y_label="unweighted, lower is better" if run.terms else "lower is better",
        references=references if least else {},
        note=note + "." if notes else "",
    )


def _views_section(run: RunFiles) -> Html:
    if not run.views:
        return message("There is no views.png: the views are drawn when a run starts.")
    seen: dict[str, str] = {}
    if run.objective:
        student, teacher = run.objective.student_views, run.objective.teacher_views
        for name in VIEW_TEXTS:
            who = [network for network, views in (("student", student), ("teacher", teacher)) if name in views]
            seen[name] = f"seen by the {' and the '.join(who)}" if who else "seen by no network"
        relevant = {*run.objective.views, "image", "whole", "crop"} | ({"donor"} & set(VIEW_TEXTS))
    else:
        relevant = set(VIEW_TEXTS)
    lines = facts(
        {
            name: f"{text} ({seen[name]})" if name in seen and name not in ("image", "donor") else text
            for name, text in VIEW_TEXTS.items()
            if name in relevant
        }
    )
    caption = join(
        [
            Html("<p>The views of one sample, laid out as in the paper's figure; a region keeps its colour.</p>"),
            lines,
        ]
    )
    return picture(run.views, "The views of one training sample with their regions", caption)


def _recipe_section(run: RunFiles) -> Html:
    if not run.recipe:
        return message("run.json holds no recipe.", "bad")
    known = {item.name: item for group in GROUPS for item in dataclasses.fields(group)}
    origins = _dictionary(run.description.get("origins"))
    changed, every = [], []
    for key, value in run.recipe.items():
        default = known[key].default if key in known else None
        name = markup('<code title="{}">{}</code>', known[key].metadata["help"] if key in known else "", key)
        is_changed = key in known and value != default
        shown = markup("<b>{}</b>" if is_changed else "{}", _write_value(value))
        row = (name, shown, _write_value(default) if key in known else "", origins.get(key, ""))
        every.append(row)
        if is_changed:
            changed.append(row)
    header = ["key", "this run", "default", "origin of the default"]
    return join(
        [
            markup(
                "<p>This recipe changes {} of {} keys. The defaults aim at a ResNet-50 on COCO-sized data.</p>",
                len(changed),
                len(every),
            ),
            table(header, changed),
            details(f"All {len(every)} keys", table(header, every)),
        ]
    )


def _provenance_section(run: RunFiles) -> Html:
    about = run.description
    data, machine = _dictionary(about.get("data")), _dictionary(about.get("machine"))
    versions = _dictionary(about.get("versions"))
    parts = []
    if about.get("command"):
        parts.append(code_block(str(about["command"])))
    parts.append(
        facts(
            {
                "started": _time(about.get("started")),
                "resumed": "; ".join(_resumptions(about)) or "never",
                "finished": _time(about.get("finished")) if about.get("finished") else "not finished",
                "commit": about.get("commit") or "unknown",
                "data": ", ".join(f"{key} {_write_value(value)}" for key, value in data.items()) or "unknown",
                "machine": ", ".join(f"{key} {value}" for key, value in machine.items()) or "unknown",
                "versions": ", ".join(f"{name} {value}" for name, value in versions.items()) or "unknown",
            }
        )
    )
    return join(parts)


def _resumptions(about: dict[str, Any]) -> list[str]:
    again = about.get("resumed")
    known = [_dictionary(entry) for entry in again] if isinstance(again, list) else []
    return [f"{_time(entry.get('started'))} at step {entry.get('step')}" for entry in known]


# ----------------------------------------------------------------------------------------------------------- numbers


def _least_loss(run: RunFiles) -> float | None:
    """The loss of full agreement: -2 for each pair, weighted."""
    if run.objective is None:
        return None
    weight = _number(run.recipe.get("depositioning_weight"))
    weights = {} if weight is None else {"depositioning": weight}
    terms = (-2.0 * len(term.pairs) * weights.get(term.name, term.weight) for term in run.objective.terms)
    return sum(terms) - 2.0 * _anchor_weight(run) or None


def _anchor_weight(run: RunFiles) -> float:
    return _number(run.recipe.get("anchor_weight")) or 0.0


def _healthy_std(run: RunFiles) -> float | None:
    """Standard deviation of each dimension when directions are spread evenly over the sphere."""
    size = run.description.get("projection_size") or run.recipe.get("projection_size")
    return 1 / math.sqrt(size) if _is_number(size) and size > 0 else None


def _probe_tone(run: RunFiles) -> str:
    if run.before is None or run.after is None:
        return "plain"
    if run.after.interval[0] > run.before.interval[1]:
        return "good"
    return "bad" if run.after.interval[1] < run.before.interval[0] else "plain"


def _batch_note(run: RunFiles) -> str:
    size = run.recipe.get("global_batch_size")
    return f"{size:,} per step" if _is_number(size) else ""


def _machine_note(run: RunFiles) -> str:
    machine = _dictionary(run.description.get("machine"))
    device, cores = machine.get("device"), machine.get("cores")
    return f"on {device}, {cores} cores" if device and cores else ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _whole(value: Any) -> int:
    return int(value) if _is_number(value) else 0


def _last(log: list[dict[str, Any]], key: str) -> float | None:
    return next((line[key] for line in reversed(log) if _is_number(line.get(key))), None)


def _mean(log: list[dict[str, Any]], key: str) -> float | None:
    values = [line[key] for line in log if _is_number(line.get(key))]
    return sum(values) / len(values) if values else None


def _weighted_mean(log: list[dict[str, Any]], key: str) -> float | None:
    """Mean of a rate over the time each line stands for."""
    pairs = [
        (line[key], line["seconds"]) for line in log if _is_number(line.get(key)) and _is_number(line.get("seconds"))
    ]
    total = sum(seconds for _, seconds in pairs)
    return sum(value * seconds for value, seconds in pairs) / total if total > 0 else _mean(log, key)


def _percent(share: float) -> str:
    """A share in whole percent; 0 and 100 % only for none and all."""
    if 0 < share < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _precise(share: float) -> str:
    """A share in percent with two significant digits."""
    return f"{format_number(100 * share, 2)} %"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 100 * 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _time(text: Any) -> str:
    return str(text).replace("T", " ").replace("+00:00", " UTC") if text else "unknown"


def _write_value(value: Any) -> str:
    """A recipe's value in the notation of a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_json(path: Path, problems: list[str], required: bool = False) -> Any:
    if not path.is_file():
        if required:
            problems.append(f"{path.name} is missing: recipe, data and versions are unknown.")
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read ({error}); what it holds is left out.")
        return None


def _read_picture(path: Path, problems: list[str]) -> bytes | None:
    if not path.is_file():
        return None
    data = path.read_bytes()
    kind, magic = ("JPEG", b"\xff\xd8\xff") if path.suffix == ".jpg" else ("PNG", b"\x89PNG")
    if not data.startswith(magic):
        problems.append(f"{path.name} is not a {kind} file; it is left out.")
        return None
    return data


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of a run folder."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        print(f"wrote {write_report(args.run_dir)}")
    except FileNotFoundError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
