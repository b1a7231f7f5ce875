"""Publishes a finished run on the Hugging Face Hub, so that `AutoModel.from_pretrained("ORG/NAME")` loads it.

python -m training.publish runs/scenes_smoke --repo ORG/NAME --revision_tag v1 --dry_run

Two repositories: ORG/NAME is the plain backbone, ORG/NAME-pretraining student, teacher and heads with their code. Both
are built in RUN/release and checked there first. The same command can be run again at any time: it sends what is
missing, verifies the rest by hash, and tags last. What only you can say of the run stands in RUN/about.yaml.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants
from transformers.utils import logging as transformers_logging

from dataset_scripts.hub.release import Repository, changed_files, refuse_other_tag, release
from training.publish.about import ABOUT_NAME, About, load_about
from training.publish.checks import release_problems
from training.publish.folders import (
    CARD,
    IDENTITY,
    KINDS,
    SUMS,
    Release,
    build_releases,
    identity,
    is_fresh,
    listed_in_sums,
)
from training.publish.numbers import RESULTS_NAME, release_rows
from training.publish.places import local_places
from training.run.folder import RunFiles, read_run


def open_run(run_dir: Path) -> RunFiles:
    """A run that is finished and whole.

    Raises:
        ValueError: It is not.
    """
    try:
        run = read_run(run_dir)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    if run.problems:
        raise ValueError(f"{run_dir} is not whole: {' '.join(run.problems)}")
    if not run.is_finished:
        raise ValueError(f"{run_dir} is not finished: the command that began it goes on, and exports at its end.")
    for kind in KINDS:
        if not (run_dir / "export" / kind / "config.json").is_file():
            raise ValueError(
                f"{run_dir} has no export/{kind}. `python -m training.export RUN/checkpoints/STEP --format {kind} "
                f"--output RUN/export/{kind}` writes it."
            )
    return run


def refuse_foreign(repository: Repository, built: Release, overwrite: bool) -> None:
    """Raises if the repository holds something else than this release."""
    info = repository.info()
    if info is None:
        return
    remote = repository.files(info.sha)
    if IDENTITY not in remote:
        if others := sorted(set(remote) - {".gitattributes", CARD}):
            raise ValueError(
                f"{repository.repo_id} holds {len(others)} files, such as {others[0]}, but no {IDENTITY}: it is no "
                "release of this program, which never writes over others' work. Choose another --repo."
            )
        return
    try:
        theirs = identity(json.loads(repository.read(IDENTITY, info.sha)))
    except (ValueError, AttributeError):
        theirs = {}
    ours = identity(built.facts)
    if theirs.get("project") != ours["project"]:
        raise ValueError(f"{repository.repo_id} has a {IDENTITY} of another program. Choose another --repo.")
    if not overwrite and theirs != ours:
        differing = [f"{key}: there {theirs[key]!r}, here {ours[key]!r}" for key in ours if theirs[key] != ours[key]]
        raise ValueError(
            f"{repository.repo_id} holds the release of another run:\n  " + "\n  ".join(differing) + "\nChoose "
            "another --repo, or say --overwrite to make this its next version; its tags stay what they are."
        )


def _refuse_unfit(releases: Sequence[Release], places: Sequence[str], run_dir: Path) -> None:
    problems = release_problems(releases, places)
    if not problems:
        return
    hint = ""
    if any("still says" in problem for problem in problems):
        hint = (
            f"\nSay what is missing in {run_dir / ABOUT_NAME}: license, data, biases, base_model (docs/publishing.md)."
        )
    raise ValueError(f"The release of {run_dir} is not fit to be published:\n  " + "\n  ".join(problems) + hint)


def _refuse_dangling(about: About, api: HfApi) -> None:
    """Raises if the card would point to a data set that is not there."""
    for name, repo_id in about.hub_datasets.items():
        if Repository(repo_id, "dataset", api).info() is None:
            raise ValueError(
                f"{ABOUT_NAME} says that {name} is {repo_id} on the Hub, where no such data set is to be seen. "
                "Publish it first (`python -m dataset_scripts.publish`), or leave it out."
            )


def _stale(repository: Repository, built: Release) -> Callable[[str], bool]:
    """Which remote files an earlier release put there and this one does not have; what others added stays."""
    info = repository.info()
    if info is None or SUMS not in repository.files(info.sha):
        return lambda path: False
    earlier = listed_in_sums(repository.read(SUMS, info.sha))
    return lambda path: path in earlier


def _show_tree(built: Release, changed: set[str], leaving: Sequence[str]) -> None:
    files = built.files
    print(f"\n{built.repo_id}/")
    for path in sorted(files):
        print(f"  {'upload' if path in changed else 'there '} {files[path].size:>13,}  {path}")
    for path in leaving:
        print(f"  remove {'':>13}  {path}")


def _show(built: Release, repository: Repository | None, private: bool) -> None:
    """What is in the folder, and what would be done with each file."""
    files = built.files
    info = repository.info() if repository else None
    remote = repository.files(info.sha) if repository and info else {}
    changed = set(changed_files(files, remote))
    stale = _stale(repository, built) if repository else lambda path: False
    _show_tree(built, changed, sorted(path for path in remote if path not in files and stale(path)))
    megabytes = sum(files[path].size for path in changed) / 1e6
    visible = "private" if (info.private if info else private) else "public"
    state = visible if info else f"a new repository, {visible}" if repository else "the Hub was not asked"
    print(f"{built.repo_id} ({state}): {len(changed)} of {len(files)} files to upload, {megabytes:,.1f} MB")


def publish(args: argparse.Namespace) -> None:
    """Build, check and upload the release of a run."""
    transformers_logging.disable_progress_bar()
    organisation, _, name = args.repo.partition("/")
    if not organisation or not name or "/" in name:
        raise ValueError(f"--repo is {args.repo!r}, expected ORG/NAME.")
    if name.endswith("-pretraining"):
        raise ValueError(
            f"--repo is {args.repo!r}: leave out -pretraining, which the second repository gets by itself."
        )
    run = open_run(args.run)
    data_path = str(run.description.get("data", {}).get("path"))
    about = load_about(args.run, Path(data_path), is_fresh(run))
    found = [args.run / RESULTS_NAME] if (args.run / RESULTS_NAME).is_file() else []
    rows, left_out = release_rows(run, name, args.results or found)
    for model in left_out:
        print(f"Left out: numbers of {model}, which is neither of this run nor a name that others could find.")
    releases = build_releases(run, args.repo, about, rows, args.output or args.run / "release")
    _refuse_unfit(releases, local_places(args.run, data_path), args.run)
    if args.dry_run and constants.HF_HUB_OFFLINE:
        for built in releases:
            _show(built, None, args.private)
    else:
        _bring(releases, about, args)
    if not about.hub_datasets:
        print(f"No .eval_results: {ABOUT_NAME} names no data set of the Hub (hub_datasets).")
    if args.dry_run:
        print("Nothing was changed: this was a dry run.")


def _bring(releases: Sequence[Release], about: About, args: argparse.Namespace) -> None:
    """Both repositories are looked at before one is changed, and whole before one is tagged."""
    api = HfApi(library_name="decodepos")
    _refuse_dangling(about, api)
    targets = [(Repository(built.repo_id, "model", api), built) for built in releases]
    for repository, built in targets:
        refuse_foreign(repository, built, args.overwrite)
        info = repository.info()
        if info is not None and args.private and not info.private:
            raise ValueError(
                f"{built.repo_id} exists and is public; --private is for a new one. Change it on the Hub."
            )
        refuse_other_tag(repository, built.files, args.revision_tag)
    for repository, built in targets:
        _show(built, repository, args.private)
    if args.dry_run:
        return
    for repository, built in targets:
        release(repository, built.files, _stale(repository, built), args.private)
    for repository, built in targets:
        commit = release(repository, built.files, lambda path: False, args.private, args.revision_tag)
        print(f"{built.repo_id}: {len(built.files)} files, verified by hash, at commit {commit}.")
        revision = args.revision_tag or commit
        code = "" if built.kind == KINDS[0] else ", trust_remote_code=True"
        print(f'  AutoModel.from_pretrained("{built.repo_id}", revision="{revision}"{code})')
