"""Sweeps on the pages of evidence: a drawing, a table of means and differences, and what it cost.

A sweep's file in results/ is one of `python -m training.evaluation ablation … --results`. Where a page says
`<!-- sweep NAME -->`, up to `<!-- end of NAME -->`, stands what its file says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_cards.comparison import Cell, compare, contrast, measure_name
from model_cards.dot_plots import dot_plots
from model_cards.results import load_rows
from model_cards.tables import cell, code, markdown_table
from modeling_decodepos.drawing.page import format_number

PAGES = (Path("docs") / "evidence.md", Path("docs") / "evidence_tables.md")
FIGURES = Path("docs") / "evidence"

# Short names of the numbers, and what they say.
_CLASSES = {"": "classes", "shape_": "shapes", "texture_": "textures", "supercategory_": "supercategories"}
_CHANGES = {"": "", "recontextualised_": ", other surroundings", "repositioned_": ", moved"}
TITLES = {
    f"object_knn/{change}{kind}class_mean_k20": f"object k-NN, {classes}{changed}"
    for kind, classes in _CLASSES.items()
    for change, changed in _CHANGES.items()
} | {
    "object_knn/effective_rank": "effective rank of object features",
    "linear_segmentation/miou": "linear segmentation, mIoU",
    "diagnosis/content_wins": "same object elsewhere is nearer",
    "diagnosis/context_leak": "context leak, region embeddings",
    "diagnosis/context_leak_stage4": "context leak, stage 4 on the image",
    **{f"diagnosis/context_leak_stage{stage}": f"context leak, stage {stage}" for stage in (3, 2, 1)},
    "diagnosis/neighbour_advantage": "neighbour's class read out, over guessing",
    "diagnosis/position_regions": "position R², region embeddings",
    "diagnosis/position_natural": "position R², cells of pictures",
    "diagnosis/position_blank": "position R², cells of blank pages",
}
# Numbers of which less is better; of the others more is.
LESS_IS_BETTER = re.compile(r"diagnosis/(context_leak|neighbour|position)")


def load_sweeps(results: Path) -> dict[str, dict[str, Any]]:
    """The sweeps among the results files, by name; their rows are checked."""
    paths = filter(is_sweep, sorted(results.glob("*.json")))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) | {"results": load_rows(path)} for path in paths}


def is_sweep(path: Path) -> bool:
    """Whether a results file is that of a sweep."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whoever reads it as results says what is wrong with it
    return isinstance(values, dict) and "sweep" in values


def with_sweeps(page: str, sweeps: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with what each sweep that it names says between its marks."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in sweeps:
            raise ValueError(f"a page names the sweep {name!r}, of which there is no results/{name}.json.")
        return f"<!-- sweep {name} -->\n{describe(sweeps[name])}\n<!-- end of {name} -->"

    return re.sub(r"<!-- sweep (?P<name>\w+) -->.*?<!-- end of (?P=name) -->", fill, page, flags=re.DOTALL)


def draw(values: Mapping[str, Any]) -> str:
    """The drawing of a sweep, an SVG file."""
    sweep = values["sweep"]
    titles = {name: TITLES.get(name, name) for name in sweep["show"]}
    return dot_plots(titles, list(sweep["arms"]), sweep["baseline"], _cells(values))


def draw_contrasts(values: Mapping[str, Any]) -> str:
    """The drawing of a sweep's contrasts, an SVG file."""
    titles = {name: _head(name) for name in values["sweep"]["show"]}
    return dot_plots(titles, list(values["sweep"]["contrasts"]), None, _contrasts(values))


def describe(values: Mapping[str, Any]) -> str:
    """The drawing's place, the table, the arms and the cost of a sweep, as Markdown."""
    sweep = values["sweep"]
    machine = values["results"][0]["machine"]
    commits = sorted({commit for row in values["results"] for commit in row["commits"]})
    hours = sweep["train_hours"] + sweep["measure_hours"]
    per_row = (
        f"{sweep['images'] / 3600 / sweep['train_hours']:.0f} images/s" if sweep["train_hours"] else "no training"
    )
    cost = (
        f"{sweep['finished']} of {sweep['planned']} runs, seeds {', '.join(map(str, sweep['seeds']))}: "
        f"{hours:.1f} hours of {machine['threads']} thread on {machine['device']} in all "
        f"({sweep['train_hours']:.1f} training, {per_row}; {sweep['measure_hours']:.1f} measuring), torch "
        f"{machine['torch']}. Commit {', '.join(code(commit[:12]) for commit in commits)}."
    )
    reasons = {name: reason.split(". ")[0] for name, reason in sweep["failed"].items()}
    failed = [f"Without a result: {cell(name)}: {cell(reason)}." for name, reason in reasons.items()]
    arms = [
        f"- {code(arm)}: {code(_keys(keys)) if keys else 'the network as it starts' if keys is None else 'the recipe'}"
        for arm, keys in sweep["arms"].items()
    ]
    parts = [
        f"![{cell(sweep['name'])}: a dot per seed](evidence/{sweep['name']}.svg)",
        _table(values),
        f"Mean ± standard deviation over seeds; below it the difference from {code(sweep['baseline'])}, paired by "
        "seed, with its 95 % interval (Student's t). **Bold**: the interval leaves zero out; ↑ and ↓ say whether more "
        "or less is better.",
        *(_table_of_contrasts(values) if sweep.get("contrasts") else ()),
        *failed,
        cost,
        f"```bash\n{sweep['command']}\n```",
        f"All arms: {code(sweep['recipe'])} with {code(_keys(sweep['keys']))}; and\n\n" + "\n".join(arms),
    ]
    return "\n\n".join(parts)


def _table(values: Mapping[str, Any]) -> str:
    """Arms across, numbers down; the other way round where there are many arms."""
    sweep, cells = values["sweep"], _cells(values)
    names = [name for name in sweep["show"] if any(name in own for own in cells.values())]
    arms = [arm for arm in sweep["arms"] if arm in cells]
    heads = {name: _head(name) for name in names}
    written = {(arm, name): _written(cells[arm].get(name)) for arm in arms for name in names}
    table = [["", *map(code, arms)]]
    table += [[cell(heads[name]), *(written[arm, name] for arm in arms)] for name in names]
    head, *lines = table if len(arms) <= 8 else zip(*table, strict=True)
    return markdown_table(head, lines)


def _table_of_contrasts(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Drawing, table and arms of the contrasts."""
    sweep, found = values["sweep"], _contrasts(values)
    names = [name for name in sweep["show"] if any(name in own for own in found.values())]
    lines = [[cell(_head(name)), *(_difference(found[each].get(name)) for each in found)] for name in names]
    sums = [
        f"{cell(each)} = {' '.join(f'{weight:+g} {code(arm)}' for arm, weight in weights.items())}"
        for each, weights in sweep["contrasts"].items()
    ]
    return (
        f"![{cell(sweep['name'])}: contrasts of arms, a dot per seed](evidence/{sweep['name']}_contrasts.svg)",
        markdown_table(["", *map(cell, found)], lines),
        f"Sums of arms, seed by seed, with their 95 % intervals: {'; '.join(sums)}.",
    )


def _contrasts(values: Mapping[str, Any]) -> dict[str, dict[str, Cell]]:
    sweep, cells = values["sweep"], _cells(values)
    every = {
        each: {name: contrast(cells, name, weights) for name in sweep["show"]}
        for each, weights in sweep["contrasts"].items()
    }
    return {each: {name: one for name, one in own.items() if one} for each, own in every.items()}


def _head(name: str) -> str:
    return f"{TITLES.get(name, name)} {'↓' if LESS_IS_BETTER.match(name) else '↑'}"


def _difference(found: Cell | None) -> str:
    if found is None or found.difference is None:
        return ""
    if found.half_width is None:
        return f"{found.difference:+.3f}"
    low, high = found.difference - found.half_width, found.difference + found.half_width
    text = f"{found.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if found.verdict in ("higher", "lower") else text


def _written(found: Cell | None) -> str:
    if found is None:
        return ""
    text = format_number(found.mean)
    if found.deviation is not None:
        text += f" ± {format_number(found.deviation, 2)}"
    return f"{text}<br>{_difference(found)}" if found.half_width is not None else text


def _cells(values: Mapping[str, Any]) -> dict[str, dict[str, Cell]]:
    rows = [
        {"arm": row["arm"], "seed": seed, "results": [{**row, "value": value}]}
        for row in values["results"]
        for seed, value in zip(row["seeds"], row["values"], strict=True)
    ]
    names: Sequence[str] = list(dict.fromkeys(measure_name(row) for row in values["results"]))
    return compare(rows, values["sweep"]["baseline"], names)


def _keys(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in keys.items())
