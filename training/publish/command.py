"""Publishes a finished run on the Hugging Face Hub, so that `AutoModel.from_pretrained("ORG/NAME")` loads it.

python -m training.publish runs/scenes_smoke --repo ORG/NAME --revision_tag v1 --dry_run

Two repositories: ORG/NAME is the plain backbone, ORG/NAME-pretraining student, teacher and heads with their code. Both
are built in RUN/release and checked there first. The same command can be run again at any time: it sends what is
missing, verifies the rest by hash, and tags last. What only you can say of the run stands in RUN/about.yaml.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants
from transformers.utils import logging as transformers_logging

from dataset_scripts.hub.release import Repository, Snapshot, Upload, check_repo_name, publish_all
from training.publish.about import ABOUT_NAME, About, load_about
from training.publish.checks import refuse_unfit
from training.publish.folders import (
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
from training.run.folder import RunFiles, read_run
from training.run.places import local_places


def open_run(run_dir: Path) -> RunFiles:
    """A run that is finished and whole; raises if it is not."""
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


def refuse_foreign(held: Snapshot, built: Release, overwrite: bool) -> None:
    """Raises if a repository holds something else than this release."""
    repo_id = held.repository.repo_id
    if not held.refuse_unowned(IDENTITY, "Choose another --repo: the work of others is never written over."):
        return
    try:
        theirs = identity(json.loads(held.read(IDENTITY)))
    except (ValueError, AttributeError):
        theirs = {}
    ours = identity(built.facts)
    if theirs.get("project") != ours["project"]:
        raise ValueError(f"{repo_id} has a {IDENTITY} of another program. Choose another --repo.")
    if not overwrite and theirs != ours:
        differing = [f"{key}: there {theirs[key]!r}, here {ours[key]!r}" for key in ours if theirs[key] != ours[key]]
        raise ValueError(
            f"{repo_id} holds the release of another run:\n  " + "\n  ".join(differing) + "\nChoose another --repo, "
            "or say --overwrite to make this its next version; its tags stay what they are."
        )


def _refuse_dangling(about: About, api: HfApi) -> None:
    """Raises if the card would point to a data set that is not there."""
    for name, repo_id in about.hub_datasets.items():
        if Repository(repo_id, "dataset", api).latest() is None:
            raise ValueError(
                f"{ABOUT_NAME} says that {name} is {repo_id} on the Hub, where no such data set is to be seen. "
                "Publish it first (`python -m dataset_scripts.publish`), or leave it out."
            )


def _put_there_earlier(held: Snapshot) -> set[str]:
    """What an earlier release put there; what others added stays."""
    return listed_in_sums(held.read(SUMS)) & held.files.keys() if SUMS in held.files else set()


def publish(args: argparse.Namespace) -> None:
    """Build, check and upload the release of a run."""
    transformers_logging.disable_progress_bar()
    check_repo_name(args.repo, f"{args.repo}-pretraining")
    name = args.repo.partition("/")[2]
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
    refuse_unfit(releases, args.run, local_places(args.run, data_path))
    api = HfApi(library_name="decodepos")
    if not (args.dry_run and constants.HF_HUB_OFFLINE):
        _refuse_dangling(about, api)
    uploads = [
        Upload(
            Repository(built.repo_id, "model", api),
            built.files,
            refuse_foreign=partial(refuse_foreign, built=built, overwrite=args.overwrite),
            find_stale=_put_there_earlier,
        )
        for built in releases
    ]
    commits = publish_all(uploads, args.private, args.revision_tag, args.dry_run)
    for repo_id, commit in commits.items():
        code = ", trust_remote_code=True" if repo_id.endswith("-pretraining") else ""
        print(f'  AutoModel.from_pretrained("{repo_id}", revision="{args.revision_tag or commit}"{code})')
    if not about.hub_datasets:
        print(f"No .eval_results: {ABOUT_NAME} names no data set of the Hub (hub_datasets).")
