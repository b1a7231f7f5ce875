"""What a run that continues weights gained and lost: the diagnosis of both ends, and its main numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from modeling_decodepos.diagnosis import diagnose, load_model, save_report
from modeling_decodepos.diagnosis.data.probe import ProbeData, RegionImages, Swaps
from modeling_decodepos.diagnosis.measures.metrics import BY_KEY
from modeling_decodepos.diagnosis.models.networks import short_name
from modeling_decodepos.diagnosis.report.verdicts import TITLES, write_estimate
from modeling_decodepos.diagnosis.statistics.estimates import Estimate, overlap
from modeling_decodepos.drawing.page import MINUS, NO_NUMBER, PERCENT
from modeling_decodepos.modeling_decodepos import DecodePosModel
from modeling_decodepos.stored_models import load_whole
from training.export.folders import export_backbone, new_folder
from training.probes.during import OnlineMeasures

DIAGNOSIS = "diagnosis"
"""Folder of the run that the diagnosis of both ends is written to."""

START, AFTER = "start", "after"
MOST_IMAGES = 256  # of the gallery, and of the queries: minutes on one core with a small network
_MEASURES = "position,context,object_knn,same_object"
_WITH_CLASSES = ("knn_clean_class_mean", "knn_recontextualised_class_mean", "knn_repositioned_class_mean")
_WITHOUT = ("same_recontextualised", "same_repositioned", "same_alone")
_ALWAYS = ("context_leak", "position_regions")


@dataclass(frozen=True)
class Gain:
    """One number of the last stage at both ends, as people read it."""

    title: str
    better: str  # lower or higher
    before: str
    after: str
    change: str
    word: str  # gained, lost, no difference; empty where no interval allows one
    tone: str  # good, bad, plain


def name_of(backbone: str) -> str:
    """What a recipe's backbone is called: a Hub id as it is, a folder by the last of its names that says something."""
    return (
        PurePath(backbone).name
        if PurePath(backbone).is_absolute() and not Path(backbone).is_dir()
        else short_name(backbone)
    )


def diagnose_both(
    online: OnlineMeasures, start: Path, after: Path, output: Path, *, name: str, size_px: int, seed: int, device: str
) -> None:
    """Writes the diagnosis of the weights a run began with, beside those it exports, to a new folder.

    Both are read as plain backbones, on the pictures of the run's own measures; the first ones, where they are many.
    """
    net = load_whole(DecodePosModel, start)
    reading = "known" if net.config.centre_cells else "own"
    with tempfile.TemporaryDirectory() as folder:
        ends = {START: export_backbone(net, Path(folder) / START, size_px), AFTER: after}
        models = [
            load_model(str(path), size_px=size_px, device=device, name=f"{name} ({end})", reading=reading)
            for end, path in ends.items()
        ]
        data = as_probe(online, size_px, seed)
        found = diagnose(
            models,
            data,
            size_px=size_px,
            seed=seed,
            random_seeds=1,
            measures=_MEASURES,
            device=device,
            reading=reading,
        )
    if found.failed:
        raise ValueError("; ".join(found.failed.values()))
    with new_folder(output, replace=True) as writing:
        save_report(found, writing)


def as_probe(online: OnlineMeasures, size_px: int, seed: int) -> ProbeData:
    """The pictures of a run's measures, at most `MOST_IMAGES` of either side, as a diagnosis takes them."""
    gallery, queries = (_first_images(side, MOST_IMAGES) for side in (online.gallery, online.queries))
    swaps = online.exchanges and _first_swaps(online.exchanges, len(queries))
    skipped = {}
    if swaps is None:
        reason = "fewer than two pictures have a region that leaves half of the view free"
        skipped = dict.fromkeys(("context", "object_knn", "same_object"), reason)
    name = f"gallery of {online.gallery.name}, queries of {online.queries.name}"
    return ProbeData(name, size_px, seed, gallery, queries, swaps, skipped=skipped)


def _first_images(images: RegionImages, count: int) -> RegionImages:
    regions = sum(map(len, images.boxes[:count]))
    return RegionImages(
        images.pixels[:count], images.boxes[:count], None if images.labels is None else images.labels[:regions]
    )


def _first_swaps(swaps: Swaps, images: int) -> Swaps | None:
    kept = swaps.images < images
    return Swaps(**{name: rows[kept] for name, rows in vars(swaps).items()}) if kept.sum() > 1 else None


def find_gains(report: Mapping[str, Any]) -> list[Gain]:
    """The main numbers of what `diagnose_both` wrote as report.json, both ends; none of any other diagnosis.

    KeyError or TypeError where it is of another version.
    """
    models = report.get("models", [])
    ends = [str(model["name"]).rpartition(" ")[2] for model in models]
    if ends != [f"({START})", f"({AFTER})"]:
        return []
    before, after = ({k: _estimate(v) for k, v in model["stages"][-1]["numbers"].items()} for model in models)
    changes = {key: _estimate(value) for key, value in report["differences"][0]["numbers"].items()}
    objects = _WITH_CLASSES if _WITH_CLASSES[0] in before else _WITHOUT
    return [
        _compare(key, before[key], after[key], changes[key])
        for key in (*objects, *_ALWAYS)
        if key in before and key in after
    ]


def _estimate(values: Mapping[str, Any]) -> Estimate:
    return Estimate(
        **{name: values[name] for name in ("value", "low", "high", "count")}, reason=values.get("reason", "")
    )


def _compare(key: str, before: Estimate, after: Estimate, change: Estimate) -> Gain:
    metric = BY_KEY[key]
    word, tone = judge(before, after, change, metric.better)
    difference = NO_NUMBER
    if change.value is not None:
        difference = write_estimate(change, metric, signed=True).replace(PERCENT, "").replace("-", MINUS)
        difference = f"{'+' if change.value > 0 else ''}{difference}{' points' if metric.percent else ''}"
    return Gain(
        TITLES[key][0],
        metric.better,
        write_estimate(before, metric),
        write_estimate(after, metric),
        difference,
        word,
        tone,
    )


def judge(before: Estimate, after: Estimate, change: Estimate, better: str) -> tuple[str, str]:
    """What became of a number, in a word, and its tone: by the interval of the change, else by those of both ends."""
    if change.value is None or None in (before.low, after.low):
        return "", "plain"
    unclear = overlap(before, after) if change.low is None or change.high is None else change.low <= 0 <= change.high
    if unclear:
        return "no difference", "plain"
    return ("gained", "good") if (change.value > 0) == (better == "higher") else ("lost", "bad")
