"""COCO's outlines (polygons and run lengths) as masks, drawn by pycocotools once they are known to be sound."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

FARTHEST_PX = 100_000  # a corner beyond this is no corner of a picture, and the walk to it would fill the memory


def encode_outline(outline: Any, height: int, width: int) -> Any:
    """The outline as pycocotools' run lengths."""
    outline = outline or []
    if isinstance(outline, Mapping):
        lengths = {"size": [height, width], "counts": _run_lengths(outline, height, width)}
        return mask.frPyObjects(lengths, height, width)
    if not isinstance(outline, list) or not all(isinstance(polygon, list) for polygon in outline):
        raise ValueError(f"the outline is {str(outline)[:40]}, expected a list of polygons, or run lengths")
    polygons = [polygon for polygon in outline if len(polygon) >= 6]  # fewer than three corners enclose nothing
    for polygon in polygons:
        if not all(type(side) in (int, float) and abs(side) <= FARTHEST_PX for side in polygon):  # true is no 1
            raise ValueError(f"a polygon is not a list of finite numbers up to {FARTHEST_PX:,}")
        if len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} numbers, expected an x and a y for each corner")
    if not polygons:
        return mask.encode(np.zeros((height, width), np.uint8, order="F"))
    return mask.merge(mask.frPyObjects(polygons, height, width))


def outline_mask(encoded: Any) -> NDArray[np.bool_]:
    """(H, W) True where an encoded outline covers the picture."""
    with warnings.catch_warnings():  # pycocotools uses arrays in ways that NumPy has come to dislike
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(mask.decode(encoded)).astype(bool)


def _run_lengths(outline: Mapping[str, Any], height: int, width: int) -> list[int]:
    """Run lengths that cover the picture. pycocotools would fill up with whatever lies in memory."""
    size, counts = outline.get("size"), outline.get("counts")
    if size != [height, width]:
        raise ValueError(f"run lengths are for height and width {str(size)[:40]}, but the image has {[height, width]}")
    lengths = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(length) is int for length in lengths):
        raise ValueError(f"the counts of run lengths are {type(counts).__name__}, expected whole numbers or text")
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(f"run lengths cover {sum(lengths)} pixels, but the image has {height * width}")
    return lengths


def _decompress(text: str) -> list[int]:
    """Run lengths from COCO's text: five bits a character, the low ones first; differences to the last but one."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"compressed run lengths hold {character!r}, a character that they cannot hold")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last character of a number, whose highest bit is its sign
            value -= (code & 16) << (shift - 4)
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end early")
    return lengths
