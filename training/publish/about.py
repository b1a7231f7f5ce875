"""What only the publisher can say of a release, from `about.yaml` in the run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modeling_decodepos.settings import from_values, read_yaml

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
    """Filled in by hand; what is empty leaves a placeholder in the card, which is not published.

    Attributes:
        license: Of the weights, a licence identifier of the Hub.
        data: What the training data are, where they come from, and under which licences.
        biases: What they show too often, too rarely or not at all.
        base_model: Hub id of the weights that the run started from; empty for random ones.
        hub_datasets: Hub id of each data set, by the name of the folder that it was read from.
        pictures: Whether pictures of training images (`views.png`, `neighbours.jpg`) may be published.
    """

    license: str = ""
    data: str = ""
    biases: str = ""
    base_model: str = ""
    hub_datasets: Mapping[str, str] = field(default_factory=dict)
    pictures: bool = False


def load_about(run_dir: Path, data_dir: Path, is_fresh: bool) -> About:
    """What is said of a run; of one on drawn scenes that began with random weights, everything is known.

    Args:
        run_dir: Where `about.yaml` may be.
        data_dir: What the run was trained on, if it is still there.
        is_fresh: Whether it began with random weights; others' may have a licence that binds these too.
    """
    path = run_dir / ABOUT_NAME
    known = _scenes(is_fresh) if is_scenes(data_dir) else About()
    about = from_values(About, vars(known) | (read_yaml(path) if path.is_file() else {}), str(path))
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


def _scenes(is_fresh: bool) -> About:
    return About(license="apache-2.0" if is_fresh else "", data=_DEFAULT_DATA, biases=_DEFAULT_BIASES, pictures=True)
