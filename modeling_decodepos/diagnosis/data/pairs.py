"""Probe data from a data set of exact pairs, as `dataset_scripts.prepare pairs` builds it: all rows, as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.scenes import CLASS_NAMES, TEXTURES
from .photos import paste_grid, read_group, read_regions, row_groups, row_pixels
from .probe import LEAST_SIDE, ProbeData, RegionImages, Swaps
from .scene_pairs import PAIR_ROLES, PAIRS_SPLIT

_COLUMNS = ("image", "image_id", "width", "height", "objects")
_ON_GRID = 10  # objects
_REBUILD = "Build it again: python -m dataset_scripts.prepare pairs."


def build_pair_data(source: str, splits: Mapping[str, list[Path]]) -> ProbeData:
    """What is asked of every network alike: nothing is drawn by chance, and no row is left out."""
    rows = list(_rows(splits[PAIRS_SPLIT]))
    _refuse_torn(source, [str(row["image_id"]) for _, row in rows], splits)
    shown = {role: [_picture(*row) for row in rows[place :: len(PAIR_ROLES)]] for place, role in enumerate(PAIR_ROLES)}
    known = [_picture(*row) for row in _rows(splits["train"])]
    sides = {pixels.shape[-1] for pictures in (*shown.values(), known) for pixels, _, _ in pictures}
    if len(sides) > 1:
        raise ValueError(f"{source} has pictures with sides of {sorted(sides)} pixels; expected one size. {_REBUILD}")
    gallery = _gather(known)
    queries = _gather(shown["as_is"])
    last = torch.tensor([len(boxes) for boxes in queries.boxes]).cumsum(0) - 1
    size_px = sides.pop()
    pictures = {role: torch.stack([pixels for pixels, _, _ in found]) for role, found in shown.items()}
    swaps = Swaps(
        last,
        torch.arange(len(queries)),
        queries.every_box[last],
        pictures["other_surroundings"],
        pictures["other_content"],
        pictures["moved"],
        torch.stack([boxes[-1] for _, boxes, _ in shown["moved"]]),
    )
    return ProbeData(
        name=source,
        size_px=size_px,
        seed=0,
        gallery=gallery,
        queries=queries,
        swaps=swaps,
        grid=paste_grid(queries, last[:_ON_GRID].tolist(), size_px),
        class_names=CLASS_NAMES,
        groups=torch.arange(len(CLASS_NAMES)) // len(TEXTURES),
        notes=(
            f"All {len(rows)} rows of the exact pairs, as they are: the numbers compare with those of anybody else.",
            "In the neighbour read-out, the question is the neighbour's shape (8 shapes).",
        ),
        is_benchmark=True,
    )


def _refuse_torn(source: str, ids: list[str], splits: Mapping[str, list[Path]]) -> None:
    """Raises unless all objects have their four rows, and there are other pictures."""
    names = [name.rpartition("-")[::2] for name in ids]
    step = len(PAIR_ROLES)
    groups = [names[start : start + step] for start in range(0, len(names), step)]
    torn = [group for group in groups if group != [(group[0][0], role) for role in PAIR_ROLES]]
    if torn or not groups or "train" not in splits:
        found = f"it is not so from {'-'.join(torn[0][0])} on" if torn else f"its splits are {', '.join(splits)}"
        raise ValueError(
            f"{source}: split {PAIRS_SPLIT} needs four rows per object, whose ids end in {', '.join(PAIR_ROLES)} in "
            f"this order, beside a split train; {found}. {_REBUILD}"
        )


_Picture = tuple[Tensor, Tensor, Tensor]
"""Pixels (3, S, S), boxes (R, 4) and labels (R,); the probed object is the last."""


def _rows(files: list[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file, group in row_groups(files):
        for row in read_group(file, group, _COLUMNS).to_pylist():
            yield str(file), row


def _picture(file: str, row: Mapping[str, Any]) -> _Picture:
    pixels = row_pixels(file, row)
    found, labels = read_regions(file, row, pixels.shape[2], pixels.shape[1])
    if labels is None or not len(found) or pixels.shape[1] != pixels.shape[2]:
        raise ValueError(f"{file}, image {row['image_id']}: expected a square picture with objects and their classes.")
    boxes = torch.from_numpy(found).float()
    kept = (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(1)
    kept[-1] = True
    return pixels, boxes[kept], torch.from_numpy(labels)[kept]


def _gather(pictures: list[_Picture]) -> RegionImages:
    pixels, boxes, labels = zip(*pictures, strict=True)
    return RegionImages(torch.stack(pixels), list(boxes), torch.cat(labels))
