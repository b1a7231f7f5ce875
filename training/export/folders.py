"""Exported folders: all or nothing on disk, and with a page that says what they are and how to load them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.export.checkpoint_files import sha256

DESCRIPTION = "export.json"


@dataclass
class Page:
    """What an exported folder says of itself.

    Args:
        title: What it is, in a few words.
        code: The lines that load it.
        language: Of the code.
        facts: What a converter could get wrong, by name.
        lines: Further sentences.
    """

    title: str
    code: str
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


def write_page(folder: Path, page: Page, origin: dict[str, Any]) -> dict[str, Any]:
    """Put README.md and export.json beside the files of a folder, with their hashes."""
    files = {
        str(file.relative_to(folder)): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in ("README.md", DESCRIPTION)
    }
    description = {"what": page.title, **page.facts, "from": origin, "sha256": files}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    facts = "\n".join(f"- {line}" for line in page.fact_lines())
    table = "\n".join(f"| `{name}` | `{value}` |" for name, value in files.items())
    parts = [
        f"# {page.title}",
        f"Made by `python -m training.export` from {_in_words(origin)}.",
        f"```{page.language}\n{page.code}\n```",
        *page.lines,
        facts,
        f"| file | sha256 |\n|---|---|\n{table}",
    ]
    (folder / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return description


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(item)}" for name, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
