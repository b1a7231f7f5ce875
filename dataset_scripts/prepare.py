"""Builds a data set folder, or checks one.

python -m dataset_scripts.prepare scenes --output data/scenes
python -m dataset_scripts.prepare check data/scenes
"""

import argparse
import dataclasses
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from modeling_decodepos.commands.outputs import refuse_unwritable
from modeling_decodepos.commands.settings import CommandParser

from .build.engines import ENGINES, add_worker_flag, exit_code
from .build.parquet import MANIFEST_NAME, DatasetPlan, RowFailed, build_dataset, load_manifest
from .build.work_folder import WorkFolder
from .proposals import PROVIDERS, Proposals
from .sources import folder, imagefolder, pairs, regions, scenes, voc
from .sources.coco import builder as coco
from .sources.openimage_mini import builder as openimage_mini


class Builder(Protocol):
    """A module that makes one kind of data set."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Flags of its own, beside those that every builder takes."""

    def open_source(self, arguments: argparse.Namespace, work: WorkFolder) -> DatasetPlan | None:
        """What to build, None if nothing is left to do; raises ValueError with the cure if it cannot be built."""


BUILDERS: dict[str, Builder] = {
    "scenes": scenes,
    "pairs": pairs,
    "openimage-mini": openimage_mini,
    "coco": coco,
    "folder": folder,
    "imagefolder": imagefolder,
    "voc": voc,
    "regions": regions,
}


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """What every builder takes."""
    parser.add_argument("--output", type=Path, required=True, help="folder to write; an unfinished one is completed")
    add_worker_flag(
        parser, "processes, the bytes do not depend on it; 0: one per core, of this machine or of the cluster"
    )
    parser.add_argument(
        "--engine", choices=tuple(ENGINES), default="local", help="ray: on a Ray cluster; --output must be shared"
    )
    parser.add_argument("--overwrite", action="store_true", help="build anew over a folder of another recipe")
    parser.add_argument("--proposals", choices=tuple(PROVIDERS), default="none", help="where `regions` come from")
    parser.add_argument(
        "--proposals_cache", help="folder that keeps proposals, by image and settings, for other builds"
    )
    parser.add_argument("--mask_model", help="for --proposals masks: folder or Hub id of a SAM-type model")


def build_parser() -> CommandParser:
    """The command line, a subcommand per builder."""
    parser = CommandParser(
        prog="python -m dataset_scripts.prepare", description="Build a data set folder of Parquet files, or check one."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, builder in BUILDERS.items():
        command = commands.add_parser(name, help=builder.HELP)
        _add_build_arguments(command)
        builder.add_arguments(command)

    check = commands.add_parser("check", help="verify a folder against its manifest and the column contract")
    check.add_argument("folder", type=Path, help="folder of Parquet files")
    add_worker_flag(check)
    return parser


def _build(arguments: argparse.Namespace) -> int:
    refuse_unwritable(arguments.output, folder=True)
    with WorkFolder(arguments.output) as work:
        plan = BUILDERS[arguments.command].open_source(arguments, work)
        if plan is None:
            return 0
        proposals = Proposals(arguments.proposals, arguments.mask_model, arguments.proposals_cache)
        plan = dataclasses.replace(plan, proposals=proposals)
        start = time.perf_counter()
        try:
            manifest = build_dataset(
                arguments.output, plan, arguments.workers, overwrite=arguments.overwrite, engine=arguments.engine
            )
        except RowFailed as error:
            print(f"\nerror: {error}\nFinished shards are kept: the same command goes on from there.", file=sys.stderr)
            return 1
    seconds = time.perf_counter() - start
    megabytes = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
    rows = ", ".join(f"{rows:,} {split}" for split, rows in manifest["splits"].items())
    print(f"{arguments.output}: {rows} images, {megabytes:.0f} MB, {seconds:.0f} s")
    print(f"data hash {manifest['data_sha256'][:16]}, recipe hash {manifest['recipe_sha256'][:16]}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from .check import inspect_dataset

    folder = arguments.folder
    found = inspect_dataset(folder, arguments.workers)
    for line in [*found.summary, *(f"note: {note}" for note in found.notes)]:
        print(line)
    if found.problems:
        print(*found.problems, f"{folder}: {len(found.problems)} problems", sep="\n", file=sys.stderr)
        return 1
    known = f", data hash {load_manifest(folder)['data_sha256'][:16]}" if (folder / MANIFEST_NAME).exists() else ""
    print(f"{folder} is in order: {found.files} files, {found.images:,} images{known}")
    return 0


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 1 the data set has problems, or a row could not be made; else as `exit_code` says."""
    parsed = build_parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _terminate)  # as Ctrl-C
    try:
        return exit_code(lambda: (_check if parsed.command == "check" else _build)(parsed))
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
