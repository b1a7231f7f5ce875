"""Probe data from pictures: a data set in our Parquet contract (a folder, or a Hub id), or a folder of image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...imagenet import MEAN_COLOUR
from ...pictures import BrokenImage, decode_picture
from ...schema import xywh_to_unit_xyxy
from .exchange import draw_swaps, largest_regions, move_before_next, resize
from .probe import LEAST_SIDE, Grid, ProbeData, RegionImages, frequent_groups

IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MOST_REGIONS = 16  # per image: one crowded photo must not decide
_STREAM = 6
_GRID_SIDE = 0.3  # longer side of a pasted region relative to the view


class _Photo(NamedTuple):
    pixels: Tensor  # (3, S, S) uint8
    boxes: np.ndarray  # (R, 4)
    labels: np.ndarray | None


def build_photo_data(source: str, images: int, size_px: int, seed: int, objects: int = 10) -> ProbeData:
    """Gallery and queries of at most `images` pictures each, and exchanges of their regions as far as they have any.

    Queries come from a split called validation (or val, test); without one, from pictures that the gallery has not.
    """
    rng = np.random.default_rng([seed, _STREAM])
    splits = _open(source)
    first = splits.get("train") or next(iter(splits.values()))
    held_out = next((splits[name] for name in ("validation", "val", "test") if name in splits), None)
    notes = []
    has_split = held_out is not None and held_out is not first
    photos, broken = _read(first, rng, images if has_split else 2 * images, size_px)
    if has_split:
        held, more = _read(held_out or [], rng, images, size_px)
        broken += more
    else:
        notes.append("There is no validation split: one half of the pictures is the gallery, the other the queries.")
        photos, held = photos[: len(photos) // 2], photos[len(photos) // 2 :]
    if min(len(photos), len(held)) < 2:
        raise ValueError(
            f"{source}: {len(photos)} pictures for the gallery and {len(held)} queries; expected at least 2 of "
            "either. Is the split empty, or are the files not readable?"
        )
    if broken:
        notes.append(f"{len(broken)} pictures could not be read and are left out, first {broken[0]}.")
    gallery, queries = _gather(photos), _gather(held)
    regions = largest_regions(queries)
    skipped = {}
    swaps = grid = groups = None
    if len(regions) > 1:
        swaps = draw_swaps(queries, regions, move_before_next(queries, regions), rng)
        grid = _paste_grid(queries, regions[:objects], size_px)
    else:
        reason = (
            "the data has no boxes"
            if not len(queries.every_box)
            else "fewer than two pictures have a region between 10 % of the view's side and half of its area"
        )
        skipped = dict.fromkeys(("retrieval", "context", "influence", "object_knn", "neighbour", "debias"), reason)
    if gallery.labels is not None and len(gallery.labels):
        groups = frequent_groups(gallery.labels, 1 + int(gallery.labels.max()))
    return ProbeData(source, size_px, seed, gallery, queries, swaps, grid, (), groups, skipped, tuple(notes))


# -------------------------------------------------------------------------------------------------------------- files


def _open(source: str) -> dict[str, list[Path]]:
    """Files of every split."""
    folder = Path(source)
    if not folder.exists():
        return _split(_download(source), source)
    if not folder.is_dir():
        raise ValueError(f"{source} is a file; expected a folder of Parquet files or of pictures.")
    tables = sorted(folder.rglob("*.parquet"))
    if tables:
        return _split(tables, source)
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_FILES)
    if not pictures:
        raise FileNotFoundError(f"{source} holds neither .parquet files nor pictures ({', '.join(IMAGE_FILES)}).")
    return {"train": pictures}


def _split(files: list[Path], source: str) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(file.name.split("-")[0].removesuffix(".parquet"), []).append(file)
    if not splits:
        raise FileNotFoundError(f"{source} has no .parquet files.")
    return splits


def _download(source: str) -> list[Path]:
    """The first Parquet file of each split of a data set on the Hub."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        names = [name for name in HfApi().list_repo_files(source, repo_type="dataset") if name.endswith(".parquet")]
        by_split = {Path(name).name.split("-")[0]: name for name in sorted(names, reverse=True)}
        return [Path(hf_hub_download(source, name, repo_type="dataset")) for name in by_split.values()]
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise FileNotFoundError(
            f"--data {source}: no such folder, and it cannot be had from the Hub as a data set "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Use scenes, which needs no "
            "download, or a local folder."
        ) from error


# --------------------------------------------------------------------------------------------------------------- rows


def _read(files: list[Path], rng: np.random.Generator, count: int, size_px: int) -> tuple[list[_Photo], list[str]]:
    """Up to `count` pictures in a random order, and the names of those met on the way that cannot be decoded."""
    photos: list[_Photo] = []
    broken: list[str] = []
    rows = _table_rows(files, rng) if files[0].suffix == ".parquet" else _file_rows(files, rng)
    for name, row in rows:
        if len(photos) == count:
            break
        try:
            photos.append(_decode(name, row, size_px, rng))
        except BrokenImage:
            broken.append(f"{name}, image {row['image_id']}" if "image_id" in row else name)
    return photos, broken


def _file_rows(files: list[Path], rng: np.random.Generator) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number in rng.permutation(len(files)).tolist():
        yield str(files[number]), {"image": {"bytes": files[number].read_bytes()}}


def _table_rows(files: list[Path], rng: np.random.Generator) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("reading Parquet files needs pyarrow: pip install pyarrow (or datasets).") from error
    tables = [(file, parquet.ParquetFile(file)) for file in files]
    wanted = ("image", "image_id", "width", "height", "objects", "regions")
    groups = [(file, table, group) for file, table in tables for group in range(table.num_row_groups)]
    for number in rng.permutation(len(groups)).tolist():
        file, table, group = groups[number]
        columns = [name for name in wanted if name in table.schema_arrow.names]
        if "image" not in columns:
            raise ValueError(f"{file} has no column 'image'; its columns are {table.schema_arrow.names}.")
        part = table.read_row_group(group, columns=columns)
        for row in rng.permutation(len(part)).tolist():
            yield str(file), part.slice(row, 1).to_pylist()[0]


def _decode(file: str, row: Mapping[str, Any], size_px: int, rng: np.random.Generator) -> _Photo:
    data = (row["image"] or {}).get("bytes")
    if data is None:
        raise ValueError(f"{file}: an image without bytes. Embed them, as dataset_scripts.prepare does.")
    width, height = row.get("width"), row.get("height")
    decoded = decode_picture(data, file, (height, width) if width and height else None)
    pixels = torch.from_numpy(decoded).permute(2, 0, 1)
    boxes, labels = _read_regions(file, row, decoded.shape[1], decoded.shape[0])
    kept = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(1))
    if len(kept) > _MOST_REGIONS:
        kept = np.sort(rng.choice(kept, _MOST_REGIONS, replace=False))
    return _Photo(resize(pixels, size_px, size_px), boxes[kept], None if labels is None else labels[kept])


def _read_regions(file: str, row: Mapping[str, Any], width: int, height: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(R, 4) unit boxes inside the image, and their classes: of the annotations, else of the proposals, else none."""
    objects, regions = row.get("objects") or {}, row.get("regions") or {}
    found = objects if objects.get("bbox") else regions
    rows = found.get("bbox") or []
    labels = found.get("category")
    image_id = row.get("image_id", "?")
    if any(box is None or len(box) != 4 or not np.isfinite(box).all() for box in rows):
        raise ValueError(f"{file}, image {image_id}: every bbox needs four finite numbers (x, y, width, height).")
    if labels is not None and (len(labels) != len(rows) or any(label is None or label < 0 for label in labels)):
        raise ValueError(
            f"{file}, image {image_id}: {len(rows)} boxes with {len(labels)} categories; expected one category, a "
            "number from 0, per box."
        )
    boxes = xywh_to_unit_xyxy(rows, row.get("width") or width, row.get("height") or height).clip(0.0, 1.0)
    crowd = np.array(found.get("iscrowd") or [False] * len(rows), dtype=bool)
    if len(crowd) != len(rows):
        raise ValueError(f"{file}, image {image_id}: {len(rows)} boxes with {len(crowd)} values of iscrowd.")
    kept = ~crowd
    return boxes[kept], None if labels is None else np.array(labels, np.int64)[kept]


def _gather(photos: list[_Photo]) -> RegionImages:
    known = [photo.labels for photo in photos if photo.labels is not None]
    # A picture without any region does not need classes.
    complete = all(photo.labels is not None or not len(photo.boxes) for photo in photos) and len(known) > 0
    return RegionImages(
        torch.stack([photo.pixels for photo in photos]),
        [torch.from_numpy(photo.boxes).float() for photo in photos],
        torch.from_numpy(np.concatenate(known)) if complete else None,
    )


# ---------------------------------------------------------------------------------------------------------- exchanges


def _paste_grid(images: RegionImages, regions: list[int], size_px: int) -> Grid:
    """Regions cut out, brought to one size and pasted in three by three places on ImageNet's mean colour."""
    boxes, owners = images.every_box, images.owners
    plain = torch.tensor(MEAN_COLOUR, dtype=torch.uint8).view(3, 1, 1).expand(3, size_px, size_px)
    canvases, places = [], []
    for region in regions:
        x1, y1, x2, y2 = (boxes[region] * size_px).round().int().tolist()
        crop = images.pixels[owners[region]][:, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
        shrink = _GRID_SIDE * size_px / max(crop.shape[1:])
        height, width = (max(2, round(side * shrink)) for side in crop.shape[1:])
        crop = resize(crop, height, width)
        for row, column in product(range(3), range(3)):
            top, left = (k * (size_px - side) // 2 for k, side in ((row, height), (column, width)))
            canvas = plain.clone()
            canvas[:, top : top + height, left : left + width] = crop
            canvases.append(canvas)
            places.append(torch.tensor([left, top, left + width, top + height]) / size_px)
    count = len(regions)
    return Grid(torch.stack(canvases).view(count, 9, 3, size_px, size_px), torch.stack(places).view(count, 9, 4))
