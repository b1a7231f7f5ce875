"""What networks make of pictures, as a page: patches that answer to a click, and what leaks into the box."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup
from PIL import Image

from ..diagnosis.report.figures import as_pixels
from ..diagnosis.report.patches import SCRIPT, patch_row
from ..drawing.page import details, page, table
from .found import draw_box, figures, format_share, format_value, results, show_figure
from .run import Asked, Look
from .sheet import draw_look

_BOX_PX = 320


def save_look(found: Look, output: str | Path) -> tuple[Path, Path]:
    """Writes OUTPUT.png and OUTPUT.html, and returns their paths."""
    base = Path(output)
    base.parent.mkdir(parents=True, exist_ok=True)
    drawn, written = (base.with_name(base.name + suffix) for suffix in (".png", ".html"))
    draw_look(found).quantize(256).save(drawn, optimize=True)
    written.write_text(look_page(found), encoding="utf-8")
    return drawn, written


def look_page(found: Look) -> str:
    """The page as HTML."""
    names = [seen.model.name for seen in found.seen]
    lead = (
        "The square in the middle of each picture, as the networks see it. Click on a picture: bright is what the "
        "last stage finds like that place. The colours of a map are its three strongest directions, the same in all "
        "pictures of a network."
    )
    warning = (
        "One box of one picture shows what to look for and proves nothing: decodepos diagnose measures the same over "
        "many pictures, with intervals, beside random weights."
    )
    sections = [(asked.name, _section(found, number)) for number, asked in enumerate(found.asked)]
    return page(
        f"A look at {' and '.join(names)}",
        sections,
        lead=Markup("<p>{}</p>").format(lead),
        footer=warning,
        script=SCRIPT,
    )


def _section(found: Look, number: int) -> Markup:
    asked = found.asked[number]
    below = Image.fromarray(as_pixels(asked.view))
    maps = [(seen.model, seen.features) for seen in found.seen]
    rows = [patch_row(maps, number, point, below) for point in asked.points]
    shown = [show_figure(draw_box(as_pixels(asked.view), asked.box, _BOX_PX), "the box in question")]
    shown += [
        show_figure(
            draw_box(seen.leaks[number].heat[-1], asked.box, _BOX_PX),
            f"{seen.model.name}: {format_share(seen.leaks[number].outside[-1])} of the gradient outside the box",
        )
        for seen in found.seen
    ]
    heading = Markup("<h3>What the feature of the box answers to</h3>")
    return Markup("\n").join([*rows, heading, figures(shown), _leaks(found, number), *_more(found, number, asked)])


def _leaks(found: Look, number: int) -> Markup:
    header = ["last stage of", "context leak", "place on a blank page, R²"]
    rows = [
        [seen.model.name, format_value(seen.leaks[number].leak[-1]), format_value(seen.common.position[-1].value)]
        for seen in found.seen
    ]
    return table(header, rows)


def _more(found: Look, number: int, asked: Asked) -> list[Markup]:
    return [
        details(
            f"{seen.model.name}: every stage, and the box with something exchanged",
            results(seen.common, seen.leaks[number], asked.view, asked.box),
        )
        for seen in found.seen
    ]
