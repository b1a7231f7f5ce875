"""The views of a batch, made on the device that trains.

`sample_views` draws as ever, on the CPU. Then either `apply_view` makes each view there, from 8-bit pixels with
OpenCV, or a worker only packs the images and what was drawn (`pack_views`), and `make_views` makes the views of the
whole batch at once: by matrix products and elementwise arithmetic, without a look at any value from the host. Both
give the same views but for rounding, which may also differ from device to device and with the size of the batch: a
grey level here and there. tests/training/views/test_on_device.py says how nearly they agree.

Images travel as they are, one behind the other, so that nothing is uploaded but their own pixels. They are padded to
one size on the device only; one huge image would pad a whole batch, so prepare small images (short side 288).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from modeling_decodepos.regions import View
from training.recipe import ViewArguments
from training.views.colours import BLUR_SIGMA
from training.views.on_device_colours import (
    JITTER_CODES,
    JITTER_SLOTS,
    blur_and_place,
    blur_taps,
    grey_of,
    hue_step,
    jitter_colours,
    solarize,
)
from training.views.on_device_resize import matmul_dtype, resize_windows, unpack_images
from training.views.sampling import MEAN_COLOUR, VIEW_RULES, PixelSource, ViewParameters

# Images are padded to a multiple of this, so that most batches have one shape and compiled code serves them all.
PAD_PX = 64
_FILL: tuple[int, ...] = tuple(MEAN_COLOUR.tolist())
# The numbers of a source: its window; side, flip, left, top; operations; their factors; grayscale, solarize. The taps
# of its blur follow.
_COLUMNS = (4, 4, JITTER_SLOTS, JITTER_SLOTS, 2)

T = TypeVar("T")


@dataclass
class PackedImages:
    """N images of any size in one piece."""

    pixels: Tensor  # (P, 3) uint8, all pixels
    places: Tensor  # (N, 3), each image's first pixel, height and width
    padded_size: tuple[int, int]  # height and width that holds each of them


@dataclass
class PackedView:
    """What was drawn for one view of a batch; everything of a `View` but its pixels."""

    size_px: int
    source: Tensor  # (B, columns) float32
    boxes: Tensor  # (B, R, 4)
    valid_regions: Tensor  # (B, R), bool
    rows: Tensor | None  # (B,), which images of the batch these are; all of them, in order, when None
    cut: Tensor | None = None  # (B, S, S / 8) uint8, eight flags in each
    background: Tensor | None = None  # (B, columns) float32, of the donors
    foreground: Tensor | None = None  # (B, S, S / 8) uint8


@dataclass
class PackedViews:
    """Images and parameters of a batch: what `make_views` needs, in few tensors."""

    images: PackedImages
    donors: PackedImages | None  # of the samples with a moved view, in their order; None if there is no such sample
    views: dict[str, PackedView]

    def to(self, device: torch.device | str) -> PackedViews:
        """The same on another device."""
        return _each(self, lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> PackedViews:
        """The same in page-locked memory."""
        return _each(self, Tensor.pin_memory)

    @property
    def nbytes(self) -> int:
        """Bytes to upload."""
        sizes: list[int] = []

        def add(part: Tensor) -> Tensor:
            sizes.append(part.nbytes)
            return part

        _each(self, add)
        return sum(sizes)


def _each(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """A copy with `function` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {key: _each(item, function) for key, item in value.items()}  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _each(getattr(value, field.name), function) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


# --- in a worker


def pack_views(
    images: Sequence[np.ndarray],
    donors: Sequence[np.ndarray | None],
    parameters: Sequence[dict[str, ViewParameters]],
    names: Sequence[str],
    args: ViewArguments,
) -> PackedViews:
    """A batch for `make_views`.

    Args:
        images: (H, W, 3) uint8 RGB, one per sample.
        donors: For each sample with a moved view, the image that surrounds the regions; looked at for those only.
        parameters: From `sample_views`, one per sample.
        names: The views to make. A view that no sample has comes out with no rows.
        args: What the parameters were drawn with.
    """
    views, moved = {}, []
    for name in names:
        rows = [row for row, drawn in enumerate(parameters) if name in drawn]
        views[name] = _pack_view(name, [parameters[row][name] for row in rows], rows, len(parameters), args)
        if VIEW_RULES[name].moved:
            moved = [donor for row in rows if (donor := donors[row]) is not None]
            if len(moved) < len(rows):
                lack = len(rows) - len(moved)
                raise ValueError(f"{name} needs the donor's pixels; {lack} of {len(rows)} samples lack them.")
    return PackedViews(_pack_images(images), _pack_images(moved) if moved else None, views)


def _pack_images(images: Sequence[np.ndarray]) -> PackedImages:
    sizes = np.array([image.shape[:2] for image in images])
    first = np.concatenate([[0], sizes.prod(1).cumsum()[:-1]])
    height, width = (-(-sizes.max(0) // PAD_PX) * PAD_PX).tolist()
    return PackedImages(
        torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images])),
        torch.from_numpy(np.column_stack([first, sizes])),
        (height, width),
    )


def _pack_view(
    name: str, drawn: list[ViewParameters], rows: list[int], batch_size: int, args: ViewArguments
) -> PackedView:
    rule = VIEW_RULES[name]
    size = args.small_view_px if rule.small else args.view_size_px
    corners = [(0, 0) if p.placement is None else (p.placement.left_px, p.placement.top_px) for p in drawn]
    packed = PackedView(
        size_px=size,
        source=_pack_sources([p.source for p in drawn], corners, size),
        boxes=_stack([p.boxes for p in drawn], (args.num_regions, 4), torch.float32),
        valid_regions=_stack([p.valid for p in drawn], (args.num_regions,), torch.bool),
        rows=None if drawn and len(rows) == batch_size else torch.tensor(rows, dtype=torch.int64),
    )
    flags = (size, -(-size // 8))
    if rule.cut:
        cuts = [np.packbits(p.cut, axis=1) for p in drawn if p.cut is not None]
        packed = dataclasses.replace(packed, cut=_stack(cuts, flags, torch.uint8))
    if rule.moved:
        kept = [np.packbits(p.foreground, axis=1) for p in drawn if p.foreground is not None]
        backgrounds = [p.background for p in drawn if p.background is not None]
        packed = dataclasses.replace(
            packed,
            background=_pack_sources(backgrounds, [(0, 0)] * len(backgrounds), size),
            foreground=_stack(kept, flags, torch.uint8),
        )
    return packed


def _stack(rows: list[np.ndarray], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The rows in one tensor, which has no rows when there are none."""
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros((0, *shape), dtype=dtype)


def _pack_sources(sources: list[PixelSource], corners: list[tuple[int, int]], size: int) -> Tensor:
    taps = [blur_taps(source.colours.blur_sigma * source.side_px / 224) for source in sources]
    # As many columns as the widest blur ever drawn needs: the shape shall not depend on the draw.
    most = max([len(blur_taps(BLUR_SIGMA[1] * size / 224)), *map(len, taps)])
    rows = np.zeros((len(sources), sum(_COLUMNS) + most), dtype=np.float32)
    for row, source, (left, top), own_taps in zip(rows, sources, corners, taps, strict=True):
        colours = source.colours
        if len(colours.jitter) > JITTER_SLOTS:
            raise ValueError(f"{len(colours.jitter)} jitter operations; there is room for {JITTER_SLOTS}.")
        codes, factors = np.zeros(JITTER_SLOTS), np.zeros(JITTER_SLOTS)
        for slot, (operation, factor) in enumerate(colours.jitter):
            codes[slot] = JITTER_CODES[operation]
            factors[slot] = hue_step(factor) if operation == "hue" else factor
        geometry = [*source.window, source.side_px, source.flip, left, top]
        numbers = [*geometry, *codes, *factors, colours.grayscale, colours.solarize, *own_taps]
        row[: len(numbers)] = numbers
    return torch.from_numpy(rows)


# --- on the device


@torch.no_grad()
def make_views(packed: PackedViews, compiled: bool = False) -> dict[str, View]:
    """The views by name, as a `RegionDataset` gives them: (B, 3, S, S) uint8 pixels, channels last in memory.

    Args:
        packed: On the device where the views shall be made.
        compiled: Fuse the elementwise work with `torch.compile`: much faster on an accelerator, after some minutes'
            compilation in the first steps.
    """
    read = _compiled_read() if compiled else read_squares
    dtype = matmul_dtype(packed.images.pixels.device)
    images, donors = (
        None if part is None else unpack_images(part.pixels, part.places, part.padded_size, dtype)
        for part in (packed.images, packed.donors)
    )
    assert images is not None
    views = {}
    for name, view in packed.views.items():
        size = view.size_px
        if len(view.source) == 0:
            pixels = torch.zeros((0, 3, size, size), dtype=torch.uint8, device=images.device)
        else:
            own = images if view.rows is None else images.index_select(0, view.rows)
            squares = read(own, view.source, size)
            if view.cut is not None:
                channels = [squares.new_full((1, 1, 1, 1), value) for value in _FILL]
                squares = torch.where(unpack_flags(view.cut, size), torch.cat(channels, 2), squares)
            if view.background is not None and view.foreground is not None and donors is not None:
                background = read(donors, view.background, size)
                squares = torch.where(unpack_flags(view.foreground, size), squares, background)
            pixels = squares.transpose(2, 3).to(torch.uint8, memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
        views[name] = View(pixels, view.boxes, view.valid_regions, view.rows)
    return views


def read_squares(images: Tensor, source: Tensor, size: int) -> Tensor:
    """(B, S, 3, S) squares of (B, H, 3, W) images: the batch's `_read` of `sampling`, then laid in their place.

    Where a source fills less than the square, the rest is 0.
    """
    windows, geometry, codes, factors, switches, taps = source.split(
        [*_COLUMNS, source.shape[1] - sum(_COLUMNS)], dim=1
    )
    side_px, flip, left_px, top_px = geometry.unbind(1)
    grayscale, solarized = (switches[..., None, None, None] > 0).unbind(1)
    squares = resize_windows(images, windows, side_px, flip > 0, size)
    pixels = jitter_colours(squares.float(), codes, factors, side_px)
    pixels = torch.where(grayscale, grey_of(pixels), pixels).to(squares.dtype)
    pixels = blur_and_place(pixels, taps, side_px, left_px, top_px)
    return torch.where(solarized, solarize(pixels), pixels)


@functools.cache
def _compiled_read() -> Callable[[Tensor, Tensor, int], Tensor]:
    compiled = torch.compile(read_squares, fullgraph=True)

    def read(images: Tensor, source: Tensor, size: int) -> Tensor:
        # How many images there are and how large the largest is changes from batch to batch. Said beforehand, there
        # is one compilation per size of view, else one for every new combination.
        torch._dynamo.maybe_mark_dynamic(images, [0, 1, 3])
        torch._dynamo.maybe_mark_dynamic(source, 0)
        return compiled(images, source, size)

    return read


def unpack_flags(flags: Tensor, size: int) -> Tensor:
    """(B, S, 1, S) booleans from (B, S, S / 8) bytes."""
    shifts = 7 - torch.arange(8, device=flags.device, dtype=torch.uint8)
    bits = (flags[..., None] >> shifts) & 1
    return (bits.flatten(2)[..., :size] > 0)[:, :, None]
