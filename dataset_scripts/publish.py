"""Publishes a data set folder on the Hugging Face Hub, so that `load_dataset("ORG/NAME")` reads it.

python -m dataset_scripts.publish data/openimage-mini --repo ORG/openimage-mini --revision_tag v1 --dry_run

The folder is checked first, as `prepare check` does. The same command can be run again at any time: it sends what is
missing and verifies the rest by hash.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from modeling_decodepos.commands.settings import CommandParser

from .build.engines import add_worker_flag, exit_code
from .build.parquet import CARD_NAME, MANIFEST_NAME, load_manifest, recipe_differences
from .check import inspect_dataset
from .hub.release import LocalFile, Repository, Snapshot, Upload, card_problems, check_repo_name, publish_all


def release_files(folder: Path) -> dict[str, LocalFile]:
    """What is to be published, by path."""
    manifest = load_manifest(folder)
    beside = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path: LocalFile(folder / path) for path in [MANIFEST_NAME, *manifest["files"], *beside]}


def refuse_unfit(folder: Path, workers: int) -> None:
    """Raises unless the folder is a finished data set in order, with a card that is filled in."""
    manifest = load_manifest(folder)
    if problems := inspect_dataset(folder, workers).problems:
        raise ValueError(
            f"{folder} is not in order, so nothing was published:\n  "
            + "\n  ".join(problems)
            + f"\n`python -m dataset_scripts.prepare check {folder}` says the same."
        )
    assert manifest["complete"]  # else the check had a problem
    if problems := card_problems((folder / CARD_NAME).read_text(encoding="utf-8")):
        raise ValueError(f"{folder / CARD_NAME} is not filled in: {'; '.join(problems)}. Edit it, then publish.")


def refuse_foreign(held: Snapshot, folder: Path) -> None:
    """Raises if a repository holds something else than this data set."""
    cure = "Choose another --repo, or say --overwrite to replace its data."
    if not held.refuse_unowned(MANIFEST_NAME, cure):
        return
    try:
        recipe: Any = json.loads(held.read(MANIFEST_NAME))["recipe"]
    except (ValueError, KeyError, TypeError):
        recipe = {}
    if differences := recipe_differences(recipe, load_manifest(folder)["recipe"]):
        raise ValueError(
            f"{held.repository.repo_id} holds a data set of another recipe (there and, as asked for, here):\n  "
            + "\n  ".join(differences)
            + f"\n{cure}"
        )


def _publish(arguments: argparse.Namespace) -> None:
    folder, repo_id = arguments.folder, arguments.repo
    check_repo_name(repo_id)
    refuse_unfit(folder, arguments.workers)
    upload = Upload(
        Repository(repo_id, "dataset", HfApi(library_name="decodepos")),
        release_files(folder),
        refuse_foreign=lambda held: None if arguments.overwrite else refuse_foreign(held, folder),
        # What `load_dataset` would read.
        find_stale=lambda held: [path for path in held.files if re.fullmatch(r"data/.*\.parquet", path)],
    )
    commits = publish_all([upload], arguments.private, arguments.revision_tag, arguments.dry_run)
    for commit in commits.values():
        print(f'load_dataset("{repo_id}", revision="{arguments.revision_tag or commit}")')


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m dataset_scripts.publish", description="Publish a data set folder on the Hugging Face Hub."
    )
    parser.add_argument("folder", type=Path, help="folder that `prepare` built")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="made if it does not exist")
    parser.add_argument("--dry_run", action="store_true", help="check, and say what would be done; works offline")
    parser.add_argument("--private", action="store_true", help="of a new repository")
    parser.add_argument("--revision_tag", metavar="TAG", help="name for this revision, such as v1; never moved")
    parser.add_argument("--overwrite", action="store_true", help="replace the data of another data set")
    add_worker_flag(parser, "processes of the check; 0: one per core")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 published, 2 it cannot be done as asked, 75 not finished and the same command goes on."""
    return exit_code(lambda: _publish(build_parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
