"""What CHANGELOG.md says of a release. Ends with 1 where tag, version and changelog do not agree.

python .ci/release.py v0.1.0 > notes.md
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)  # where pyproject.toml reads it, too
HEADING = re.compile(r"^## (\S+)(?: \(([^)]+)\))?$", re.MULTILINE)


def version(root: Path = ROOT) -> str:
    """The version of the checkout."""
    found = VERSION.findall((root / "modeling_decodepos" / "__init__.py").read_text(encoding="utf-8"))
    return str(found[0])


def entries(changelog: str) -> list[tuple[str, str, str]]:
    """Version, day (or "unreleased") and text of each entry, the newest first."""
    parts = HEADING.split(changelog)[1:]
    return [(parts[at], parts[at + 1] or "", parts[at + 2].strip()) for at in range(0, len(parts), 3)]


def notes(tag: str, root: Path = ROOT) -> str:
    """The entry of the version that a tag names."""
    here = version(root)
    if tag != f"v{here}":
        raise ValueError(
            f"The tag is {tag}, and modeling_decodepos/__init__.py says {here}: expected the tag v{here}."
        )
    newest, day, text = entries((root / "CHANGELOG.md").read_text(encoding="utf-8"))[0]
    if newest != here or not re.fullmatch(r"\d{4}-\d\d-\d\d", day):
        raise ValueError(
            f"CHANGELOG.md begins with `## {newest} ({day or 'no day'})`: expected `## {here} (YEAR-MONTH-DAY)` there."
        )
    return text


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(notes(sys.argv[1]))
    except ValueError as error:
        sys.exit(f"release.py: {error}")
