"""python -m training.sweep SWEEP.yaml --output DIR: train, measure and compare the arms of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from modeling_decodepos.commands.outputs import refuse_unwritable
from modeling_decodepos.commands.settings import CommandParser, number
from training.errors import EXIT_INTERRUPTED


def build_parser(prog: str = "python -m training.sweep") -> CommandParser:
    """The command line."""
    parser = CommandParser(prog=prog, description="Train, measure and compare the arms of a sweep.")
    add = parser.add_argument
    add("sweep", type=Path, help="YAML file: base recipe, arms, seeds, measures; see training/sweeps/")
    add("--output", type=Path, required=True, help="folder; what is done in it is not done again")
    add(
        "--budget_minutes",
        type=number(float, 0),
        default=0,
        help="stop then; the same command goes on (default: no end)",
    )
    add("--jobs", type=number(int, 1, 1000), default=1, help="rows at a time")
    add("--threads", type=number(int, 1, 1000), default=1, help="threads of each")
    add("--results", type=Path, help="also write what is shown, arm by arm, to model_cards/results/NAME.json")
    add(
        "--known", type=Path, nargs="+", default=[], metavar="FILE", help="results files whose rows need not run again"
    )
    add("--only", nargs="+", metavar="ARM", help="these arms only, the baseline among them")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="recipe keys for all arms")
    add("--again", metavar="MEASURE", help="measure rows by this once more where its numbers are of another commit")
    add("--dry_run", action="store_true", help="show the commands and stop")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training.sweep") -> None:
    """Run a sweep; exit code 75 where rows are left."""
    args = build_parser(prog).parse_args(arguments)
    from training.sweep.queue import run_sweep  # torch takes seconds, --help needs none

    try:
        refuse_unwritable(args.output, folder=True)
        left = run_sweep(args)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    if left:
        print(f"{left} rows are left; the same command goes on.")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
