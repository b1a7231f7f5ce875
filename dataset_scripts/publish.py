"""Publishes a data set folder on the Hugging Face Hub, so that `load_dataset("ORG/NAME")` reads it.

python -m dataset_scripts.publish data/openimage-mini --repo ORG/openimage-mini --revision_tag v1 --dry_run

The folder is checked first, as `prepare check` does. The same command can be run again at any time: it sends what is
missing and verifies the rest by hash.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from modeling_decodepos.settings import CommandParser

from .build.parquet import CARD_NAME, MANIFEST_NAME, load_manifest, recipe_differences
from .check import inspect_dataset
from .hub.release import LocalFile, Repository, card_problems, changed_files, exit_code, refuse_other_tag, release


def release_files(folder: Path) -> dict[str, LocalFile]:
    """What is to be published, by path, in the order of arrival.

    The manifest comes first, by which a later call knows the repository as this data set's, and the card last.
    """
    manifest = load_manifest(folder)
    beside = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name not in (MANIFEST_NAME, CARD_NAME)
    )
    return {path: LocalFile(folder / path) for path in [MANIFEST_NAME, *manifest["files"], *beside, CARD_NAME]}


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


def refuse_foreign(repository: Repository, folder: Path) -> None:
    """Raises if the repository holds something else than this data set."""
    info = repository.info()
    if info is None:
        return
    remote = repository.files(info.sha)
    cure = "Choose another --repo, or say --overwrite to replace its data."
    if MANIFEST_NAME not in remote:
        if others := sorted(set(remote) - {".gitattributes", CARD_NAME}):
            raise ValueError(
                f"{repository.repo_id} holds {len(others)} files, such as {others[0]}, but no {MANIFEST_NAME}: it is "
                f"not a data set of this program. {cure}"
            )
        return
    try:
        recipe: Any = json.loads(repository.read(MANIFEST_NAME, info.sha))["recipe"]
    except (ValueError, KeyError, TypeError):
        recipe = {}
    if differences := recipe_differences(recipe, load_manifest(folder)["recipe"]):
        raise ValueError(
            f"{repository.repo_id} holds a data set of another recipe (there and, as asked for, here):\n  "
            + "\n  ".join(differences)
            + f"\n{cure}"
        )


def _is_stale(path: str) -> bool:
    return path.startswith("data/") and path.endswith(".parquet")  # load_dataset would read it


def _publish(arguments: argparse.Namespace) -> None:
    folder, repo_id = arguments.folder, arguments.repo
    if repo_id.count("/") != 1:
        raise ValueError(f"--repo is {repo_id!r}, expected ORG/NAME: the Hub loads no other names.")
    refuse_unfit(folder, arguments.workers)
    files = release_files(folder)
    repository = Repository(repo_id, "dataset", HfApi(library_name="decodepos"))
    info = repository.info()
    if info is not None and arguments.private and not info.private:
        raise ValueError(f"{repo_id} exists and is public; --private is for a new one. Change it on the Hub first.")
    if not arguments.overwrite:
        refuse_foreign(repository, folder)
    refuse_other_tag(repository, files, arguments.revision_tag)

    remote = {} if info is None else repository.files(info.sha)
    todo = set(changed_files(files, remote))
    if arguments.dry_run:
        for path, file in files.items():
            print(f"{'upload' if path in todo else 'there '}  {file.size:>14,}  {path}")
        for path in sorted(set(remote) - set(files)):
            print(f"{'remove' if _is_stale(path) else 'leave '}  {remote[path].size:>14,}  {path}")
    megabytes = sum(files[path].size for path in todo) / 1e6
    state = "a new repository" if info is None else "private" if info.private else "public"
    print(f"{repo_id} ({state}): {len(todo)} of {len(files)} files to upload, {megabytes:,.1f} MB")
    if arguments.dry_run:
        print("Nothing was changed: this was a dry run.")
        return
    commit = release(repository, files, _is_stale, arguments.private, arguments.revision_tag)
    revision = arguments.revision_tag or commit
    print(f"{repo_id} holds {len(files)} files, verified by hash, at commit {commit}.")
    print(f'load_dataset("{repo_id}", revision="{revision}")')


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m dataset_scripts.publish", description="Publish a data set folder on the Hugging Face Hub."
    )
    parser.add_argument("folder", type=Path, help="folder that `prepare` built")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="made if it does not exist")
    parser.add_argument("--dry_run", action="store_true", help="say what would be done")
    parser.add_argument("--private", action="store_true", help="of a new repository")
    parser.add_argument("--revision_tag", metavar="TAG", help="name for this revision, such as v1; never moved")
    parser.add_argument("--overwrite", action="store_true", help="replace the data of another data set")
    parser.add_argument(
        "--num_workers",
        "--workers",
        dest="workers",
        type=int,
        default=0,
        help="processes of the check; 0: one per core",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 published, 2 it cannot be done as asked, 75 not finished and the same command goes on."""
    return exit_code(lambda: _publish(build_parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
