"""Builds a data set folder, or checks one.

python -m dataset_scripts.prepare scenes --output data/scenes
python -m dataset_scripts.prepare check data/scenes
"""

import argparse
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from modeling_decodepos.settings import CommandParser

from .build.engines import ENGINES, Unfinished
from .build.parquet import MANIFEST_NAME, DatasetPlan, RowFailed, build_dataset, load_manifest
from .build.work_folder import WorkFolder
from .proposals import PROVIDERS, Proposals
from .sources import folder, imagefolder, regions, scenes, voc
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
    parser.add_argument(
        "--num_workers",
        "--workers",
        dest="workers",
        type=int,
        default=0,
        help="processes, the bytes do not depend on it; 0: one per core, of this machine or of the cluster",
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
    check.add_argument(
        "--num_workers", "--workers", dest="workers", type=int, default=0, help="processes; 0: one per core"
    )
    return parser


def _build(arguments: argparse.Namespace) -> None:
    with WorkFolder(arguments.output) as work:
        plan = BUILDERS[arguments.command].open_source(arguments, work)
        if plan is None:
            return
        proposals = Proposals(arguments.proposals, arguments.mask_model, arguments.proposals_cache)
        plan = dataclasses.replace(plan, proposals=proposals)
        start = time.perf_counter()
        manifest = build_dataset(
            arguments.output, plan, arguments.workers, overwrite=arguments.overwrite, engine=arguments.engine
        )
    seconds = time.perf_counter() - start
    megabytes = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
    rows = ", ".join(f"{rows:,} {split}" for split, rows in manifest["splits"].items())
    print(f"{arguments.output}: {rows} images, {megabytes:.0f} MB, {seconds:.0f} s")
    print(f"data hash {manifest['data_sha256'][:16]}, recipe hash {manifest['recipe_sha256'][:16]}")


def _check(arguments: argparse.Namespace) -> int:
    from .check import inspect_dataset

    folder = arguments.folder
    found = inspect_dataset(folder, arguments.workers)
    for line in found.summary:
        print(line)
    for note in found.notes:
        print(f"note: {note}")
    for problem in found.problems:
        print(problem, file=sys.stderr)
    if found.problems:
        print(f"{folder}: {len(found.problems)} problems", file=sys.stderr)
        return 1
    known = f", data hash {load_manifest(folder)['data_sha256'][:16]}" if (folder / MANIFEST_NAME).exists() else ""
    print(f"{folder} is in order: {found.files} files, {found.images:,} images{known}")
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code.

    0 done; 1 the data set has problems, or a row could not be made; 2 the command cannot be carried out as asked; 75
    not finished, and the same command goes on (a full disk, a lost worker); 130 Ctrl-C, 143 SIGTERM: likewise.
    """
    parsed = build_parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        if parsed.command == "check":
            return _check(parsed)
        _build(parsed)
    except ValueError as error:
        return _ended(2, f"error: {error}")
    except RowFailed as error:
        return _ended(1, f"error: {error}\nFinished shards are kept: the same command goes on from there.")
    except Unfinished as error:
        return _ended(os.EX_TEMPFAIL, f"error: {error}")
    except KeyboardInterrupt as stop:
        code = 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
        return _ended(code, "Stopped. Finished shards are kept: the same command goes on from there.")
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _ended(code: int, message: str) -> int:
    print(f"\n{message}", file=sys.stderr)  # a bar may stand in the line
    return code


if __name__ == "__main__":
    sys.exit(main())
