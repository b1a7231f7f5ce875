"""Rows of OpenImage-MINI in the Parquet contract, made from a list on disk, a photo and its masks."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from modeling_decodepos.data.schema import unit_xyxy_to_xywh

from ...build.parquet import Row
from ...build.records import Records, write_records
from ...pictures.encoded import EncodedPicture, picture_row
from .masks import class_map, mask_aspect
from .photos import Photo, photo_path, upright_as_stored, verify_photo


def save_rows(folder: Path, index: pa.Table, masks: Mapping[str, Path] | None) -> Records:
    """The rows of a split, with the files of their masks, in a file that every worker can map into its memory."""
    return write_records(
        folder,
        (
            {**row, "mask_files": [str(masks[name].absolute()) for name in row["masks"]] if masks else []}
            for batch in index.to_batches()
            for row in batch.to_pylist()
        ),
    )


def mini_row(split: str, number: int, rows: Mapping[str, Records], photos: Sequence[Path]) -> Row:
    """Row `number` of a split."""
    row = rows[split][number]
    image_id = row["image_id"]
    masks = [(Path(file), category) for file, category in zip(row["mask_files"], row["mask_categories"], strict=False)]
    photo = photo_path(photos, split, image_id)
    content = photo.read_bytes()
    try:
        width, height = verify_photo(
            content, Photo(split, image_id, aspect=mask_aspect(masks[0][0]) if masks else None)
        )
    except ValueError as error:
        raise ValueError(f"{photo}: {error}. Delete it; the same command fetches it again.") from error
    boxes = unit_xyxy_to_xywh(np.array(row["boxes"]), width, height)
    objects = {
        "bbox": boxes.tolist(),
        "category": row["categories"],
        "area": (boxes[:, 2] * boxes[:, 3]).tolist(),
        "iscrowd": [False] * len(boxes),
    }
    segmentation = io.BytesIO()
    if masks:
        Image.fromarray(class_map(masks, width, height)).save(segmentation, "PNG")
    return picture_row(
        EncodedPicture(upright_as_stored(content), f"{image_id}.jpg", (width, height), orientation=1),
        image_id,
        objects,
        segmentation.getvalue() or None,
        **{name: row[name] for name in ("license", "author", "original_url", "landing_url")},
    )
