"""Cards and the results page from JSON.

    python -m model_cards.render            # writes RESULTS.md, cards/*.md and weights/*/README.md here, the numbers
                                            # in ../docs, and the drawings of evidence.md
    python -m model_cards.render --check    # says which of them are not what the JSON says, and changes nothing

Numbers are in results/*.json. A release that lies in weights/ has its card there. Of one that does not, `release.json`
is in models/ and `results.json` in results/, both copied from the folder that `python -m training.publish` built; its
card in cards/ is a template.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from model_cards import networks, remedy
from model_cards.cards import render_card
from model_cards.evidence import FIGURES, PAGES, draw, draw_contrasts, is_sweep, load_sweeps, with_sweeps
from model_cards.results import LABELS, Row, load_rows
from model_cards.tables import before_and_after, metric_list, number_table, origin_table
from modeling_decodepos.commands.settings import CommandParser

HERE = Path(__file__).parent
SMOKE_MODEL = "decodepos-scenes-smoke"
SMOKE_MARKS = "<!-- numbers: python -m model_cards.render -->", "<!-- end of numbers -->"
MEANINGS = {
    "reproduced": "A published number that was met under its own protocol.",
    "reduced scale": "Measured by us, on less data, for fewer steps or on smaller pictures than published work.",
    "quoted": "Read elsewhere, in the text that is named, and not measured by us.",
}


def render_all(folder: Path) -> dict[Path, str]:
    """The text of every page, by where it belongs."""
    paths = [*(folder / "results").glob("*.json"), *(folder / "weights").glob("*/results.json")]
    # Results of a release that lies here go by the name of its folder.
    names = {path: path.parent.name if path.stem == "results" else path.stem for path in paths}
    # Which have pages, or places on pages, of their own.
    apart, remedied = (folder / "results" / name for name in (networks.RESULTS, remedy.RESULTS))
    rows = {
        name: load_rows(path)
        for path, name in sorted(names.items(), key=lambda item: item[1])
        if path not in (apart, remedied) and not is_sweep(path)
    }
    pages = {folder / "RESULTS.md": results_page([row for found in rows.values() for row in found])}
    for path in sorted([*(folder / "models").glob("*.json"), *(folder / "weights").glob("*/release.json")]):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["model"] not in rows:
            raise ValueError(
                f"{path} is of {facts['model']}, whose numbers are not there: no results/{facts['model']}.json."
            )
        if path.name == "release.json":
            release = path.parent
            place = release.relative_to(folder.parent).as_posix()
            card = pages[release / "README.md"] = render_card(facts, rows[facts["model"]], folder=place)
            sums = (release / "SHA256SUMS").read_text(encoding="utf-8")
            digest = hashlib.sha256(card.encode()).hexdigest()
            pages[release / "SHA256SUMS"] = re.sub(r"\w+(?=  README\.md$)", digest, sums, flags=re.MULTILINE)
        else:
            card = render_card(facts, rows[facts["model"]], is_template=True)
            pages[folder / "cards" / f"{facts['repo'].partition('/')[2]}.md"] = card
    if SMOKE_MODEL in rows:
        page = folder.parent / "docs" / "training.md"
        pages[page] = with_results(page.read_text(encoding="utf-8"), rows[SMOKE_MODEL])
    if sweeps := load_sweeps(folder / "results"):
        for page in (folder.parent / name for name in PAGES):
            pages[page] = with_sweeps(page.read_text(encoding="utf-8"), sweeps)
        for name, values in sweeps.items():
            pages[folder.parent / FIGURES / f"{name}.svg"] = draw(values)
            if values["sweep"].get("contrasts"):
                pages[folder.parent / FIGURES / f"{name}_contrasts.svg"] = draw_contrasts(values)
    if apart.is_file():
        page, found = folder.parent / networks.PAGE, load_rows(apart)
        pages[page] = networks.with_tables(page.read_text(encoding="utf-8"), found)
        pages[folder.parent / networks.FIGURE] = networks.draw(found)
    if remedied.is_file():
        entries = json.loads(remedied.read_text(encoding="utf-8"))
        for page in (folder.parent / name for name in remedy.PAGES):
            pages[page] = remedy.with_tables(pages.get(page) or page.read_text(encoding="utf-8"), entries)
        pages[folder.parent / remedy.FIGURE] = remedy.draw(entries)
    return pages


def with_results(page: str, rows: Sequence[Row]) -> str:
    """The page with these numbers between its two marks."""
    head, begin, rest = page.partition(SMOKE_MARKS[0])
    _, end, tail = rest.partition(SMOKE_MARKS[1])
    if not begin or not end:
        raise ValueError(f"docs/training.md lacks {' or '.join(SMOKE_MARKS)}, between which the numbers belong.")
    return f"{head}{begin}\n{before_and_after(rows, 'before training', 'both')}\n{end}{tail}"


def results_page(rows: Sequence[Row]) -> str:
    """Every number, under its label."""
    parts = [
        "# Results",
        "Written by `python -m model_cards.render` from `results/*.json`; change those. There is no number of the "
        "paper (arXiv 2303.16947) here, because none could be read. Comparisons of arms over seeds are on the page "
        "[evidence](../docs/evidence.md).",
    ]
    for label in LABELS:
        chosen = [row for row in rows if row["label"] == label]
        parts += [f"## {label.capitalize()}", MEANINGS[label]]
        if chosen:
            parts += filter(
                None, [number_table(chosen, with_model=True), metric_list(chosen), "How:", origin_table(chosen)]
            )
        else:
            parts.append("None yet.")
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, or as they should be; 1 not as they should be; 2 the JSON cannot be shown."""
    parser = CommandParser(prog="python -m model_cards.render", description="Write cards from JSON.")
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args(arguments)
    try:
        pages = render_all(HERE)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    stale += [path for path in (HERE / "cards").glob("*.md") if path not in pages]
    for path in stale:
        print(f"{'differs' if args.check else 'written'}: {path}")
        if not args.check:
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(pages[path], encoding="utf-8") if path in pages else path.unlink()
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
