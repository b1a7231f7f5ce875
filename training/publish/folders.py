"""The two folders of a release, as they will lie on the Hub.

    NAME              the plain backbone, which loads without any code of ours
    NAME-pretraining  student, teacher and heads, with the code that loads them at its root

Both hold release.json (whose release this is), README.md (the card), results.json and .eval_results/ (the numbers),
recipe.yaml, training/ (log, curve, report), diagnosis/ where there is one, the licence of the code, and SHA256SUMS.
The same run gives the same files, byte for byte: that is how a second call knows that nothing is left to do.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dataset_scripts.files import file_sha256, read_json
from dataset_scripts.hub.release import LocalFile
from model_cards.cards import eval_entries, render_card
from modeling_decodepos.backbones import BACKBONES
from modeling_decodepos.commands.settings import write_yaml
from modeling_decodepos.diagnosis.report.eval_results import write_eval_results
from modeling_decodepos.drawing.page import line_chart
from training.export.folders import new_folder
from training.publish.about import About, is_scenes
from training.publish.numbers import RESULTS_NAME, Row, objective, probe_sentence
from training.run.folder import RunFiles
from training.run.gains import DIAGNOSIS
from training.run.places import command_without_places, without_places
from training.run.report import write_report

IDENTITY, SUMS, CARD = "release.json", "SHA256SUMS", "README.md"
KINDS = ("backbone", "pretraining")
WEIGHTS = "model.safetensors"
LICENSE_FILE = Path(__file__).parents[2] / "LICENSE"
_LOGS = ("log.jsonl", "probe.json", "probe.png")
_PICTURES = (
    "views.png",
    "neighbours.jpg",
    "neighbours.json",
    "similarity.png",
)  # of training images, which may be other people's
_PAGE, _NUMBERS = "report.html", "report.json"  # of a diagnosis; the page shows some of its pictures
# The chart takes its colours from the page around it, which a file does not have. A white ground, also in dark mode.
_SVG = "http://www.w3.org/2000/svg"
_STYLE = (
    "svg{background:#fff;font-family:sans-serif}.tick{fill:#5c6676;font-size:12px}.grid{stroke:#e2e6ed}"
    ".line{fill:none;stroke:#2563eb;stroke-width:2}.dot{fill:#2563eb}.strip{display:none}"
)


@dataclass(frozen=True)
class Release:
    """One built folder, for one repository."""

    kind: str
    repo_id: str
    folder: Path
    facts: Mapping[str, Any]

    @cached_property
    def files(self) -> dict[str, LocalFile]:
        """By path."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): LocalFile(path) for path in paths}


def build_releases(run: RunFiles, repo_id: str, about: About, rows: Sequence[Row], output: Path) -> list[Release]:
    """Both folders below `output`, made anew: the pre-training model first, for the backbone's card links to it."""
    releases = []
    for kind in reversed(KINDS):
        target = repo_id if kind == "backbone" else f"{repo_id}-pretraining"
        folder = output / target.partition("/")[2]
        if folder.exists() and not (folder / IDENTITY).is_file():
            raise ValueError(
                f"{folder} exists and is no release of this program. Give another --output, or remove it."
            )
        facts = release_facts(run, kind, repo_id, about)
        with new_folder(folder, replace=True) as building:
            _fill(building, run, facts, rows, about)
        releases.append(Release(kind, target, folder, facts))
    return releases


def release_facts(run: RunFiles, kind: str, repo_id: str, about: About) -> dict[str, Any]:
    """What release.json says: everything that the card says and that is no number of an evaluation."""
    described, recipe = run.description, run.recipe
    data = described.get("data", {})
    exported = run.folder / "export" / kind
    seconds = sum(line.get("seconds") or 0 for line in run.log)
    seen = run.step * int(recipe.get("global_batch_size") or 0)
    return {
        "project": "decodepos",
        "version": described.get("versions", {}).get("decodepos"),
        "kind": kind,
        "repo": repo_id if kind == "backbone" else f"{repo_id}-pretraining",
        "model": repo_id.partition("/")[2],
        "arm": objective(run),
        "recipe_name": described.get("recipe_name"),
        "command": command_without_places(str(described.get("command") or "")),
        "commit": described.get("commit"),
        "started": described.get("started"),
        "resumed": [again.get("commit") for again in described.get("resumed", [])],
        "objective": objective(run),
        "terms": run.terms,
        "steps": run.step,
        "batch_size": recipe.get("global_batch_size"),
        "seed": recipe.get("seed"),
        "cost": f"{seen:,} images, {seconds / 3600:.2f} hours of steps on the machine below; energy was not measured",
        "machine": ", ".join(f"{key} {value}" for key, value in described.get("machine", {}).items()),
        "versions": ", ".join(f"{key} {value}" for key, value in described.get("versions", {}).items()),
        "data": {
            "name": Path(str(data.get("path"))).name,
            "source": "scenes" if is_scenes(Path(str(data.get("path")))) else "",
            **{key: data.get(key) for key in ("split", "images", "hash")},
        },
        "started_from": about.base_model or ("random weights" if is_fresh(run) else ""),
        "network": _network(exported, recipe),
        "about": {name: value for name, value in vars(about).items() if name != "pictures"},
        "probe": probe_sentence(run),
        "diagnosis": bool(diagnosis_files(run, about)),
        "diagnosis_page": _PAGE in diagnosis_files(run, about),
    }


def diagnosis_files(run: RunFiles, about: About) -> list[str]:
    """What goes out of the run's diagnosis: its page only where no picture of others is on it."""
    folder = run.folder / DIAGNOSIS
    if not (folder / _NUMBERS).is_file():
        return []
    drawn = read_json(folder / _NUMBERS).get("settings", {}).get("data") == "scenes"
    return [
        name for name in (_NUMBERS, _PAGE) if (folder / name).is_file() and (name != _PAGE or drawn or about.pictures)
    ]


def is_fresh(run: RunFiles) -> bool:
    """Whether a run began with random weights; what it began with otherwise, only its publisher knows."""
    return run.recipe.get("backbone") in BACKBONES


def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two releases the same release: another version of it comes from the same run."""
    return {key: facts.get(key) for key in ("project", "kind", "model", "recipe_name", "command", "started")}


def write_sums(folder: Path) -> None:
    """SHA256SUMS of everything else, as `sha256sum -c` reads it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def listed_in_sums(text: str) -> set[str]:
    """The paths that a SHA256SUMS names, itself among them."""
    return {SUMS, *(line.partition("  ")[2] for line in text.splitlines() if "  " in line)}


def _fill(folder: Path, run: RunFiles, facts: Mapping[str, Any], rows: Sequence[Row], about: About) -> None:
    for path in sorted((run.folder / "export" / facts["kind"]).iterdir()):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(LICENSE_FILE, folder / "LICENSE-CODE")
    _write_json(folder / IDENTITY, facts)
    _write_json(folder / RESULTS_NAME, {"results": list(rows)})
    if entries := eval_entries(facts, rows):
        write_eval_results(folder, "decodepos", entries)
    (folder / "recipe.yaml").write_text(write_yaml(without_places(run.recipe)), encoding="utf-8")
    for name in diagnosis_files(run, about):
        (folder / DIAGNOSIS).mkdir(exist_ok=True)
        shutil.copyfile(run.folder / DIAGNOSIS / name, folder / DIAGNOSIS / name)
    _copy_training(folder / "training", run, facts, about)
    (folder / CARD).write_text(render_card(facts, rows), encoding="utf-8")
    write_sums(folder)


def _copy_training(folder: Path, run: RunFiles, facts: Mapping[str, Any], about: About) -> None:
    """The run without its weights, and a report that is written anew from what is here."""
    folder.mkdir()
    described = without_places(run.description) | {"command": facts["command"]}
    plain = facts["repo"].removesuffix("-pretraining")
    described["export"] = {"backbone": plain, "pretraining": f"{plain}-pretraining"}
    for again in described.get("resumed", []):
        again["command"] = command_without_places(str(again.get("command") or ""))
    _write_json(folder / "run.json", described)
    for name in (*_LOGS, *(_PICTURES if about.pictures else ())):
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, folder / name)
    (folder / "loss.svg").write_text(_loss_picture(run), encoding="utf-8")
    report = write_report(folder, f"../{DIAGNOSIS}")
    report.write_text(report.read_text(encoding="utf-8").replace(str(folder), "training"), encoding="utf-8")


def _loss_picture(run: RunFiles) -> str:
    """The loss over the steps as text of an SVG file; it has no scripts and refers to nothing."""
    found = re.search(r"<svg\b(.*?</svg>)", str(line_chart({"loss": run.points("loss")}, title="loss")), re.DOTALL)
    if found is None:
        return f'<svg xmlns="{_SVG}" viewBox="0 0 300 40"><text y="25">no loss was logged</text></svg>\n'
    head, body = found[1].split(">", 1)
    return f'<svg xmlns="{_SVG}"{head}><style>{_STYLE}</style>{body}\n'


def _network(exported: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    config = read_json(exported / "config.json")
    try:
        with safe_open(exported / WEIGHTS, framework="pt") as weights:
            shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118  no mapping
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{exported / WEIGHTS} cannot be read as safetensors ({error}). Export it anew.") from None
    return {
        "model_type": config.get("backbone_config", config).get("model_type"),
        "architecture": ", ".join(config.get("architectures") or []),
        "weights": sum(math.prod(shape) for shape in shapes),
        "image_size_px": recipe.get("view_size_px"),
        "region_bins": recipe.get("region_bins"),
        "centre_cells": bool(recipe.get("centre_cells")),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
