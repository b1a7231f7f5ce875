"""COCO's outlines of objects -> the pixels they cover, exactly as pycocotools draws them.

Pixels are numbered down the columns, as in COCO's run lengths: pixel (x, y) of an image of height h is x * h + y.
An outline is a list of polygons, or the run lengths {"size": [h, w], "counts": …} as numbers or compressed into text.

pycocotools has a rule of its own for polygons: their edges are walked on a grid five times as fine, and where the walk
goes from one column of pixels to the next, it turns inside into outside from that pixel on, down the column.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]

FINENESS = 5
FARTHEST_PX = 100_000  # a corner beyond this is no corner of a picture, and the walk to it would fill the memory


def outline_pixels(outline: Any, height: int, width: int) -> IntArray:
    """The numbers of the pixels that an outline covers, rising."""
    if isinstance(outline, Mapping):
        return _covered(np.cumsum(_run_lengths(outline, height, width)))
    if not isinstance(outline, list) or not all(isinstance(polygon, list) for polygon in outline):
        raise ValueError(f"the outline is {str(outline)[:40]}, expected a list of polygons, or run lengths")
    # Fewer than three corners enclose nothing.
    parts = [polygon_pixels(polygon, height, width) for polygon in outline if len(polygon) >= 6]
    if not parts:
        return np.zeros(0, np.int64)
    return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))


def polygon_pixels(corners: ArrayLike, height: int, width: int) -> IntArray:
    """The numbers of the pixels in one polygon, given as x1, y1, x2, y2, …"""
    flat = np.asarray(corners, np.float64)
    if flat.ndim != 1 or not np.isfinite(flat).all() or (np.abs(flat) > FARTHEST_PX).any():
        raise ValueError(f"a polygon is not a list of finite numbers up to {FARTHEST_PX:,}")
    u, v = _walk(flat[: len(flat) // 2 * 2].reshape(-1, 2))
    return _covered(np.append(np.sort(_turns(u, v, height, width)), height * width))


def _walk(corners: NDArray[np.float64]) -> tuple[IntArray, IntArray]:
    """All points of the closed line through the corners, on the fine grid, one per step of each edge's longer side."""
    # Fractions are cut off towards zero, here and below, as C does: for coordinates left of the image it matters.
    start = np.trunc(FINENESS * corners + 0.5).astype(np.int64)
    stop = np.roll(start, -1, axis=0)
    span = np.abs(stop - start)
    wide = span[:, 0] >= span[:, 1]
    steps = np.where(wide, span[:, 0], span[:, 1])
    along = np.where(wide, 0, 1)
    edge = np.arange(len(start))
    # An edge is computed from its left or upper end, so that rounding does not depend on its direction.
    flip = start[edge, along] > stop[edge, along]
    low = np.where(flip[:, None], stop, start)
    high = np.where(flip[:, None], start, stop)
    rise = (high - low)[edge, 1 - along]
    slope = np.divide(rise, steps, out=np.zeros(len(steps)), where=steps > 0)

    of_edge = np.repeat(edge, steps + 1)
    first = np.cumsum(steps + 1) - (steps + 1)
    step = np.arange(len(of_edge)) - first[of_edge]
    step = np.where(flip[of_edge], steps[of_edge] - step, step)
    main = low[of_edge, along[of_edge]] + step
    other = np.trunc(low[of_edge, 1 - along[of_edge]] + slope[of_edge] * step + 0.5).astype(np.int64)
    is_wide = wide[of_edge]
    return np.where(is_wide, main, other), np.where(is_wide, other, main)


def _turns(u: IntArray, v: IntArray, height: int, width: int) -> IntArray:
    """The pixel numbers at which inside and outside change."""
    moved = np.flatnonzero(u[1:] != u[:-1])
    before, after = moved, moved + 1
    x = (np.where(u[after] < u[before], u[after], u[after] - 1) + 0.5) / FINENESS - 0.5
    y = (np.minimum(v[after], v[before]) + 0.5) / FINENESS - 0.5
    in_column = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    rows = np.ceil(np.clip(y[in_column], 0, height)).astype(np.int64)
    return x[in_column].astype(np.int64) * height + rows


def _run_lengths(outline: Mapping[str, Any], height: int, width: int) -> IntArray:
    size, counts = outline.get("size"), outline.get("counts")
    if list(size or []) != [height, width]:
        raise ValueError(f"run lengths are for height and width {size}, but the image has {[height, width]}")
    if isinstance(counts, str):
        lengths = np.array(_decompress(counts), np.int64)
    elif isinstance(counts, list) and all(isinstance(count, int) for count in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise ValueError(f"the counts of run lengths are {type(counts).__name__}, expected whole numbers or text")
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"run lengths cover {lengths.sum()} pixels, but the image has {height * width}")
    return lengths


def _decompress(text: str) -> list[int]:
    """Run lengths from COCO's text: five bits a character, the low ones first; differences to the last but one."""
    lengths: list[int] = []
    at = 0
    while at < len(text):
        value = shift = 0
        more = True
        while more:
            if at >= len(text) or not 0 <= (code := ord(text[at]) - 48) < 64:
                raise ValueError("compressed run lengths end early or hold characters that they cannot hold")
            value |= (code & 31) << shift
            shift, at, more = shift + 5, at + 1, bool(code & 32)
            if not more and code & 16:
                value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def _covered(places: IntArray) -> IntArray:
    """The pixels from each first place to each second one; a last one by itself begins nothing."""
    starts, stops = places[: len(places) // 2 * 2].reshape(-1, 2).T
    lengths = stops - starts
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
