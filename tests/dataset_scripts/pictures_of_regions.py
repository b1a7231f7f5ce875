"""Encoded pictures and rows for the tests of proposals."""

import io

import numpy as np
from PIL import Image


def encode(pixels, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind, **options)
    return file.getvalue()


def shapes(width=240, height=180) -> np.ndarray:
    """Flat rectangles on a flat ground; the two halves of one object touch."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    pixels[40:140, 30:90] = (220, 40, 40)
    pixels[40:140, 90:130] = (200, 70, 40)
    pixels[60:150, 160:225] = (40, 60, 230)
    return pixels


def noise(width=200, height=150, seed=0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def row(encoded, width, height, boxes=(), crowd=None, segmentation=None) -> dict:
    return {
        "image": {"bytes": encoded, "path": "a"},
        "image_id": "a",
        "width": width,
        "height": height,
        "objects": {
            "bbox": [list(map(float, box)) for box in boxes],
            "category": [0] * len(boxes),
            "area": [1.0] * len(boxes),
            "iscrowd": crowd or [False] * len(boxes),
        },
        "segmentation": None if segmentation is None else {"bytes": segmentation, "path": "b"},
        "license": None,
        "author": None,
        "original_url": None,
        "landing_url": None,
    }
