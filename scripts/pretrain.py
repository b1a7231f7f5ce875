# /// script
# requires-python = ">=3.11"
# dependencies = ["decodepos[train]>=0.1.0"]
#
# [tool.hf-jobs]
# flavor = "l4x1"
# timeout = "12h"
# ///
"""Train from nothing but uv and git: training/pretrain.py of the checkout of a tag, which the wheel does not hold.

uv run scripts/pretrain.py --repository URL --recipe posttrain --backbone MODEL --data PICTURES --output_dir runs/mine

All further flags are keys of the recipe. docs/jobs.md runs it on a rented GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import modeling_decodepos


def build_parser() -> argparse.ArgumentParser:
    """The flags that are not the recipe's."""
    about, rest = "Train with the checkout of a tag.", "All other flags are keys of the recipe."
    parser = argparse.ArgumentParser("pretrain.py", description=about, epilog=rest, allow_abbrev=False)
    add = parser.add_argument
    add("--repository", required=True, metavar="URL_OR_FOLDER", help="where git finds the repository of decodepos")
    add("--tag", default=f"v{modeling_decodepos.__version__}", help="what is checked out (default: %(default)s)")
    add("--checkout", type=Path, default=Path("decodepos-checkout"), help="folder for it (default: %(default)s)")
    add("--recipe", default="scenes_smoke", help="a name in training/recipes, or a file (default: %(default)s)")
    return parser


def check_out(repository: str, tag: str, folder: Path) -> None:
    """Clone the tag into the folder, or see that it is there already."""
    if not folder.exists():
        clone = ["clone", "--quiet", "--depth", "1", "--branch", tag, repository, str(folder)]
        call = ["git", "-c", "advice.detachedHead=false", *clone]
        if done := subprocess.run(call).returncode:
            raise ValueError(f"git could not check out the tag {tag} of {repository} (exit code {done}).")
    call = ["git", "-C", str(folder), "describe", "--tags", "--exact-match", "--match", tag]
    if subprocess.run(call, capture_output=True, text=True).stdout.strip() != tag:
        raise ValueError(f"{folder} is there and is not the tag {tag}: remove it, or name another with --checkout.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the training; 2 where there is nothing to train with."""
    args, keys = build_parser().parse_known_args(arguments)
    try:
        check_out(args.repository, args.tag, args.checkout)
        named = args.checkout / "training" / "recipes" / f"{args.recipe}.yaml"
        recipe = named if named.is_file() else Path(args.recipe)
        if not recipe.is_file():
            known = ", ".join(sorted(path.stem for path in named.parent.glob("*.yaml")))
            raise ValueError(f"--recipe is {args.recipe!r}: no file, and none of {known}.")
    except (ValueError, FileNotFoundError) as error:
        print(f"pretrain.py: {error}", file=sys.stderr)
        return 2
    here = os.environ | {"PYTHONPATH": str(args.checkout.resolve())}
    call = [sys.executable, str(args.checkout / "training" / "pretrain.py"), str(recipe), *keys]
    return subprocess.run(call, env=here).returncode


if __name__ == "__main__":
    sys.exit(main())
