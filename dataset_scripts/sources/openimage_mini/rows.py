"""Rows of OpenImage-MINI in the Parquet contract, made from a list on disk, a photo and its masks."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from modeling_decodepos.schema import unit_xyxy_to_xywh

from ...build.parquet import Row
from .masks import class_map, map_png, mask_size
from .photos import Photo, photo_path, upright_as_stored, verify_photo


def save_rows(path: Path, index: pa.Table, masks: Mapping[str, Path] | None) -> None:
    """Writes the rows of a split, with the files of their masks, so that every worker can map them into its memory."""
    files = [[str(masks[name]) for name in names] if masks else [] for names in index["masks"].to_pylist()]
    table = index.append_column("mask_files", pa.array(files, pa.list_(pa.string())))
    temporary = path.with_name(f".{path.name}.tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4096)
    temporary.replace(path)


@lru_cache(maxsize=4)
def _load_rows(path: Path, changed_ns: int) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def mini_row(split: str, number: int, rows: Mapping[str, Path], photos: Path) -> Row:
    """Row `number` of a split."""
    path = rows[split]
    (row,) = _load_rows(path, path.stat().st_mtime_ns).slice(number, 1).to_pylist()
    image_id = row["image_id"]
    masks = [(Path(file), category) for file, category in zip(row["mask_files"], row["mask_categories"], strict=False)]
    aspect = None
    if masks:
        mask_width, mask_height = mask_size(masks[0][0])
        aspect = mask_width / mask_height
    photo = photo_path(photos, split, image_id)
    content = photo.read_bytes()
    try:
        width, height = verify_photo(content, Photo(split, image_id, aspect=aspect))
    except ValueError as error:
        raise ValueError(f"{photo}: {error}. Delete it; the same command fetches it again.") from error
    boxes = unit_xyxy_to_xywh(np.array(row["boxes"]), width, height)
    return {
        "image": {"bytes": upright_as_stored(content), "path": f"{image_id}.jpg"},
        "image_id": image_id,
        "width": width,
        "height": height,
        "objects": {
            "bbox": boxes.tolist(),
            "category": row["categories"],
            "area": (boxes[:, 2] * boxes[:, 3]).tolist(),
            "iscrowd": [False] * len(boxes),
        },
        "segmentation": _segmentation(masks, width, height, image_id),
        **{name: row[name] for name in ("license", "author", "original_url", "landing_url")},
    }


def _segmentation(
    masks: list[tuple[Path, int]], width: int, height: int, image_id: str
) -> dict[str, bytes | str] | None:
    if not masks:
        return None
    return {"bytes": map_png(class_map(masks, width, height)), "path": f"{image_id}-segmentation.png"}
