"""The site of docs/, as it is put together, and the notebook, as it runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import modeling_decodepos.diagnosis
import modeling_decodepos.embedding
import modeling_decodepos.looking
from docs import assemble

ROOT = Path(__file__).parents[1]
TOUR = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in TOUR["cells"] if cell["cell_type"] == "code"]


class Loader(yaml.SafeLoader):
    """Reads what mkdocs.yml says to Python alone as nothing."""


Loader.add_multi_constructor("", lambda *_: None)


def leaves(node: Any) -> list[str]:
    if isinstance(node, str):
        return [node]
    return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in leaves(child)]


def test_every_page_is_in_the_navigation_in_the_order_of_the_work(tmp_path: Path):
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    assemble.assemble(tmp_path / "pages")
    there = {path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.md")}
    assert set(leaves(nav)) == {page for page in there if not page.startswith("api/")} | {"api/index.md"}
    order = ["Diagnose", "Embed", "Remedy", "Train", "Evaluate", "Publish"]
    assert [name for entry in nav for name in entry if name in order] == order


def test_every_public_name_has_a_page():
    pages = assemble.api_pages()
    rooms = (
        modeling_decodepos,
        modeling_decodepos.diagnosis,
        modeling_decodepos.embedding,
        modeling_decodepos.looking,
    )
    names = {f"{room.__name__}.{name}" for room in rooms for name in room.__all__}
    assert pages.keys() == {f"api/{name}.md" for name in names} | {"api/index.md"}
    assert all(f"::: {name}\n" in pages[f"api/{name}.md"] for name in names)


@pytest.mark.parametrize(
    ("link", "page", "found"),
    [
        ("[a](docs/training.md#data)", "README.md", "[a](training.md#data)"),
        ("![a](docs/found.png)", "README.md", "![a](found.png)"),
        ("[![a](docs/found.png)](docs/start.md)", "README.md", "[![a](found.png)](start.md)"),
        ("[![a](docs/found.png)](Makefile)", "README.md", "[![a](found.png)](https://x/blob/HEAD/Makefile)"),
        ("[a](../README.md#two-commands)", "docs/start.md", "[a](index.md#two-commands)"),
        ("[a](tour.ipynb)", "docs/start.md", "[a](tour.md)"),
        ("[a](#here), [b](https://arxiv.org/abs/1)", "docs/start.md", "[a](#here), [b](https://arxiv.org/abs/1)"),
        ("[a](../training/tutorial.py)", "docs/start.md", "[a](https://x/blob/HEAD/training/tutorial.py)"),
        ("[a](nowhere.md)", "docs/start.md", "[a](nowhere.md)"),  # for the build to refuse
        ("```\n[a](../README.md)\n```", "docs/start.md", "```\n[a](../README.md)\n```"),
    ],
)
def test_links_lead_to_pages(link: str, page: str, found: str):
    assert assemble.rewrite(link, page, "https://x") == found


def test_without_an_address_words_remain():
    assert assemble.rewrite("see [the `tutorial`](../training/tutorial.py).", "docs/a.md") == "see the `tutorial`."


def test_every_link_leads_to_a_file_of_the_site(tmp_path: Path):
    assemble.assemble(tmp_path)
    for page in tmp_path.rglob("*.md"):
        prose = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)}
        local = {target for target in targets if target and not re.match(r"[a-z]+:", target)}
        assert {target for target in local if not (page.parent / target).is_file()} == set(), page.name


@pytest.mark.slow
def test_the_site_builds_and_a_broken_link_fails_it(tmp_path: Path):
    pytest.importorskip("mkdocstrings_handlers.python")
    (tmp_path / "modeling_decodepos").symlink_to(ROOT / "modeling_decodepos")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    assemble.assemble(tmp_path / "build" / "pages")
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "build" / "site" / "api" / "modeling_decodepos.pool_regions.html").read_text(encoding="utf-8")
    assert "pool_regions" in page and "RoIAlign" in page
    with (tmp_path / "build" / "pages" / "start.md").open("a") as file:
        file.write("\n[lost](training.md#nowhere)\n")
    assert subprocess.run(build, cwd=tmp_path, capture_output=True).returncode != 0


def test_the_tour_is_plain_python_without_outputs():
    assert not any(cell["outputs"] or cell["execution_count"] for cell in TOUR["cells"] if cell["cell_type"] == "code")
    for source in CODE:  # no magic: what runs without a kernel is what runs with one
        compile(source, "tour.ipynb", "exec")
    assert "pip" in CODE[0] and "find_spec" in CODE[0]
    assert all(re.search(rf"\b{name}\(", "\n".join(CODE)) for name in ("diagnose", "look", "embed", "load_debias"))


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path):
    """Cell after cell in one process; the last expression of a cell, which a kernel shows, must be there too."""
    (tmp_path / "tour.py").write_text("\n".join(CODE), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "tour.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr
    assert "last stage stage3" in done.stdout and "diagnosed in" in done.stdout
    left = ("report/report.html", "look.png", "look.html", "features.safetensors", "run/export/backbone/config.json")
    assert all((tmp_path / name).is_file() for name in (*left, "run/diagnosis/report.html", "run/report.html"))
