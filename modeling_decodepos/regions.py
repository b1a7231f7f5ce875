"""Regions: boxes and masks, how they are checked, padded and turned into pixels.

A region is a box (xyxy, float, in [0, 1] of its own view) or a boolean mask over the view's pixels. Images carry
different numbers of regions, so a batch is a padded tensor with `valid_regions` saying which rows are real.

Shapes: B images, R regions (the most any image has), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A box may stick out of the image by rounding noise; more than this is a mistake worth an error.
BOX_TOLERANCE = 1e-3


@dataclass
class View:
    """One view of a batch of images: pixels, and where the regions lie in them.

    Region i of a view and region i of another view of the same image show the same thing: that is how the losses
    match them. A view of regions alone has a picture per region, which its box fills.
    """

    pixel_values: Tensor  # (B, 3, H, W), or (B, R, 3, H, W) of regions alone
    boxes: Tensor  # (B, R, 4)
    valid_regions: Tensor  # (B, R), bool
    rows: Tensor | None = None  # (B,), which images of the batch these are; all of them, in order, when None

    @property
    def is_alone(self) -> bool:
        """Whether each region is a picture of its own."""
        return self.pixel_values.ndim == 5

    def to(self, device: torch.device | str) -> View:
        """The same view on another device."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> View:
        """The same view in page-locked memory; a DataLoader calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> View:
        rows = None if self.rows is None else function(self.rows)
        return View(function(self.pixel_values), function(self.boxes), function(self.valid_regions), rows)


@dataclass
class Regions:
    """Checked regions of a batch, padded to one length; `masks` is there when they came as masks."""

    boxes: Tensor  # (B, R, 4)
    valid: Tensor  # (B, R), bool
    masks: Tensor | None = None  # (B, R, H, W), bool


def check_regions(
    regions: Tensor | Sequence[Tensor],
    batch_size: int,
    valid_regions: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Regions:
    """Padded, validated regions on a device, from any accepted form.

    Boxes come as a list of (R_i, 4) tensors, one per image, or as a padded (B, R, 4) tensor; masks as a list of
    (R_i, H, W) tensors or a (B, R, H, W) tensor. Boxes are xyxy in [0, 1]; a mask is true inside. `valid_regions` is
    true for the real rows of a padded tensor; all count when it is left out. The ValueError for a wrong form, number
    of images or region names image and row.
    """
    if isinstance(regions, Tensor):
        if regions.ndim not in (3, 4):
            raise ValueError(
                f"regions has shape {tuple(regions.shape)}; expected boxes (B, R, 4), masks (B, R, H, W), or a list "
                "with one (R_i, 4) or (R_i, H, W) tensor per image."
            )
        rows, padded_valid = regions, torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
        if valid_regions is not None:
            if valid_regions.shape != regions.shape[:2]:
                raise ValueError(
                    f"valid_regions has shape {tuple(valid_regions.shape)}, expected {tuple(regions.shape[:2])} "
                    "(one flag per image and region)."
                )
            padded_valid = valid_regions.to(regions.device, torch.bool)
    else:
        if valid_regions is not None:
            raise ValueError("valid_regions goes with a padded tensor of regions; a list says it by its lengths.")
        rows, padded_valid = pad_regions(regions)
    if rows.shape[0] != batch_size:
        raise ValueError(
            f"regions are given for {rows.shape[0]} images, but pixel_values holds {batch_size}. Pass one entry per "
            "image; an image without regions gets an empty (0, 4) tensor."
        )
    if rows.ndim == 4:
        if rows.is_floating_point():
            raise ValueError(f"masks are {rows.dtype}; expected boolean ones. Threshold scores first: masks > 0.5.")
        masks = rows.to(device, torch.bool)
        valid = padded_valid.to(device)
        _check_masks(masks, valid)
        return Regions(boxes=masks_to_boxes(masks), valid=valid, masks=masks)
    if rows.shape[-1] != 4:
        raise ValueError(f"boxes have {rows.shape[-1]} numbers each; expected 4: x1, y1, x2, y2 in [0, 1].")
    boxes, valid = rows.to(device), padded_valid.to(device)
    boxes = boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()
    if not torch.compiler.is_compiling():
        _check_boxes(boxes, valid)
    # Padding rows become a harmless full box: nothing is ever pooled from them, but no NaN may hide there either.
    whole = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    return Regions(boxes=torch.where(valid[..., None], boxes.clamp(0.0, 1.0), whole), valid=valid)


def pad_regions(regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, R, …) regions padded with zeros to the longest list, and (B, R) flags for the real rows."""
    if len(regions) == 0:
        raise ValueError("regions is an empty list; expected one tensor per image.")
    for image, rows in enumerate(regions):
        alike = isinstance(rows, Tensor) and rows.ndim in (2, 3) and rows.shape[1:] == regions[0].shape[1:]
        if not alike:
            shape = tuple(rows.shape) if isinstance(rows, Tensor) else f"a {type(rows).__name__}, not a torch tensor"
            raise ValueError(
                f"regions[{image}] is {shape}; expected (R, 4) boxes for every image or (R, H, W) masks for every "
                f"image (regions[0] is {tuple(getattr(regions[0], 'shape', ()))})."
            )
    lengths = torch.tensor([len(rows) for rows in regions], device=regions[0].device)
    padded = regions[0].new_zeros((len(regions), int(lengths.max()), *regions[0].shape[1:]))
    for image, rows in enumerate(regions):
        padded[image, : len(rows)] = rows
    return padded, torch.arange(padded.shape[1], device=lengths.device) < lengths[:, None]


def masks_to_boxes(masks: Tensor) -> Tensor:
    """(…, 4) tight unit boxes around boolean (…, H, W) masks; an empty mask gives the whole view."""
    columns, rows = masks.any(-2), masks.any(-1)

    def extent(line: Tensor) -> tuple[Tensor, Tensor]:
        size = line.shape[-1]
        cells = torch.arange(size, device=line.device)
        first = torch.where(line, cells, size).amin(-1)
        last = torch.where(line, cells, -1).amax(-1)
        empty = last < 0
        return torch.where(empty, 0, first) / size, torch.where(empty, size, last + 1) / size

    x1, x2 = extent(columns)
    y1, y2 = extent(rows)
    return torch.stack([x1, y1, x2, y2], dim=-1)


def boxes_to_pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(R, 4) integer boxes x1, y1, x2, y2 (end exclusive) on an (H, W) grid, at least one cell wide and high.

    A box that has no area, or lies outside the view, comes back with no cells (x2 == x1 or y2 == y1).
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    furthest = np.abs(boxes).max(initial=0.0)  # NaN, if there is one
    if not furthest <= 2:
        if not np.isfinite(furthest):
            wrong = boxes[~np.isfinite(boxes).all(1)][0].tolist()
            raise ValueError(f"boxes hold a value that is not finite: {wrong}.")
        raise ValueError(
            f"a box reaches {furthest:g}; expected x1, y1, x2, y2 in [0, 1]. Divide pixel boxes by width and height."
        )
    height, width = size
    clipped = np.minimum(np.maximum(boxes, 0.0), 1.0) * (width, height, width, height)
    pixels = (clipped + 0.5).astype(np.int64)
    start, end = pixels[:, :2], pixels[:, 2:]
    # A thin box inside one cell rounds to nothing; it still covers that cell.
    np.minimum(start, (width - 1, height - 1), out=start)
    np.maximum(end, start + 1, out=end)
    without_area = (clipped[:, 2:] <= clipped[:, :2]).any(1)
    end[without_area] = start[without_area]
    return pixels


def rasterise(pixel_boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) boolean union of integer boxes as `boxes_to_pixels` gives them; what sticks out is left out."""
    mask = np.zeros(size, dtype=bool)
    for x1, y1, x2, y2 in np.maximum(pixel_boxes, 0).tolist():  # a negative index would count from the other side
        mask[y1:y2, x1:x2] = True
    return mask


def flip_boxes(boxes: np.ndarray) -> np.ndarray:
    """Unit boxes of the mirrored view (left and right exchanged)."""
    flipped = boxes[..., [2, 1, 0, 3]]
    flipped[..., ::2] = 1 - flipped[..., ::2]
    return flipped


def rotate_boxes(boxes: np.ndarray, quarters: int) -> np.ndarray:
    """Unit boxes of the view turned counter-clockwise by so many quarters of a circle, as `numpy.rot90` does."""
    for _ in range(quarters % 4):
        x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
        boxes = np.stack([y1, 1 - x2, y2, 1 - x1], axis=-1)
    return boxes


def boxes_in_window(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Unit boxes of the image, expressed in the unit coordinates of a window of it and clipped to that window."""
    origin, extent = window[:2], window[2:] - window[:2]
    moved = (boxes.reshape(-1, 2, 2) - origin) / extent
    return np.minimum(np.maximum(moved.reshape(-1, 4), 0.0), 1.0)


def _check_boxes(boxes: Tensor, valid: Tensor) -> None:
    clipped = boxes.clamp(0.0, 1.0)
    # Written so that NaN fails. One verdict first: on an accelerator each look at a value waits for the device.
    inside = ((boxes >= -BOX_TOLERANCE) & (boxes <= 1 + BOX_TOLERANCE)).all(-1)
    has_area = (clipped[..., 2:] > clipped[..., :2]).all(-1)
    if (inside & has_area | ~valid).all():
        return

    def complain(wrong: Tensor, reason: str) -> None:
        wrong = wrong & valid
        if wrong.any():
            image, row = (int(i) for i in wrong.nonzero()[0])
            found = [round(float(v), 4) for v in boxes[image, row]]
            raise ValueError(f"box {row} of image {image} is {found}: {reason}")

    complain(~boxes.isfinite().all(-1), "it holds a value that is not finite.")
    complain(
        ~inside,
        "it leaves the image. Boxes are x1, y1, x2, y2 in [0, 1] of the image: divide pixel boxes by width and "
        "height, and clip boxes that stick out.",
    )
    complain(
        ~has_area,
        "it has no area. Expected x1 < x2 and y1 < y2 (a COCO x, y, width, height box must be converted first).",
    )


def _check_masks(masks: Tensor, valid: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    empty = ~masks.flatten(2).any(-1) & valid
    if empty.any():
        image, row = (int(i) for i in empty.nonzero()[0])
        raise ValueError(f"mask {row} of image {image} is empty; drop it or mark it False in valid_regions.")
