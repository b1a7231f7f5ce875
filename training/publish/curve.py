"""The loss over the steps as a picture file."""

from __future__ import annotations

import re

from modeling_decodepos.page import line_chart
from training.run.folder import RunFiles

# The chart takes its colours from the page around it, which a file does not have. A white ground, also in dark mode.
_SVG = "http://www.w3.org/2000/svg"
_STYLE = (
    "svg{background:#fff;font-family:sans-serif}.tick{fill:#5c6676;font-size:12px}.grid{stroke:#e2e6ed}"
    ".line{fill:none;stroke:#2563eb;stroke-width:2}.dot{fill:#2563eb}.strip{display:none}"
)


def loss_picture(run: RunFiles) -> str:
    """Text of an SVG file; it has no scripts and refers to nothing."""
    found = re.search(r"<svg\b(.*?</svg>)", str(line_chart({"loss": run.points("loss")}, title="loss")), re.DOTALL)
    if found is None:
        return f'<svg xmlns="{_SVG}" viewBox="0 0 300 40"><text y="25">no loss was logged</text></svg>\n'
    head, body = found[1].split(">", 1)
    return f'<svg xmlns="{_SVG}"{head}><style>{_STYLE}</style>{body}\n'
