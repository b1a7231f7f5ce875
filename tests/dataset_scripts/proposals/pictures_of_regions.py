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
    pixels[40:140, 30:90] = (190, 60, 40)
    pixels[40:140, 90:130] = (60, 150, 40)
    pixels[60:150, 160:225] = (40, 60, 230)
    return pixels


def grainy(pixels, deviation=12, seed=0) -> np.ndarray:
    """Like a photo: without grain, a segmenter takes the soft border of an object for a segment of its own."""
    grain = np.random.default_rng(seed).normal(0, deviation, np.shape(pixels))
    return (np.asarray(pixels, float) + grain).clip(0, 255).astype(np.uint8)


def clutter(width=200, height=150, seed=0, rectangles=30) -> np.ndarray:
    """Grainy rectangles, one over the other."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 90, np.uint8)
    for _ in range(rectangles):
        x1, x2 = sorted(rng.integers(0, width, 2))
        y1, y2 = sorted(rng.integers(0, height, 2))
        pixels[y1 : y2 + 1, x1 : x2 + 1] = rng.integers(40, 216, 3)
    return grainy(pixels, seed=seed)


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
