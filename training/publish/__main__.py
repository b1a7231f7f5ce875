"""python -m training.publish RUN --repo ORG/NAME."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from modeling_decodepos.commands.settings import CommandParser


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m training.publish", description="Publish a finished run on the Hugging Face Hub."
    )
    add = parser.add_argument
    add("run", type=Path, help="output_dir of the run")
    add("--repo", required=True, metavar="ORG/NAME", help="made if it does not exist")
    add("--dry_run", action="store_true", help="build, check, and say what would be done")
    add("--private", action="store_true", help="of new repositories")
    add("--revision_tag", metavar="TAG", help="name for this revision, such as v1; never moved")
    add("--overwrite", action="store_true", help="make this the next version of another run's release")
    add("--results", type=Path, nargs="+", help="files of training.evaluation (default: RUN/results.json, if there)")
    add("--output", type=Path, help="where to build (default: RUN/release)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 published, 2 it cannot be done as asked, 75 not finished and the same command goes on."""
    args = build_parser().parse_args(arguments)
    # These take seconds, and --help needs none of them.
    from dataset_scripts.build.engines import exit_code
    from training.publish.command import publish

    return exit_code(lambda: publish(args))


if __name__ == "__main__":
    sys.exit(main())
