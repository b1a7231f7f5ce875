"""The pages for people: their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """What a link can point to, as GitHub makes it of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:", target):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (anchor and anchor not in anchors(there)):
                lost.append(target)
    assert lost == []


@pytest.mark.parametrize("name", ["concepts.md", "troubleshooting.md"])
def test_what_they_name_in_code_exists(name: str):
    """Flags, recipe keys, functions and tables are spelt as they are in the source."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    rooms = ("modeling_decodepos", "training", "dataset_scripts")
    source = "\n".join(path.read_text(encoding="utf-8") for room in rooms for path in (ROOT / room).rglob("*.py"))
    flags = {flag.replace("-", "[-_]") for flag in re.findall(r"`--([a-z][\w-]+)", text)} - {"shm[-_]size"}
    flags -= {"main_process_port", "master_port"}  # of the launchers
    words = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+|[A-Z]+_[A-Z_]+)`", text)) - {"data_wait", "HF_HOME"}
    assert len(flags | words) > 9
    assert not [word for word in flags | words if not re.search(rf"\b{word}\b", source)]
