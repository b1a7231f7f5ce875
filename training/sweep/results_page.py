"""The page of a sweep: one dot per run, the arms below each other, and the table of differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dataset_scripts.files import write_text
from model_cards.comparison import Cell, all_names, compare
from model_cards.dot_plots import STYLE, WIDTH, dot_plot
from modeling_decodepos.page import code_block, details, format_number, message, page, table
from training.sweep.sweep import Sweep


def write_page(path: Path, sweep: Sweep, rows: Sequence[Mapping[str, Any]], command: str) -> None:
    """Write the page for the rows that are done."""
    done = [row for row in rows if "failure" not in row]
    every = all_names(done)
    names = list(sweep.show) or every
    cells = compare(done, sweep.baseline, names)
    planned = len(sweep.rows())
    hours = sum(row.get("train_seconds") or 0 for row in rows) + sum(row["measure_seconds"] for row in rows)
    lead = Markup(
        "<p>{} of {} runs, {} seeds. Every arm is compared with <b>{}</b>, seed by seed. {} hours of computing.</p>"
    ).format(len(rows), planned, len(sweep.seeds), sweep.baseline, format_number(hours / 3600, 2))
    failed = [
        message(f"{row['arm']}, seed {row['seed']}: {row['failure']}", "bad") for row in rows if "failure" in row
    ]
    commands = "\n".join(row["command"] for row in done)
    sections: list[tuple[str, Any]] = [
        ("Every run", Markup("\n").join([*failed, *(_figure(name, sweep, cells) for name in names)])),
        ("Means and spread", _means(sweep, names, cells)),
        (f"Differences from {sweep.baseline}", _differences(sweep, names, cells)),
        ("All numbers", details("show", _means(sweep, every, compare(done, sweep.baseline, every)))),
        (
            "How to run it again",
            code_block(command) + details("the training command of every run", code_block(commands)),
        ),
    ]
    write_text(path, page(f"Sweep {sweep.name}", sections, lead=lead))


def _figure(name: str, sweep: Sweep, cells: Mapping[str, Mapping[str, Cell]]) -> Markup:
    drawing, height = dot_plot(name, list(sweep.arms), sweep.baseline, cells)
    template = Markup('<figure><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg></figure>')
    return template.format(WIDTH, height, name, STYLE, drawing)


def _means(sweep: Sweep, names: Sequence[str], cells: Mapping[str, Mapping[str, Cell]]) -> Markup:
    rows = []
    for name in names:
        line: list[Any] = [name]
        for arm in sweep.arms:
            cell = cells.get(arm, {}).get(name)
            if cell is None:
                line.append("-")
            elif cell.deviation is None:
                line.append(format_number(cell.mean))
            else:
                line.append(f"{format_number(cell.mean)} ± {format_number(cell.deviation, 2)}")
        rows.append(line)
    return table(["mean ± standard deviation over seeds", *(arm.replace("_", " ") for arm in sweep.arms)], rows)


def _differences(sweep: Sweep, names: Sequence[str], cells: Mapping[str, Mapping[str, Cell]]) -> Markup:
    arms = [arm for arm in sweep.arms if arm != sweep.baseline]
    rows = []
    for name in names:
        line: list[Any] = [name]
        for arm in arms:
            cell = cells.get(arm, {}).get(name)
            if cell is None or cell.difference is None:
                line.append("-")
            elif cell.half_width is None:
                line.append(f"{cell.difference:+.3f} (one seed)")
            else:
                low, high = cell.difference - cell.half_width, cell.difference + cell.half_width
                text = f"{cell.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
                told = cell.verdict in ("higher", "lower")
                line.append(Markup("<b>{}</b>").format(text) if told else text)
        rows.append(line)
    shown = table(["difference, 95 % interval over seeds", *(arm.replace("_", " ") for arm in arms)], rows)
    note = "Bold: the interval leaves zero out. Intervals are Student's t over paired seeds; with three they are wide."
    return shown + message(note)
