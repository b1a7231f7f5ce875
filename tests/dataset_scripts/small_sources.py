"""Small sources to build from, made on the spot."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(width: int, height: int, orientation: int = 1, kind: str = "JPEG", seed: int = 0) -> bytes:
    """An encoded picture whose colours depend on the place, with an EXIF orientation."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def put(folder: Path, name: str, data: bytes) -> Path:
    """Writes a file, and the folders that it needs."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def coco(folder: Path, images: list[dict], annotations: list[dict], split: str = "val2017", **others: object) -> Path:
    """A folder in COCO's layout; every image that has a size gets its picture."""
    for image in images:
        put(folder, f"{split}/{image['file_name']}", picture(image["width"], image["height"], seed=image["id"]))
    content = {
        "info": {"description": "made for a test"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "bird"}],
        **others,
    }
    content = {key: value for key, value in content.items() if value is not None}
    put(folder, f"annotations/instances_{split}.json", json.dumps(content).encode())
    return folder


def image_entry(number: int, width: int = 40, height: int = 30, **others: object) -> dict:
    """An element of `images`."""
    return {"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height, **others}


def annotation_entry(number: int, image: int, bbox: list, category: int = 3, **others: object) -> dict:
    """An element of `annotations`, its outline the box itself."""
    x, y, w, h = bbox
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    fields = {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": w * h}
    return {**fields, "iscrowd": 0, "segmentation": outline, **others}
