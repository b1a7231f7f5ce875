"""Probe data from pictures: a data set in our Parquet contract (a folder, or a Hub id), or a folder of image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.pictures import BrokenImage, decode_picture
from ...data.schema import xywh_to_unit_xyxy
from ...imagenet import MEAN_COLOUR
from .balance import Labels, shared_classes, take_balanced
from .exchange import draw_objects, draw_swaps, has_surroundings, largest_regions, move_before_next, resize
from .probe import LEAST_SIDE, Grid, ObjectProbe, ProbeData, RegionImages, frequent_groups
from .scene_pairs import PAIRS_SPLIT

IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MOST_REGIONS = 16  # per image: one crowded photo must not decide
_STREAM, _OBJECT_STREAM = 6, 13
_GRID_SIDE = 0.3  # longer side of a pasted region relative to the view
_KNOWN, _PROBED = 5 / 3, 5 / 4  # objects of the gallery, and probed ones, per picture that is asked for
_MOST_ROWS = 2000  # of a table, whose annotations are looked through


class _Photo(NamedTuple):
    pixels: Tensor  # (3, S, S) uint8
    boxes: np.ndarray  # (R, 4)
    labels: np.ndarray | None


class _Annotated(NamedTuple):
    """A row of a table, and its usable objects."""

    file: Path
    group: int
    row: int  # in the row group
    boxes: np.ndarray  # (R, 4)
    labels: np.ndarray | None


def build_photo_data(source: str, images: int, size_px: int, seed: int, objects: int = 10) -> ProbeData:
    """Gallery and queries of at most `images` pictures each, and exchanges of their regions as far as they have any.

    Queries come from a split called validation (or val, test); without one, from pictures that the gallery has not.
    """
    rng = np.random.default_rng([seed, _STREAM])
    splits = open_splits(source)
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
        grid = paste_grid(queries, regions[:objects], size_px)
    else:
        reason = (
            "the data has no boxes"
            if not len(queries.every_box)
            else "fewer than two pictures have a region between 10 % of the view's side and half of its area"
        )
        names = ("retrieval", "context", "influence", "object_knn", "same_object", "neighbour", "debias")
        skipped = dict.fromkeys(names, reason)
    if gallery.labels is not None and len(gallery.labels):
        groups = frequent_groups(gallery.labels, 1 + int(gallery.labels.max()))
    probed = _read_objects(first, held_out if has_split else None, images, size_px, seed) if swaps else None
    return ProbeData(source, size_px, seed, gallery, queries, swaps, grid, (), groups, skipped, tuple(notes), probed)


# -------------------------------------------------------------------------------------------------------------- files


def open_splits(source: str) -> dict[str, list[Path]]:
    """Files of every split."""
    if not source:
        raise ValueError("data is empty. Give a folder or a Hub id, or leave it out for scenes.")
    return open_folder(source) if Path(source).exists() else _split(_download(source), source)


def open_folder(source: str) -> dict[str, list[Path]]:
    """Parquet files of every split of a folder; of a folder of pictures, the pictures as one split."""
    folder = Path(source)
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
    """The first Parquet file of each split of a data set on the Hub; of exact pairs, all of them."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        names = [name for name in HfApi().list_repo_files(source, repo_type="dataset") if name.endswith(".parquet")]
        by_split = {Path(name).name.split("-")[0]: name for name in sorted(names, reverse=True)}
        wanted = sorted(names) if PAIRS_SPLIT in by_split else by_split.values()
        return [Path(hf_hub_download(source, name, repo_type="dataset")) for name in wanted]
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
    groups = row_groups(files)
    for number in rng.permutation(len(groups)).tolist():
        file, group = groups[number]
        part = read_group(file, group, ("image", *_ANNOTATIONS))
        for row in rng.permutation(len(part)).tolist():
            yield str(file), part.slice(row, 1).to_pylist()[0]


_ANNOTATIONS = ("image_id", "width", "height", "objects", "regions")


def row_groups(files: list[Path]) -> list[tuple[Path, int]]:
    """The row groups of files, in order."""
    return [(file, group) for file in files for group in range(open_table(file).num_row_groups)]


def open_table(file: Path) -> Any:
    """A Parquet file of pyarrow's; ImportError with what to install where there is no pyarrow."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'decodepos[data]'.") from error
    try:
        return parquet.ParquetFile(file)
    except (ValueError, OSError) as error:  # Arrow's errors are of both kinds
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error


def read_group(file: Path, group: int, wanted: tuple[str, ...]) -> Any:
    """Of a row group, the wanted columns that it has."""
    table = open_table(file)
    if "image" not in table.schema_arrow.names:
        raise ValueError(f"{file} has no column 'image'; its columns are {table.schema_arrow.names}.")
    return table.read_row_group(group, columns=[name for name in wanted if name in table.schema_arrow.names])


def _decode(file: str, row: Mapping[str, Any], size_px: int, rng: np.random.Generator) -> _Photo:
    pixels = row_pixels(file, row)
    boxes, labels = read_regions(file, row, pixels.shape[2], pixels.shape[1])
    kept = _large_enough(boxes)
    if len(kept) > _MOST_REGIONS:
        kept = np.sort(rng.choice(kept, _MOST_REGIONS, replace=False))
    return _Photo(resize(pixels, size_px, size_px), boxes[kept], None if labels is None else labels[kept])


def row_pixels(file: str, row: Mapping[str, Any]) -> Tensor:
    """(3, H, W) of a row's image, upright."""
    data = (row["image"] or {}).get("bytes")
    if data is None:
        raise ValueError(f"{file}: an image without bytes. Embed them, as dataset_scripts.prepare does.")
    width, height = row.get("width"), row.get("height")
    decoded = decode_picture(data, file, (height, width) if width and height else None)
    return torch.from_numpy(decoded).permute(2, 0, 1)


def _large_enough(boxes: np.ndarray) -> np.ndarray:
    """Numbers of the boxes that are more than a few pixels."""
    return np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(1))


def read_regions(file: str, row: Mapping[str, Any], width: int, height: int) -> tuple[np.ndarray, np.ndarray | None]:
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
        torch.stack([photo.pixels for photo in photos]) if photos else torch.zeros((0, 3, 1, 1), dtype=torch.uint8),
        [torch.from_numpy(photo.boxes).float() for photo in photos],
        torch.from_numpy(np.concatenate(known)) if complete else None,
    )


# ------------------------------------------------------------------------------------------------------ probed objects


def _read_objects(
    first: list[Path], held_out: list[Path] | None, images: int, size_px: int, seed: int
) -> ObjectProbe | None:
    """Objects to be recognised, the same number of every class, and exchanges of them; None where there are too few.

    The pictures are chosen for it, beside those that all other measures look at.
    """
    if any(file.suffix != ".parquet" for file in first):
        return None
    rng = np.random.default_rng([seed, _OBJECT_STREAM])
    known = _read_annotations(first, rng)
    known, asked = (known[::2], known[1::2]) if held_out is None else (known, _read_annotations(held_out, rng))
    asked = [_only(row, has_surroundings(torch.from_numpy(row.boxes)).numpy()) for row in asked]
    has_classes = all(row.labels is not None or not len(row.boxes) for row in (*known, *asked))
    labels = [[_labels(row, has_classes) for row in rows] for rows in (known, asked)]
    classes = shared_classes(*labels)
    if has_classes and len(classes) < 2:
        return None
    wanted = round(_KNOWN * images), round(_PROBED * images)
    # Without classes an object is told from all others, which one that overlaps with it would make a matter of luck.
    most = 2 if has_classes else 1
    chosen = [take_balanced(own, classes, count, most) for own, count in zip(labels, wanted, strict=True)]
    queries = _read_chosen(asked, chosen[1], size_px)
    if len(queries) < 2:
        return None
    gallery = _read_chosen(known, chosen[0], size_px) if has_classes else []
    return draw_objects(_gather(gallery), _gather(queries), rng)


def _labels(row: _Annotated, has_classes: bool) -> Labels:
    return row.labels if has_classes and row.labels is not None else np.zeros(len(row.boxes), np.int64)


def _only(row: _Annotated, kept: np.ndarray) -> _Annotated:
    return row._replace(boxes=row.boxes[kept], labels=None if row.labels is None else row.labels[kept])


def _read_annotations(files: list[Path], rng: np.random.Generator) -> list[_Annotated]:
    """Rows with the objects that are large enough, either in a random order; no pixels are read."""
    groups = row_groups(files)
    found: list[_Annotated] = []
    for number in rng.permutation(len(groups)).tolist():
        file, group = groups[number]
        for place, row in enumerate(read_group(file, group, _ANNOTATIONS).to_pylist()):
            if row.get("width") and row.get("height"):
                annotated = _Annotated(file, group, place, *read_regions(str(file), row, 0, 0))
                found.append(_only(annotated, rng.permutation(_large_enough(annotated.boxes))))
        if len(found) >= _MOST_ROWS:
            break
    return [found[number] for number in rng.permutation(len(found)).tolist()]


def _read_chosen(rows: list[_Annotated], chosen: list[Labels], size_px: int) -> list[_Photo]:
    """The pictures of which something is chosen, with no other regions; those that cannot be decoded are left out."""
    wanted: dict[tuple[Path, int], list[tuple[int, _Annotated]]] = {}
    for number, (row, kept) in enumerate(zip(rows, chosen, strict=True)):
        if len(kept):
            wanted.setdefault((row.file, row.group), []).append((number, _only(row, kept)))
    photos: dict[int, _Photo] = {}
    for (file, group), members in wanted.items():
        part = read_group(file, group, ("image", "width", "height"))
        for number, row in members:
            with suppress(BrokenImage):
                pixels = row_pixels(str(file), part.slice(row.row, 1).to_pylist()[0])
                photos[number] = _Photo(resize(pixels, size_px, size_px), row.boxes, row.labels)
    return [photos[number] for number in sorted(photos)]


# ---------------------------------------------------------------------------------------------------------- exchanges


def paste_grid(images: RegionImages, regions: list[int], size_px: int) -> Grid:
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
