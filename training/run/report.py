"""The page a run ends with: what was trained, whether it learned anything, how to load it and how to do it again.

    python -m training.run.report runs/scenes_smoke

regenerates report.html from what lies in the run folder. Whatever is missing there is named on the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from modeling_decodepos.commands.settings import CommandParser


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(prog="python -m training.run.report", description="Write the report of a run folder.")
    parser.add_argument("run_dir", type=Path, help="output_dir of a run")
    return parser


if __name__ == "__main__":
    build_parser().parse_args()  # --help answers before the imports below, which take seconds

from dataset_scripts.files import write_text
from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.drawing.page import (
    MINUS,
    NO_NUMBER,
    PERCENT,
    Bar,
    bars,
    format_number,
    line_chart,
    render,
    stat_tile,
)
from modeling_decodepos.losses import CONTRAST_TEMPERATURE
from training.run.folder import DEFAULTS, RunFiles, is_number, read_run
from training.run.gains import DIAGNOSIS, Gain
from training.run.health import lies_on_a_line

TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Curve:
    """A chart of keys of the log: its title, its axis, what must be on the axis, and how to read it."""

    title: str
    y_label: str
    keys: tuple[str, ...]
    y_range: tuple[float | None, float | None] = (0.0, None)
    note: str = ""

    def draw(self, run: RunFiles, references: Mapping[str, float] | None = None) -> list[Markup]:
        """The chart, if any of its keys was logged."""
        about: dict[str, Any] = {"title": self.title, "y_label": self.y_label, "note": self.note}
        series = {key.replace("_", " "): run.points(key) for key in self.keys if run.values(key)}
        return [line_chart(series, references=references, y_range=self.y_range, **about)] if series else []


MEASURES = {
    "object_knn": Curve("Object k-NN", "share named right, higher is better", ("object_knn",)),
    "object_knn_class_mean": Curve(
        "Object k-NN, mean over classes", "share named right, higher is better",
        ("object_knn_class_mean", "object_knn_class_mean_low", "object_knn_class_mean_high"),
        note="Low and high: the 95 % interval over images.",
    ),
    "object_knn_same_regions": Curve(
        "Object k-NN of the largest regions", "mean over classes, higher is better", ("object_knn_same_regions",),
        note="The largest region of each image only, as it is: for comparison with the next two.",
    ),
    "object_knn_surroundings": Curve(
        "The same before other surroundings", "mean over classes, higher is better", ("object_knn_surroundings",),
        note="Each region where it is, but before another image.",
    ),
    "object_knn_moved": Curve(
        "The same moved", "mean over classes, higher is better", ("object_knn_moved",),
        note="Each region smaller, elsewhere, before another image.",
    ),
    "position_r2": Curve(
        "Position", "R², lower is better", ("position_r2",),
        note="How well a region's place can be predicted from its feature: 1 exactly, 0 not at all. Compare with the "
        "k-NN: a feature without content has no place either.",
    ),
    "context_leak": Curve(
        "Context leak", "share of the surroundings, lower is better", ("context_leak",),
        note="In a region's feature, against its content: 0 none, 0.5 as much as the content.",
    ),
    "region_retrieval": Curve(
        "Region retrieval", "share of regions, higher is better", ("region_retrieval",),
        note="Regions whose nearest neighbour, among all measured regions, is the same region seen smaller, elsewhere "
        "and before another image.",
    ),
}  # fmt: skip
"""What `training.probes.during` measures, by key of the log."""

CURVES = (
    Curve(
        "Embedding spread", "standard deviation", ("embedding_std",),
        note="Of the teacher's normalised projections, mean over dimensions. 0 means that all regions look alike.",
    ),
    Curve(
        "Effective rank", "directions", ("effective_rank", "full_rank"),
        note="How many directions the teacher's normalised projections of a step fill, and how many they could. Near "
        "1, all lie on one line: a collapse that the spread may miss.",
    ),
    Curve(
        "Room to move", "share", ("slack", "can_move"), (0.0, 1.0),
        "Slack: the share of the mixed view, on its roomier axis, that the regions can move into. The other line: the "
        "share of samples that can move at all.",
    ),
    Curve("Learning rate", "", ("learning_rate",)),
    Curve("Teacher momentum", "share kept per step; 1 is a frozen teacher", ("momentum",), (None, 1.0)),
    Curve("Gradient norm", "before clipping", ("grad_norm",)),
    Curve("Speed", "images per second", ("images_per_second",)),
    Curve("Waiting for data", "share of the time", ("data_wait",), (0.0, 1.0)),
)  # fmt: skip

BEST_OF_PAIR = {"attract": -2.0, "contrast": 0.0, "repel": 0.0, "match": 0.0}
"""The least loss of a pair of views, by the kind of its term."""


def write_report(run_dir: Path | str, diagnosis: str = DIAGNOSIS) -> Path:
    """The page of a run folder, written anew as report.html; FileNotFoundError where no run has ever written.

    `diagnosis` is the way from there to the folder of the diagnosis of both ends.
    """
    run = read_run(Path(run_dir), Path(run_dir) / diagnosis)
    probes = {name: result for name, result in (("before", run.before), ("after", run.after)) if result}
    images, batch_size = run.about("data").get("images"), run.recipe.get("global_batch_size")
    text = render(
        TEMPLATE,
        {
            "time": write_time,
            "count": "{:,}".format,
            "number": format_number,
            "quoted": lambda text: json.dumps(str(text)),
        },
        run=run,
        title=run.name,
        images=images if is_number(images) else 0,
        seen=run.step * batch_size if is_number(batch_size) else 0,
        verdicts=[verdict for verdict, _ in (judge_spread(run), judge_knn(run), judge_probe(run)) if verdict],
        continues=str(run.recipe.get("backbone", next(iter(BACKBONES)))) not in BACKBONES,
        diagnosis_page=f"{diagnosis}/report.html" if (run.folder / diagnosis / "report.html").is_file() else "",
        gain_rows=[write_gain(gain) for gain in run.gains],
        first_broken=list(run.broken.items())[:10],
        glance=build_tiles(run),
        probes=list(probes.values()),
        probe_bars=draw_probe(probes),
        cosines=[
            (name, *(f"{cosine:+.2f}".replace("-", MINUS) for cosine in (result.cosine_same, result.cosine_other)))
            for name, result in probes.items()
        ],
        measured_on=run.about("measured_on"),
        query_images=query_images(run),
        measures=draw_measures(run),
        export=run.about("export"),
        curves=draw_curves(run),
        changes=list_changes(run),
        provenance=list_provenance(run),
    )
    path = run.folder / "report.html"
    write_text(path, text)
    return path


# ---------------------------------------------------------------------------------------------------------- verdicts


def judge_spread(run: RunFiles) -> tuple[str, str]:
    """Whether the embeddings have collapsed, by the thresholds of the recipe, and the tone of that."""
    spread, perfect = run.last("embedding_std"), perfect_spread(run)
    if spread is None or perfect is None:
        return "", "plain"
    numbers = f"(standard deviation {format_number(spread)}; a perfect spread is {format_number(perfect)})"
    rank, full_rank = run.last("effective_rank"), run.last("full_rank")
    on_a_line = rank is not None and full_rank is not None and lies_on_a_line(rank, full_rank)
    if spread < run.setting("collapse_stop") * perfect or on_a_line:
        return f"The embeddings have collapsed: all regions look alike to the network {numbers}. Do not use it.", "bad"
    if spread < run.setting("collapse_warn") * perfect:
        return f"The embeddings have become narrow {numbers}; watch for collapse.", "bad"
    return f"The embeddings stay spread out {numbers}.", "good"


def judge_knn(run: RunFiles) -> tuple[str, str]:
    """How well neighbours name the class, at the start and at the end."""
    found = run.values("object_knn_class_mean")
    if len(found) < 2:
        return "", "plain"
    start, end = write_precise(found[0]), write_precise(found[-1])
    return f"Nearest neighbours name the class of {end} of objects (mean over classes); at the start {start}.", "plain"


def judge_probe(run: RunFiles) -> tuple[str, str]:
    """What the probe says, and the tone of the change."""
    before, after = run.before, run.after
    if after is None:
        return "" if before is None else "The probe was only measured before training.", "plain"
    change, tone = "", "plain"
    if before is not None:
        change = f", the untrained one in {write_percent(before.content_wins)}: "
        if after.interval[0] > before.interval[1]:
            change, tone = f"{change}its features follow the object more than before", "good"
        elif after.interval[1] < before.interval[0]:
            change, tone = f"{change}its features follow the object less than before", "bad"
        else:
            change += "no clear change, since the two intervals overlap"
    level = "Neither the object nor its place and surroundings clearly decides."
    if after.interval[0] > 0.5:
        level = "The object decides more often than its place and surroundings."
    elif after.interval[1] < 0.5:
        level = "Place and surroundings still decide more often than the object."
    wins = f"{write_percent(after.content_wins)} of {after.count} cases"
    return f"In the probe, the trained network prefers the same object elsewhere in {wins}{change}. {level}", tone


def best_losses(run: RunFiles) -> dict[str, float]:
    """The least that each term can reach, without its weight; empty if this version does not know the objective."""
    if run.objective is None:
        return {}
    best = {term.name: len(term.pairs) * BEST_OF_PAIR[term.kind] for term in run.objective.terms}
    return best | ({"anchor": -2.0} if run.setting("anchor_weight") else {})


def least_loss(run: RunFiles) -> float | None:
    """The least that the weighted sum of the terms can reach; None if this version does not know the objective."""
    if run.objective is None:
        return None
    weights = {term.name: term.weight for term in run.objective.terms}
    weights |= {"depositioning": run.setting("depositioning_weight"), "anchor": run.setting("anchor_weight")}
    return sum(weights[name] * value for name, value in best_losses(run).items())


def perfect_spread(run: RunFiles) -> float | None:
    """Standard deviation of each dimension when directions are spread evenly over the sphere."""
    size = run.description.get("projection_size") or run.recipe.get("projection_size")
    return 1 / math.sqrt(size) if is_number(size) and size > 0 else None


# ------------------------------------------------------------------------------------------------------------ pieces


def build_tiles(run: RunFiles) -> list[Markup]:
    """The most important numbers."""
    best, perfect = least_loss(run), perfect_spread(run)
    # The anchor begins where its weights are: at full agreement with themselves.
    start, by = (-2.0 * anchor, "at the start") if (anchor := run.setting("anchor_weight")) else (0.0, "by chance")
    if run.objective is not None:
        start += sum(term.weight * len(term.pairs) for term in run.objective.of_features().terms)
        guessed = 2 * CONTRAST_TEMPERATURE * math.log(run.setting("global_batch_size") * run.setting("num_regions"))
        contrasted = [term for term in run.objective.terms if term.kind == "contrast"]
        start += sum(term.weight * len(term.pairs) * guessed for term in contrasted)
    limits = "" if best is None else f"about {format_number(start)} {by}, {format_number(best)} at best"
    spread = f"perfect spread {format_number(perfect)}, collapse 0" if perfect else ""
    items = [
        stat_tile("loss", _from_to(run.values("loss"), format_number), limits),
        stat_tile("embedding std", format_number(run.last("embedding_std")), spread, judge_spread(run)[1]),
    ]
    if knn := run.values("object_knn_class_mean"):
        items.append(
            stat_tile("object k-NN", _from_to(knn, write_precise), f"mean over classes, on {query_images(run)}")
        )
    wins, note = [], "not measured after training"
    if run.after:
        wins = [result.content_wins for result in (run.before, run.after) if result]
        note = "95 % interval {} to {}; 50 % is a coin toss".format(*map(write_percent, run.after.interval))
    items.append(stat_tile("probe: the object wins", _from_to(wins, write_percent), note, judge_probe(run)[1]))
    seconds, waited = sum(run.values("seconds")), run.mean("data_wait")
    note = "" if waited is None else f"{write_percent(waited)} of the time waiting for data"
    items.append(stat_tile("images per second", format_number(run.mean("images_per_second")), note))
    machine, memory = run.about("machine"), run.last("peak_memory_gb")
    note = f"on {machine['device']}, {machine['cores']} cores" if {"device", "cores"} <= machine.keys() else ""
    note += f", with up to {memory:.1f} GiB (without workers)" if memory else ""
    items.append(stat_tile("training time", str(timedelta(seconds=round(seconds))) if seconds else NO_NUMBER, note))
    if (slack := run.values("slack")) and (can_move := run.values("can_move")):
        moves = fmean(can_move)
        tone = "good" if 1 - moves <= run.setting("max_immobile_share") else "bad"
        note = f"{write_percent(moves)} of samples could move their regions"
        items.append(stat_tile("mean slack", f"{write_percent(fmean(slack))} of a view", note, tone))
    return items


def write_gain(gain: Gain) -> tuple[Any, ...]:
    """A number at both ends, as a row of a table."""
    better = Markup('<strong>{}</strong><br><span class="note">{} is better</span>').format(gain.title, gain.better)
    word = Markup('<span class="verdict {}">{}</span>').format(gain.tone, gain.word) if gain.word else ""
    return better, gain.before, gain.after, gain.change, word


def draw_probe(probes: Mapping[str, Any]) -> Markup:
    """How often the object wins, before and after."""
    axis = {"surroundings": 0.0, "coin toss": 0.5, "the object": 1.0}
    colors, items = {"before": 5, "after": 0}, []
    for name, result in probes.items():
        low, high = map(write_percent, result.interval)
        text = f"{write_percent(result.content_wins)} ({low.removesuffix(PERCENT)} to {high})"
        items.append(Bar(name, result.content_wins, text, result.interval, [("mark", 0.5)], colors[name]))
    return bars(items, axis=axis)


def draw_measures(run: RunFiles) -> list[Markup]:
    """Curves of the measures of `training.probes.during`, with their start and what chance gives."""
    chance, items = run.about("measured_on").get("chance") or {}, []
    for key, curve in MEASURES.items():
        references = {"at the start": known[0]} if (known := run.values(key)) else {}
        references |= {"always the most frequent class": chance[key]} if key in chance else {}
        items += curve.draw(run, references)
    return items


def draw_curves(run: RunFiles) -> list[Markup]:
    """The loss terms with the least they can reach, and all other curves."""
    terms, best, perfect = tuple(run.terms) or ("loss",), best_losses(run), perfect_spread(run)
    label = "terms without their weights, lower is better" if run.terms else "lower is better"
    least = {f"best {name}": best[name] for name in terms if name in best}
    items = Curve("Loss", label, terms, (None, None)).draw(run, least)
    for curve in CURVES:
        items += curve.draw(run, {"perfect spread": perfect} if perfect and "embedding_std" in curve.keys else {})
    return items


def query_images(run: RunFiles) -> str:
    """Whose regions are the queries of the measures."""
    queries = str(run.about("measured_on").get("queries", ""))
    return "training images that are not in the gallery" if "training sees" in queries else "images held aside"


def list_changes(run: RunFiles) -> list[tuple[Any, ...]]:
    """Each key of the recipe that is not at its default: value, default, origin of the default."""
    origins = run.about("origins")
    return [
        (Markup("<code>{}</code>").format(key), write_value(value), write_value(DEFAULTS[key]), origins.get(key, ""))
        for key, value in run.recipe.items()
        if key in DEFAULTS and value != DEFAULTS[key]
    ]


def list_provenance(run: RunFiles) -> dict[str, str]:
    """When, from which commit, on what data and machine."""
    about, again = run.description, run.description.get("resumed")
    resumed = [entry for entry in again if isinstance(entry, dict)] if isinstance(again, list) else []
    known = {
        "started": write_time(about.get("started")),
        "resumed": "; ".join(f"{write_time(e.get('started'))} at step {e.get('step')}" for e in resumed) or "never",
        "finished": write_time(about["finished"]) if about.get("finished") else "not finished",
        "commit": str(about.get("commit") or "unknown"),
    }
    for name in ("data", "machine", "versions"):
        known[name] = ", ".join(f"{key} {write_value(value)}" for key, value in run.about(name).items()) or "unknown"
    return known


# ----------------------------------------------------------------------------------------------------------- numbers


def _from_to(values: list[float], write: Any) -> str:
    """The first value and the last."""
    return " → ".join(map(write, values if len(values) < 2 else (values[0], values[-1]))) or NO_NUMBER


def write_percent(share: float) -> str:
    """A share in whole percent; 0 and 100 % only for none and all."""
    if 0 < share < 0.005:
        return f"under 1{PERCENT}"
    return f"over 99{PERCENT}" if 0.995 <= share < 1 else f"{100 * share:.0f}{PERCENT}"


def write_precise(share: float) -> str:
    """A share in percent with two significant digits."""
    return f"{format_number(100 * share, 2)}{PERCENT}"


def write_time(text: Any) -> str:
    """A time of run.json."""
    return str(text).replace("T", " ").replace("+00:00", " UTC") if text else "unknown"


def write_value(value: Any) -> str:
    """A value in the notation of a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
