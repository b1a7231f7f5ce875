"""Packages out of the index that pip is set up for, unpacked into a temporary folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions
from pathlib import Path


class CannotBeHad(Exception):
    """Why one network is missing from the table."""


@contextmanager
def unpacked(names: Sequence[str]) -> Iterator[tuple[Distribution, Path]]:
    """What is known of the first of some packages, and the folder from which all of them can be imported for now.

    Wheels only, so that nothing of a package runs before it is imported; without what they depend on.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder]
        done = subprocess.run([*pip, "--no-deps", "--only-binary=:all:", *names], capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
            reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
            raise CannotBeHad(f"pip cannot install {' '.join(names)}: {reason}")
        sys.path.append(folder)  # at the end: what is installed comes first
        try:
            yield next(d for d in distributions(path=[folder]) if _plain(d.name) == _plain(names[0])), Path(folder)
        finally:
            sys.path.remove(folder)


def stated_licence(package: Distribution) -> str:
    """The licence as the package's metadata and the first two lines of its licence file state it."""
    fields = package.metadata.get_all("License-Expression", []) + package.metadata.get_all("License", [])
    stated = [field.splitlines()[0] for field in fields if field not in ("", "UNKNOWN")]
    classifiers = package.metadata.get_all("Classifier", [])
    stated += [line.rpartition("::")[2].strip() for line in classifiers if line.startswith("License ::")]
    for file in package.files or []:
        if file.parts[0].endswith(".dist-info") and file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING")):
            lines = file.read_text(encoding="utf-8").splitlines()
            first = [line.strip() for line in lines if line.strip()][:2]
            stated.append(f"{file.name}: {', '.join(first)}")
    return "; ".join(dict.fromkeys(stated)) or "none stated"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
