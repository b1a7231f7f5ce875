"""Absolute paths of the machine of a run become names: paths are not published."""

from __future__ import annotations

import shlex
from pathlib import Path, PurePath
from typing import Any


def without_places(value: Any) -> Any:
    """The same JSON with the name of a file or folder wherever its absolute path was the whole text."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return _name_of(value) if isinstance(value, str) else value


def command_without_places(command: str) -> str:
    """A command line with names for absolute paths, also after `--key=`."""
    words = []
    for word in shlex.split(command):
        key, equals, path = word.partition("=")
        words.append(f"{key}={_name_of(path)}" if equals and key.startswith("--") else _name_of(word))
    return shlex.join(words)


def local_places(run_dir: Path, data_path: str) -> list[str]:
    """What no published text may hold: absolute paths of the run, its data, and the user's home."""
    known = [run_dir.resolve(), Path.home(), *([PurePath(data_path)] if PurePath(data_path).is_absolute() else [])]
    return [f"{path}" if path != Path.home() else f"{path}/" for path in known]


def _name_of(text: str) -> str:
    path = PurePath(text)
    return path.name if path.is_absolute() and path.name else text
