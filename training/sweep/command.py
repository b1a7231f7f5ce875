"""Works off a sweep, then writes its results and its page."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_scripts.files import lock_folder, write_json
from model_cards.comparison import compare
from modeling_decodepos.settings import read_value
from training.sweep.queue import Place, Queue, load_row
from training.sweep.results_page import write_page
from training.sweep.summary import summarise
from training.sweep.sweep import Sweep, load_sweep


def run_sweep(args: argparse.Namespace) -> int:
    """Train and measure, then write results.json and report.html for what is done; returns how many rows are left."""
    sweep = load_sweep(args.sweep, _changes(args.set), args.only)
    queue = Queue(sweep, args.output, args.jobs, args.threads, args.budget_minutes, args.again)
    if args.dry_run:
        for row in sweep.rows():
            print(shlex.join(queue.train_command(Place(args.output, row))))
        return 0
    with lock_folder(args.output):
        queue.work()
        return write_results(sweep, args.output, args.results)


def write_results(sweep: Sweep, output: Path, results: Path | None) -> int:
    """results.json and report.html of the rows that are done; returns how many are not."""
    places = [Place(output, row) for row in sweep.rows()]
    rows = [row for place in places if (row := load_row(place)) is not None]
    write_json(output / "results.json", {"results": [result for row in rows for result in row["results"]]})
    command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        write_json(results, summarise(sweep, rows, command))
    write_page(output / "report.html", sweep, rows, command)
    _print_table(sweep, rows)
    print(f"results  {results or output / 'results.json'}\nreport   {output / 'report.html'}")
    return len(places) - len(rows)


def _print_table(sweep: Sweep, rows: Sequence[dict[str, Any]]) -> None:
    cells = compare([row for row in rows if "failure" not in row], sweep.baseline, sweep.show)
    for name in sweep.show:
        print(name)
        for arm in sweep.arms:
            if (cell := cells.get(arm, {}).get(name)) is None:
                continue
            spread = "" if cell.deviation is None else f" ± {cell.deviation:.3f}"
            against = ""
            if cell.difference is not None and cell.half_width is not None:
                against = f"   {cell.difference:+.3f} ± {cell.half_width:.3f} against {sweep.baseline}: {cell.verdict}"
            print(f"  {arm:<24} {cell.mean:.3f}{spread}{against}")


def _changes(pairs: Sequence[str]) -> dict[str, Any]:
    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, found {pair!r}.")
        changes[key] = read_value(value)
    return changes
