"""Exported folders: all or nothing on disk, and with a README that says what they are and how to load them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_scripts.files import file_sha256

DESCRIPTION = "export.json"


@dataclass
class Readme:
    """What an exported folder says of itself.

    Args:
        code: The lines that load it.
        title: What it is, in a few words.
        language: Of the code.
        facts: What a converter could get wrong, by name.
        lines: Further sentences.
    """

    code: str
    title: str = ""
    language: str = "python"
    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def fact_lines(self) -> list[str]:
        """The facts as text."""
        return [f"{name.replace('_', ' ')}: {_in_words(value)}" for name, value in self.facts.items()]


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder that is not there before, and afterwards is there whole or not at all."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ValueError(f"{output} exists. Give another --output, or remove it first.")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".writing_{output.name}_", dir=output.parent))
    temporary.chmod(0o755)  # a temporary folder is for its owner only
    try:
        yield temporary
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_readme(folder: Path, readme: Readme, origin: dict[str, Any]) -> None:
    """Put README.md and export.json beside the files of a folder, with their hashes."""
    files = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    description = {"what": readme.title, **readme.facts, "from": origin, "sha256": files}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    table = "\n".join(f"| `{name}` | `{value}` |" for name, value in files.items())
    parts = [
        f"# {readme.title}",
        f"Made by `python -m training.export` from {_in_words(origin)}.",
        f"```{readme.language}\n{readme.code}\n```",
        *readme.lines,
        "\n".join(f"- {line}" for line in readme.fact_lines()),
        f"| file | sha256 |\n|---|---|\n{table}",
    ]
    (folder / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(item)}" for name, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
