"""Class-free region proposals of one image.

Boxes go in and come out as in Parquet: (N, 4) float32, x, y, width, height in pixels. A provider is a function from a
`ProposalInput` to boxes and scores (None where it ranks nothing). It sees no class, and for the same picture it gives
the same boxes.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike

from . import geometric, model_masks, selective
from .cache import cached
from .inputs import ProposalInput, Regions, as_xywh
from .segments import check_opencv

PROVIDERS: dict[str, Callable[[ProposalInput], Regions]] = {
    "boxes": geometric.annotated,
    "random": geometric.random,
    "grid": geometric.grid,
    "none": geometric.none,
    "selective": selective.selective,
    "selective_320": partial(selective.selective, settings=selective.FAST),
    "felzenszwalb": selective.felzenszwalb,
    "masks": geometric.map_masks,
}
SEGMENTING = {"selective", "selective_320", "felzenszwalb"}


@dataclasses.dataclass(frozen=True)
class Proposals:
    """Where regions come from.

    Attributes:
        provider: A key of `PROVIDERS`.
        mask_model: For the provider "masks": a folder or Hub id of a SAM-type model, whose masks are then taken
            instead of the row's map.
        cache: A folder that keeps what takes long; it changes no result.
    """

    provider: str
    mask_model: str | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise ValueError(f"proposals is {self.provider!r}, expected one of {', '.join(PROVIDERS)}.")
        if self.mask_model is not None and self.provider != "masks":
            raise ValueError(
                f"mask_model is {self.mask_model!r} and proposals is {self.provider!r}; it is for masks alone."
            )

    def find(self, picture: ProposalInput) -> Regions:
        """Proposals (M, 4) of a picture and their scores (M,), or None for scores where nothing is ranked."""
        provider = PROVIDERS[self.provider]
        if self.mask_model is not None:
            provider = partial(model_masks.model_masks, model=self.mask_model)
        looks_at_pixels = self.provider in SEGMENTING or self.mask_model is not None
        if self.cache is None or not looks_at_pixels or not picture.encoded:
            return provider(picture)
        size_px = picture.width, picture.height
        return cached(Path(self.cache), recipe_of(self), picture.encoded, size_px, lambda: provider(picture))


def _chosen(proposals: str | Proposals) -> Proposals:
    return Proposals(proposals) if isinstance(proposals, str) else proposals


def recipe_of(proposals: str | Proposals) -> Any:
    """All that decides the regions, as JSON: the name, and for those that look at pixels their settings.

    Raises:
        ValueError: There is no such provider, or it cannot work here.
    """
    chosen = _chosen(proposals)
    if chosen.mask_model is not None:
        return {
            "provider": chosen.provider,
            "model": model_masks.model_identity(chosen.mask_model),
            "side_limit_px": model_masks.SIDE_LIMIT_PX,
            "overlap_limit": model_masks.OVERLAP_LIMIT,
        }
    if chosen.provider not in SEGMENTING:
        return chosen.provider
    check_opencv()
    settings = {"settings": dataclasses.asdict(selective.FULL)}
    if chosen.provider == "selective_320":
        settings["settings_of_larger_images"] = dataclasses.asdict(selective.FAST)
    # Another release of OpenCV may draw other segments.
    return {"provider": chosen.provider, "version": selective.VERSION, "opencv": cv2.__version__, **settings}


def propose(
    provider: str, width: int, height: int, boxes: ArrayLike, rng: np.random.Generator, image: bytes | None = None
) -> Regions:
    """Proposals (M, 4) and their scores (M,), or None for scores where the provider ranks nothing.

    Only the provider "boxes" looks at the annotated `boxes` (N, 4), only "random" draws from `rng`, and only those
    that look at pixels need the encoded `image`.
    """
    return Proposals(provider).find(ProposalInput(width, height, as_xywh(boxes), rng, image))


def add_regions(row: dict[str, Any], proposals: str | Proposals) -> dict[str, Any]:
    """A row of the Parquet contract with its `regions`, which depend on the image and its id, not on where it lies."""
    chosen = _chosen(proposals)
    digest = hashlib.sha256(row["image_id"].encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    objects, segmentation = row["objects"], row.get("segmentation") or {}
    single = [box for box, crowd in zip(objects["bbox"], objects["iscrowd"], strict=True) if not crowd]
    files = row["image"]["bytes"], segmentation.get("bytes")
    try:
        boxes, scores = chosen.find(ProposalInput(row["width"], row["height"], as_xywh(single), rng, *files))
    except ValueError as error:
        error.add_note(f"This was image {row['image_id']!r}.")
        raise
    regions = {
        "bbox": boxes.tolist(),
        "score": None if scores is None else scores.tolist(),
        "source": [chosen.provider] * len(boxes),
    }
    return {**row, "regions": regions}
