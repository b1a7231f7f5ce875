"""python -m training.evaluation ablation SWEEP.yaml --output DIR: train, measure and compare the arms of a sweep."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dataset_scripts.files import lock_folder, write_json
from model_cards.comparison import compare
from training.errors import EXIT_INTERRUPTED
from training.sweep.queue import Place, Queue, load_row
from training.sweep.results_page import write_page
from training.sweep.summary import summarise
from training.sweep.sweep import Sweep, load_sweep


def build_parser() -> argparse.ArgumentParser:
    """What may be typed."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluation ablation", description=__doc__)
    parser.add_argument("sweep", type=Path, help="YAML file: base recipe, arms, seeds, measures; see training/sweeps/")
    parser.add_argument("--output", type=Path, required=True, help="folder; what is done in it is not done again")
    parser.add_argument(
        "--budget-minutes", type=float, default=0, help="stop then; the same command goes on (0: no end)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument(
        "--results",
        type=Path,
        help="write what is shown, arm by arm, to this file too (model_cards/results/NAME.json)",
    )
    parser.add_argument("--only", nargs="+", metavar="ARM", help="these arms only, the baseline among them")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="recipe keys for all arms")
    parser.add_argument(
        "--again", metavar="MEASURE", help="measure rows by this once more where its numbers are of another commit"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the commands and stop")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Work off the queue, then write results.json and report.html for what is done."""
    args = build_parser().parse_args(arguments)
    try:
        sweep = load_sweep(args.sweep, _changes(args.set), args.only)
        queue = Queue(sweep, args.output, args.jobs, args.threads, args.budget_minutes, args.again)
        if args.dry_run:
            for row in sweep.rows():
                print(shlex.join(queue.train_command(Place(args.output, row))))
            return
        with lock_folder(args.output):
            queue.work()
            left = write_results(sweep, args.output, args.results)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    if left:
        print(f"{left} rows are left; the same command goes on.")
        sys.exit(EXIT_INTERRUPTED)


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
        changes[key] = yaml.safe_load(value)
    return changes
