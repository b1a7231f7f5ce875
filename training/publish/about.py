"""What only the publisher can say of a release, from `about.yaml` in the run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modeling_decodepos.commands.settings import from_values, read_yaml

ABOUT_NAME = "about.yaml"
_DEFAULT_DATA = (
    "`scenes`: drawings of several objects before textured backgrounds, drawn in code by "
    "`python -m dataset_scripts.prepare scenes`. No photo and no person is in them; the code, and so what it draws, "
    "is under Apache-2.0."
)
_DEFAULT_BIASES = (
    "Eight shapes in five textures, evenly drawn; nothing of the real world. What the network prefers in photos is "
    "unknown."
)


@dataclass(frozen=True)
class About:
    """Filled in by hand; what is empty leaves a placeholder in the card, which is not published."""

    license: str = ""  # of the weights, an identifier of the Hub
    data: str = ""  # what the training data are, where they come from, and under which licences
    biases: str = ""  # what they show too often, too rarely or not at all
    base_model: str = ""  # Hub id of the weights that the run started from; empty for random ones
    hub_datasets: Mapping[str, str] = field(default_factory=dict)  # Hub id by the name of the folder that was read
    pictures: bool = False  # whether pictures of training images (views.png, neighbours.jpg …) may be published


def load_about(run_dir: Path, data_dir: Path, is_fresh: bool) -> About:
    """What is said of a run; of one on drawn scenes that began with random weights, everything is known."""
    path = run_dir / ABOUT_NAME
    known: dict[str, object] = {}
    if is_scenes(data_dir):
        known = {"data": _DEFAULT_DATA, "biases": _DEFAULT_BIASES, "pictures": True}
        known |= {"license": "apache-2.0"} if is_fresh else {}  # others' weights may have one that binds these too
    about = from_values(About, known | (read_yaml(path) if path.is_file() else {}), str(path))
    if about.license and not re.fullmatch(r"[a-z0-9.-]+", about.license):
        raise ValueError(
            f"{path}: license is {about.license!r}, expected an identifier of the Hub, such as apache-2.0; other: a "
            "licence that has none."
        )
    if not all(re.fullmatch(r"[\w.-]+/[\w.-]+", str(found)) for found in about.hub_datasets.values()):
        raise ValueError(f"{path}: hub_datasets is {about.hub_datasets!r}, expected lines of `folder name: ORG/NAME`.")
    return about


def is_scenes(data_dir: Path) -> bool:
    """Whether a data set folder was drawn by this program."""
    try:
        manifest = json.loads((data_dir / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest["recipe"]["source"] == "scenes")
    except (OSError, ValueError, KeyError, TypeError):
        return False
