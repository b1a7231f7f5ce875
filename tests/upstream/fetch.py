"""Brings transformers' own common tests, of the installed version, into a folder that git ignores.

    python -m tests.upstream.fetch

They lie in the source distribution only. Exit code 0 where they cannot be had, too: the tests then skip, and say why.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "upstream"
RELEASE = f"transformers-{version('transformers')}"
TESTS = CACHE / RELEASE / "tests"
PACKAGES = CACHE / "packages"  # what these tests import and we do without


def main() -> None:
    """Download and unpack what is not there yet."""
    if TESTS.is_dir() and PACKAGES.is_dir():
        return
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    requirement, options = RELEASE.replace("-", "==", 1), ["--no-deps", "--no-build-isolation"]
    download = [*pip, "download", "--no-binary", ":all:", *options, "--dest", str(CACHE), requirement]
    install = [*pip, "install", "--no-deps", "--target", str(PACKAGES), "parameterized"]
    for command in (download, install):
        if subprocess.run(command, check=False).returncode:
            print(f"{RELEASE}'s own tests cannot be had here: {' '.join(command[3:])} failed.", file=sys.stderr)
            return
    with tarfile.open(CACHE / f"{RELEASE}.tar.gz") as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and path.parent == Path(RELEASE) / "tests" and path.suffix == ".py":
                TESTS.mkdir(parents=True, exist_ok=True)
                (TESTS / path.name).write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
    (TESTS / "__init__.py").touch()


if __name__ == "__main__":
    main()
