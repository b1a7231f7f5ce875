"""What only the publisher can say of a release, from `about.yaml` in the run folder."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

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
    given: Any = {}
    if path.is_file():
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds a {type(given).__name__}; expected lines of `key: value`.")
    known = {f.name: f for f in dataclasses.fields(About)}
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; expected some of {', '.join(known)}.")
    about = dataclasses.replace(_scenes(is_fresh) if is_scenes(data_dir) else About(), **given)
    for name in ("license", "data", "biases", "base_model"):
        if not isinstance(getattr(about, name), str):
            raise ValueError(f"{path}: {name} is {getattr(about, name)!r}, expected text.")
    if about.license and not re.fullmatch(r"[a-z0-9.-]+", about.license):
        raise ValueError(
            f"{path}: license is {about.license!r}, expected an identifier of the Hub, such as apache-2.0; other: a "
            "licence that has none."
        )
    if not isinstance(about.pictures, bool):
        raise ValueError(f"{path}: pictures is {about.pictures!r}, expected true or false.")
    ids = about.hub_datasets
    if not isinstance(ids, dict) or not all(re.fullmatch(r"[\w.-]+/[\w.-]+", str(found)) for found in ids.values()):
        raise ValueError(f"{path}: hub_datasets is {ids!r}, expected lines of `folder name: ORG/NAME`.")
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
