"""What becomes of a sweep's rows: results.json, a table in the terminal, a page, and what of it is published."""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dataset_scripts.files import read_json, write_json, write_text
from model_cards.comparison import Cell, all_names, compare, measure_name
from model_cards.dot_plots import STYLE, WIDTH, dot_plot
from modeling_decodepos.drawing.page import code_block, details, format_number, message, page, table
from training.sweep.sweep import Sweep

Finished = Sequence[Mapping[str, Any]]

_OF_ROW = ("arm", "seed", "fingerprint", "images", "train_seconds", "measure_seconds", "command")
"""What a published file says of every row, so that another machine need not run it again."""


def write_results(sweep: Sweep, output: Path, results: Path | None) -> int:
    """Write results.json and report.html of the rows that are done; returns how many are not."""
    every = [row.load() for row in sweep.rows(output)]
    rows = [row for row in every if row is not None]
    write_json(output / "results.json", {"results": [result for row in rows for result in row["results"]]})
    command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
    if results is not None:
        write_json(results, summarise(sweep, rows, command))
    write_page(output / "report.html", sweep, rows, command)
    cells = compare(_measured(rows), sweep.baseline, sweep.show)
    for name in sweep.show:
        print(f"{name}; differences are from {sweep.baseline}")
        for arm in sweep.arms:
            if cell := cells.get(arm, {}).get(name):
                print(f"  {arm:<24} {_text(cell)}")
    print(f"results  {results or output / 'results.json'}\nreport   {output / 'report.html'}")
    return len(every) - len(rows)


def restore_rows(sweep: Sweep, output: Path, published: Path) -> int:
    """Put rows of a published results file where the sweep looks for them; returns how many.

    Those that are there already stay; of other recipes or measures, or without a number that is shown, none is taken.
    """
    found = read_json(published) if published.is_file() else {}
    if "sweep" not in found:
        raise ValueError(f"{published} is no results file of a sweep; expected one that --results has written.")
    known = {(values["arm"], values["seed"]): values for values in found["sweep"].get("rows", [])}
    restored = 0
    for row in sweep.rows(output):
        values = known.get((row.arm, row.seed), {})
        results = [
            {**result, "value": result["values"][result["seeds"].index(row.seed)]}
            for result in found["results"]
            if result["arm"] == row.arm and row.seed in result["seeds"]
        ]
        wanted = set(sweep.show) <= {measure_name(result) for result in results}
        if wanted and values.get("fingerprint") == row.fingerprint and row.load() is None:
            write_json(row.file, {**values, "results": results})
            restored += 1
    return restored


def summarise(sweep: Sweep, rows: Finished, command: str) -> dict[str, Any]:
    """A results file with a row per arm and number, which also says what was compared with what, and what it cost."""
    return {
        "sweep": {
            "name": sweep.name,
            "question": sweep.question,
            "recipe": str(sweep.recipe),
            **{key: getattr(sweep, key) for key in ("keys", "arms", "seeds", "baseline", "show", "contrasts")},
            "planned": len(sweep.rows()),
            "finished": len(rows),
            "failed": {f"{row['arm']}, seed {row['seed']}": row["failure"] for row in rows if "failure" in row},
            "images": sum(row.get("images") or 0 for row in rows),
            "train_hours": sum(row.get("train_seconds") or 0 for row in rows) / 3600,
            "measure_hours": sum(row["measure_seconds"] for row in rows) / 3600,
            "command": command,
            "rows": [{key: row.get(key) for key in _OF_ROW} for row in _measured(rows)],
        },
        "results": [
            merged
            for arm in sweep.arms
            for name in sweep.show
            if (merged := _merge(sweep, [row for row in rows if row["arm"] == arm], arm, name)) is not None
        ],
    }


def write_page(path: Path, sweep: Sweep, rows: Finished, command: str) -> None:
    """Write the page of the rows that are done: a dot per run, the arms below each other, and their differences."""
    done = _measured(rows)
    every = all_names(done)
    names = list(sweep.show) or every
    cells = compare(done, sweep.baseline, every)
    hours = sum(row.get("train_seconds") or 0 for row in rows) + sum(row["measure_seconds"] for row in rows)
    lead = Markup(
        "<p>{} of {} runs, {} seeds. Every arm is compared with <b>{}</b>, seed by seed. {} hours of computing.</p>"
    ).format(len(rows), len(sweep.rows()), len(sweep.seeds), sweep.baseline, format_number(hours / 3600, 2))
    parts = [message(f"{row['arm']}, seed {row['seed']}: {row['failure']}", "bad") for row in rows if "failure" in row]
    for name in names:
        drawing, height = dot_plot(name, list(sweep.arms), sweep.baseline, cells)
        figure = Markup('<figure><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg></figure>')
        parts.append(figure.format(WIDTH, height, name, STYLE, drawing))

    arms = [arm.replace("_", " ") for arm in sweep.arms]
    lines = {
        name: [name, *(_text(own[name]) if name in own else "-" for own in (cells.get(arm, {}) for arm in sweep.arms))]
        for name in dict.fromkeys([*names, *every])
    }
    note = (
        f"Mean ± standard deviation over seeds; then the difference from {sweep.baseline}, paired by seed, with its "
        "95 % interval (Student's t; with three seeds it is wide), and whether that leaves zero out."
    )
    again = details("the training command of every run", code_block("\n".join(row["command"] for row in done)))
    sections: list[tuple[str, Any]] = [
        ("Every run", Markup("\n").join(parts)),
        ("Means and differences", table(["", *arms], [lines[name] for name in names]) + message(note)),
        ("All numbers", details("show", table(["", *arms], [lines[name] for name in every]))),
        ("How to run it again", code_block(command) + again),
    ]
    write_text(path, page(f"Sweep {sweep.name}", sections, lead=lead))


def _measured(rows: Finished) -> list[Mapping[str, Any]]:
    return [row for row in rows if "failure" not in row]


def _text(cell: Cell) -> str:
    text = format_number(cell.mean) + ("" if cell.deviation is None else f" ± {format_number(cell.deviation, 2)}")
    if cell.difference is None:
        return text
    width = cell.half_width
    interval = "" if width is None else f" [{cell.difference - width:+.3f}, {cell.difference + width:+.3f}]"
    return f"{text}; {cell.difference:+.3f}{interval} {cell.verdict}"


def _merge(sweep: Sweep, rows: Finished, arm: str, name: str) -> dict[str, Any] | None:
    """One number of one arm over its seeds, as a row of results; the command is the first seed's."""
    found = {row["seed"]: result for row in rows for result in row["results"] if measure_name(result) == name}
    if not found:
        return None
    ordered = [found[seed] for seed in sorted(found)]
    values = [float(result["value"]) for result in ordered]
    return {
        **ordered[0],
        "model": f"{sweep.name}/{arm}",
        "value": statistics.fmean(values),
        "values": values,
        "seeds": sorted(found),
        "spread": {
            "std_over_seeds": statistics.stdev(values) if len(values) > 1 else None,
            "interval_95_over_images": None,
        },
        "commits": sorted({commit for result in ordered for commit in result.get("commits", [result["commit"]])}),
    }
