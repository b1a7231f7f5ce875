"""Writes the sources of the site into build/pages: README.md as its first page, docs/, and a page per public name.

The files stay as they are, with links that work in the repository. On the site, a link to a page goes to the page, and
a link to anything else goes to the repository, if `DECODEPOS_REPOSITORY` names its address; else its words remain.
"""

from __future__ import annotations

import importlib
import json
import os
import posixpath
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Pages from outside of docs/, and where they are on the site.
BESIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "model_cards/RESULTS.md": "results.md",
}
PACKAGES = ("modeling_decodepos", *(f"modeling_decodepos.{room}" for room in ("diagnosis", "embedding", "looking")))
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def api_pages() -> dict[str, str]:
    """The text of every page of the API, by its place; mkdocstrings fills in what the source says."""
    pages = {}
    lines = ["# API", "", "What these packages name as public; anything else may change with any release."]
    for package in PACKAGES:
        lines += ["", f"## {package}", ""]
        for name in sorted(importlib.import_module(package).__all__, key=str.lower):
            pages[f"api/{package}.{name}.md"] = f"---\ntitle: {name}\n---\n\n::: {package}.{name}\n"
            lines.append(f"- [`{name}`]({package}.{name}.md)")
    return {"api/index.md": "\n".join(lines) + "\n", **pages}


def notebook_page(path: Path) -> str:
    """A notebook as Markdown, without what came out of it."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text("utf-8"))["cells"]]
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells) + "\n"


def to_site(target: str, page: str, repository: str) -> str:
    """Where a link of a page (a path in the repository) leads on the site; nothing if there is nothing to lead to."""
    path, _, anchor = target.partition("#")
    there = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    if re.match(r"[a-z]+:|/", target) or not path or not (ROOT / there).exists():
        return target  # to other sites, on the same page, or to nothing, which the build refuses
    if place := BESIDE.get(there) or there.partition("docs/")[2].replace(".ipynb", ".md"):
        return f"{place}#{anchor}" if anchor else place
    return f"{repository}/blob/HEAD/{there}" if repository else ""


def rewrite(text: str, page: str, repository: str = "") -> str:
    """The Markdown of a page with the links of the site; blocks of code stay."""

    def link(found: re.Match[str]) -> str:
        target = to_site(found[3], page, repository)
        words = _LINK.sub(link, found[2])  # which may be a picture
        return f"{found[1]}[{words}]({target})" if target else words

    parts = _CODE.split(text)
    return "".join(part if at % 2 else _LINK.sub(link, part) for at, part in enumerate(parts))


def assemble(output: Path, repository: str = "") -> None:
    """Write the sources of the site, in place of those of an earlier call."""
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(ROOT / "docs", output, ignore=shutil.ignore_patterns("*.py", "*.ipynb", "__pycache__"))
    pages = BESIDE | {path.relative_to(ROOT).as_posix(): path.name for path in (ROOT / "docs").glob("*.md")}
    for path, place in pages.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        (output / place).write_text(rewrite(text, path, repository), encoding="utf-8")
    (output / "api").mkdir()
    tours = {f"{path.stem}.md": notebook_page(path) for path in (ROOT / "docs").glob("*.ipynb")}
    for place, text in (api_pages() | tours).items():
        (output / place).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    assemble(ROOT / "build" / "pages", os.environ.get("DECODEPOS_REPOSITORY", ""))
