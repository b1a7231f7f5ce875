"""How the cells of a map lie under the pixels of a picture: known from the operations of a network, or measured.

Positions are in pixels from the left and upper edge: the first pixel has its centre at 1/2. A cell of patches lies in
the middle of its patch; a cell of padded, strided convolutions of odd size lies on the first of its pixels.

Shapes: B pictures, S their side, h w cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...data.scenes import render_scene, sample_scene

Maps = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Cells:
    """Along x and along y, cell i has its centre `start + i * stride` pixels from the picture's edge."""

    stride: tuple[float, float]
    start: tuple[float, float]

    def offset(self, side_px: int, feature_map: Tensor) -> tuple[float, float]:
        """Cells further right and down than `aligned` that a picture's middle lies on a map of it."""
        counts = feature_map.shape[-1], feature_map.shape[-2]
        x, y = (
            (side_px / 2 - start) / stride - (count - 1) / 2
            for start, stride, count in zip(self.start, self.stride, counts, strict=True)
        )
        return x, y


def find_cells(maps: Maps, reading: str, pixels: Tensor, prepare: Callable[[Tensor], Tensor]) -> list[Cells]:
    """The cells of every map of a network by a reading that needs them, `known` or `measured`.

    `pixels` (1, 3, S, S) is a picture of the size that the network will see, `prepare` makes one of uint8 scenes.
    """
    known = trace_cells(maps, pixels)
    if reading == "known":
        missing = [number for number, cells in enumerate(known) if cells is None]
        if missing:
            raise ValueError(
                f"how the cells of map {missing[0] + 1} lie under the pixels does not follow from the operations that "
                "this network runs. Take the reading 'measured', or 'aligned'."
            )
        return [cells for cells in known if cells is not None]
    side = pixels.shape[-1]
    scenes = [sample_scene(0, index, side) for index in range(_PICTURES)]
    pictures = torch.stack([torch.from_numpy(render_scene(scene).pixels).permute(2, 0, 1) for scene in scenes])
    return measure_cells(maps, prepare(pictures), [None if cells is None else cells.stride for cells in known])


# ------------------------------------------------------------------------------------------------------------ measured

_PICTURES = 16
_ROUNDS = 6  # cells that each picture gives


def measure_cells(
    maps: Maps, pixels: Tensor, strides: Sequence[tuple[float, float] | None] | None = None, *, seed: int = 0
) -> list[Cells]:
    """Cells of every map of (B, 3, S, S) pictures, from the centroid of the squared gradient of single cells.

    Cells around the middle are looked at. What looks at the whole picture has its centroid drawn towards the middle:
    where cells move, their centroids move less, and what is missing is made good by this share. `strides` are those
    that are known; otherwise the map is taken to cover the picture.
    """
    rng = np.random.default_rng([seed, 31])
    generator = torch.Generator().manual_seed(seed)
    side = pixels.shape[-1]
    positions = torch.arange(side, dtype=torch.float64) + 0.5
    rows: list[list[Tensor]] = []
    shapes: list[tuple[int, int]] = []
    for _ in range(_ROUNDS):
        images = pixels.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            found = list(maps(images))
            shapes = [(part.shape[3], part.shape[2]) for part in found]
            for number, part in enumerate(found):
                if not part.requires_grad:
                    raise ValueError("no gradient reaches the pixels: where cells look cannot be measured.")
                cells = torch.from_numpy(
                    np.stack([_middle_cells(count, len(images), rng) for count in shapes[number]])
                )
                direction = torch.randn(part.shape[:2], generator=generator).to(part.device)
                picked = part[torch.arange(len(part)), :, cells[1], cells[0]]
                direction /= (
                    picked.detach().abs().mean().clamp(min=torch.finfo(torch.float32).tiny)
                )  # or gradients fade
                (gradient,) = torch.autograd.grad((picked.float() * direction).sum(), images, retain_graph=True)
                energy = gradient.double().square().sum(1).cpu()
                total = energy.sum((1, 2))
                centroids = ((energy.sum(axis) @ positions) / total for axis in (1, 2))
                if len(rows) <= number:
                    rows.append([])
                rows[number].append(torch.stack([*cells.double(), *centroids])[:, total > 0])
    return [
        _fit(torch.cat(samples, 1).numpy(), shape, side, stride)
        for samples, shape, stride in zip(rows, shapes, strides or [None] * len(rows), strict=True)
    ]


def _middle_cells(count: int, pictures: int, rng: np.random.Generator) -> np.ndarray:
    """A cell for each picture, from the middle half of a map's side, each as often as its mirror image."""
    edge = count // 4
    drawn = rng.integers(edge, count - edge, (pictures + 1) // 2)
    return rng.permutation(np.concatenate([drawn, count - 1 - drawn])[:pictures])


def _fit(samples: np.ndarray, shape: tuple[int, int], side: int, stride: tuple[float, float] | None) -> Cells:
    stride = stride or (side / shape[0], side / shape[1])
    starts = []
    for axis, count in enumerate(shape):
        cells, centroids = samples[axis], samples[2 + axis]
        middle = (count - 1) / 2
        spread = cells - cells.mean()
        slope = float(spread @ centroids / (spread @ spread)) if spread.any() else stride[axis]
        share = min(max(slope / stride[axis], 0.1), 1.0)
        at_middle = float(centroids.mean()) + slope * (middle - float(cells.mean()))
        starts.append(side / 2 + (at_middle - side / 2) / share - middle * stride[axis])
    return Cells(stride, (starts[0], starts[1]))


# --------------------------------------------------------------------------------------------------------------- known


@torch.no_grad()
def trace_cells(maps: Maps, pixels: Tensor) -> list[Cells | None]:
    """Cells of every map of (B, 3, S, S) pictures, from the operations that make it; None where they do not tell."""
    with _Trace(pixels) as trace:
        found = list(maps(pixels))
    return [trace.cells_of(part) for part in found]


@dataclass(frozen=True)
class _Grid:
    """Cells (y, x) that a tensor holds, and its dimensions they lie along; None where these are flattened."""

    size: tuple[int, int]
    stride: tuple[float, float] = (1.0, 1.0)
    start: tuple[float, float] = (0.5, 0.5)
    axes: tuple[int, int] | None = None

    def step(self, sizes: Sequence[int], strides: Sequence[float], shifts: Sequence[float]) -> _Grid:
        """The grid of every `stride`-th cell, from the one at `shift` on, which may lie between cells."""
        (height, width), (y, x), (down, right) = sizes, strides, shifts
        start = self.start[0] + down * self.stride[0], self.start[1] + right * self.stride[1]
        return _Grid((height, width), (self.stride[0] * y, self.stride[1] * x), start, self.axes)


class _Trace(TorchDispatchMode):
    """Follows the grid of the pixels through every operation of a forward pass."""

    def __init__(self, pixels: Tensor):
        super().__init__()
        # The tensors are held, so that none of their ids is given to another.
        self.grids: dict[int, tuple[Tensor, _Grid]] = {}
        self._note(pixels, _Grid((pixels.shape[2], pixels.shape[3]), axes=(2, 3)))

    def cells_of(self, feature_map: Tensor) -> Cells | None:
        """What is known of a map (B, C, h, w)."""
        grid = self._of(feature_map)
        if grid is None or grid.axes is None or grid.size != tuple(feature_map.shape[2:]):
            return None
        (y, x), (top, left) = grid.stride, grid.start
        return Cells((x, y), (left, top))

    def _of(self, part: Any) -> _Grid | None:
        return self.grids[id(part)][1] if isinstance(part, Tensor) and id(part) in self.grids else None

    def _note(self, part: Tensor, grid: _Grid) -> None:
        self.grids[id(part)] = (part, grid)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        grids = [grid for part in _tensors(args) if (grid := self._of(part))]
        if grids:
            name = func.overloadpacket.__name__
            made = [part for part in _tensors((output,)) if self._of(part) is None]
            for part in made:
                rule = _RULES.get(name, _carry)
                self._note(part, rule(grids, args, kwargs or {}, part))
        return output


def _tensors(parts: Sequence[Any]) -> Iterator[Tensor]:
    for part in parts:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, list | tuple):
            yield from _tensors(part)


def _carry(grids: list[_Grid], args: Any, kwargs: Any, output: Tensor) -> _Grid:
    """Operations that leave cells where they are: the grid of the first input, wherever its dimensions now lie."""
    grid = next((grid for grid in grids if grid.axes), grids[0])
    return dataclasses.replace(grid, axes=_find_axes(grid, tuple(output.shape)))


def _find_axes(grid: _Grid, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Two adjacent dimensions of the grid's size; where there are several, those that it had."""
    fits = [(d, d + 1) for d in range(1, len(shape) - 1) if shape[d : d + 2] == grid.size]
    return grid.axes if grid.axes in fits else (fits[-1] if fits else None)


def _window(grids: list[_Grid], args: Any, kwargs: Any, output: Tensor, *, places: tuple[int, ...]) -> _Grid:
    """Convolutions and poolings: kernel, stride, padding and dilation are at `places` of the arguments."""
    grid, values = grids[0], [args[place] if place < len(args) else None for place in places]
    kernel, stride, padding, dilation = values
    kernel = tuple(kernel.shape[2:]) if isinstance(kernel, Tensor) else _pair(kernel)
    stride, padding, dilation = _pair(stride or kernel), _pair(padding or 0), _pair(dilation or 1)
    if args[6:7] == (True,) and places == _CONVOLUTION:  # transposed
        return dataclasses.replace(grid, axes=None)
    shifts = [d * (k - 1) / 2 - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    return grid.step(output.shape[-2:], stride, shifts)


_CONVOLUTION = (1, 3, 4, 5)


def _convolution(*call: Any) -> _Grid:
    return _window(*call, places=_CONVOLUTION)


def _max_pool(*call: Any) -> _Grid:
    return _window(*call, places=(1, 2, 3, 4))


def _avg_pool(*call: Any) -> _Grid:
    return _window(*call, places=(1, 2, 3, 99))


def _pair(value: Any) -> tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return tuple(value) if len(value) > 1 else (*value, *value)
    return (value, value)


def _pad(grids: list[_Grid], args: Any, kwargs: Any, output: Tensor) -> _Grid:
    """What is put before the first cell; pads are listed from the last dimension backwards."""
    grid, pads = grids[0], args[1]
    if grid.axes is None:
        return grid
    before = [pads[2 * k] if 2 * (k := output.ndim - 1 - axis) < len(pads) else 0 for axis in grid.axes]
    return grid.step([output.shape[axis] for axis in grid.axes], (1, 1), [-count for count in before])


def _slice(grids: list[_Grid], args: Any, kwargs: Any, output: Tensor) -> _Grid:
    """Every n-th cell, from one on."""
    grid = grids[0]
    _, dim, start, _, step = (args[place] if place < len(args) else None for place in range(5))
    dim = (dim or 0) % output.ndim
    if grid.axes is None or dim not in grid.axes:
        return _carry(grids, args, kwargs, output)
    strides, shifts = [1, 1], [0, 0]
    place = grid.axes.index(dim)
    start = start or 0
    strides[place], shifts[place] = step or 1, start if start >= 0 else start + grid.size[place]
    return grid.step([output.shape[axis] for axis in grid.axes], strides, shifts)


def _permute(grids: list[_Grid], args: Any, kwargs: Any, output: Tensor) -> _Grid:
    order = [dim % output.ndim for dim in args[1]]
    return _reorder(grids[0], order)


def _transpose(grids: list[_Grid], args: Any, kwargs: Any, output: Tensor) -> _Grid:
    order = list(range(output.ndim))
    one, other = (dim % output.ndim for dim in args[1:3])
    order[one], order[other] = order[other], order[one]
    return _reorder(grids[0], order)


def _reorder(grid: _Grid, order: list[int]) -> _Grid:
    if grid.axes is None:
        return grid
    y, x = (order.index(axis) for axis in grid.axes)
    return dataclasses.replace(grid, axes=(y, x) if y < x else None)


def _cat(grids: list[_Grid], args: Any, kwargs: Any, output: Tensor) -> _Grid:
    """Cells of several grids as the channels of one: their middle, as where patches are merged two by two."""
    y, x = (float(np.mean([grid.start[axis] for grid in grids])) for axis in (0, 1))
    carried = _carry(grids, args, kwargs, output)
    return dataclasses.replace(carried, start=(y, x))


def _resize(grids: list[_Grid], args: Any, kwargs: Any, output: Tensor) -> _Grid:
    """Interpolation without aligned corners: the picture's edges stay where they are."""
    grid, size = grids[0], output.shape[-2:]
    strides = [old / new for old, new in zip(grid.size, size, strict=True)]
    return grid.step(size, strides, [(stride - 1) / 2 for stride in strides])


_RULES: dict[str, Callable[..., _Grid]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "constant_pad_nd": _pad,
    "reflection_pad2d": _pad,
    "replication_pad2d": _pad,
    "slice": _slice,
    "permute": _permute,
    "transpose": _transpose,
    "cat": _cat,
    "upsample_bilinear2d": _resize,
    "upsample_nearest2d": _resize,
    "upsample_bicubic2d": _resize,
    "_upsample_bilinear2d_aa": _resize,
    "_adaptive_avg_pool2d": _resize,
}
