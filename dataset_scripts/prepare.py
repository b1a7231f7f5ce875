"""Builds a data set folder, or checks one.

python -m dataset_scripts.prepare scenes --output data/scenes
python -m dataset_scripts.prepare check data/scenes
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from . import regions, scenes
from .parquet import Source, available_cores, build_dataset, load_manifest
from .proposals import PROVIDERS, Proposals


class Builder(Protocol):
    """A module that makes one kind of data set."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Flags of its own, beside those that every builder takes."""

    def open_source(self, arguments: argparse.Namespace) -> Source:
        """What to build; raises ValueError with the cure if it cannot be built."""


BUILDERS: dict[str, Builder] = {"scenes": scenes, "regions": regions}


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """What every builder takes."""
    parser.add_argument("--output", type=Path, required=True, help="folder to write; an unfinished one is completed")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes; the bytes do not depend on it"
    )
    parser.add_argument("--overwrite", action="store_true", help="build anew over a folder of another recipe")
    parser.add_argument("--proposals", choices=tuple(PROVIDERS), default="none", help="where `regions` come from")
    parser.add_argument(
        "--proposals-cache", help="folder that keeps proposals, by image and settings, for other builds"
    )
    parser.add_argument("--mask-model", help="for --proposals masks: folder or Hub id of a SAM-type model")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dataset_scripts.prepare", description="Build a data set folder of Parquet files, or check one."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, builder in BUILDERS.items():
        command = commands.add_parser(name, help=builder.HELP, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        _add_build_arguments(command)
        builder.add_arguments(command)

    check = commands.add_parser("check", help="verify a folder against its manifest and the column contract")
    check.add_argument("folder", type=Path)
    return parser


def _build(arguments: argparse.Namespace) -> None:
    source = BUILDERS[arguments.command].open_source(arguments)
    proposals = Proposals(arguments.proposals, arguments.mask_model, arguments.proposals_cache)
    source = dataclasses.replace(source, proposals=proposals)
    start = time.perf_counter()
    manifest = build_dataset(arguments.output, source, arguments.workers, overwrite=arguments.overwrite)
    seconds = time.perf_counter() - start
    megabytes = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
    rows = ", ".join(f"{rows:,} {split}" for split, rows in manifest["splits"].items())
    print(f"{arguments.output}: {rows} images, {megabytes:.0f} MB, {seconds:.0f} s")
    print(f"data hash {manifest['data_sha256'][:16]}, recipe hash {manifest['recipe_sha256'][:16]}")


def _check(arguments: argparse.Namespace) -> int:
    from .check import check_dataset

    problems = check_dataset(arguments.folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"{arguments.folder}: {len(problems)} problems", file=sys.stderr)
        return 1
    manifest = load_manifest(arguments.folder)
    files, rows = len(manifest["files"]), sum(manifest["splits"].values())
    print(f"{arguments.folder} is in order: {files} files, {rows:,} images, data hash {manifest['data_sha256'][:16]}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the data set has problems, 2 the command cannot be carried out as asked."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "check":
        return _check(parsed)
    try:
        _build(parsed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. Finished shards are kept: the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
