"""Class-free region proposals of one image.

Boxes go in and come out as in Parquet: (N, 4) float32, x, y, width, height in pixels. A provider is a function from a
`ProposalInput` to boxes and scores (None where it ranks nothing). It sees no class, and for the same picture it gives
the same boxes.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .cache import cached
from .geometric import annotated, grid, none, random
from .inputs import FloatArray, ProposalInput

Provider = Callable[[ProposalInput], tuple[FloatArray, FloatArray | None]]


# OpenCV is loaded only by those who use it.
def _selective(picture: ProposalInput) -> tuple[FloatArray, None]:
    from . import selective

    return selective.selective(picture, selective.FULL)


def _selective_320(picture: ProposalInput) -> tuple[FloatArray, None]:
    from . import selective

    return selective.selective(picture, selective.FAST)


def _felzenszwalb(picture: ProposalInput) -> tuple[FloatArray, None]:
    from . import selective

    return selective.felzenszwalb(picture, selective.FULL)


def _map_masks(picture: ProposalInput) -> tuple[FloatArray, None]:
    from .map_masks import map_masks

    return map_masks(picture)


def _model_masks(picture: ProposalInput, model: str) -> tuple[FloatArray, FloatArray]:
    from .model_masks import model_masks

    return model_masks(picture, model)


PROVIDERS: dict[str, Provider] = {
    "boxes": annotated,
    "random": random,
    "grid": grid,
    "none": none,
    "selective": _selective,
    "selective_320": _selective_320,
    "felzenszwalb": _felzenszwalb,
    "masks": _map_masks,
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

    @property
    def looks_at_pixels(self) -> bool:
        """Whether it needs the image, not only its row."""
        return self.provider in SEGMENTING or self.mask_model is not None

    def find(self, picture: ProposalInput) -> tuple[FloatArray, FloatArray | None]:
        """Proposals (M, 4) of a picture and their scores (M,), or None for scores where nothing is ranked."""
        provider = PROVIDERS[self.provider]
        if self.mask_model is not None:
            provider = partial(_model_masks, model=self.mask_model)
        if self.cache is None or not self.looks_at_pixels or not picture.encoded:
            return provider(picture)
        size_px = picture.width, picture.height
        return cached(Path(self.cache), recipe_of(self), picture.encoded, size_px, lambda: provider(picture))


def check_provider(proposals: str | Proposals) -> None:
    """Raises if there is no such provider, or if it cannot work here."""
    chosen = as_proposals(proposals)
    if chosen.provider in SEGMENTING:
        from .segments import check_opencv

        check_opencv()


@lru_cache  # regions drawn while training come by name, image after image
def as_proposals(proposals: str | Proposals) -> Proposals:
    """The settings behind a name, or the settings themselves."""
    return Proposals(proposals) if isinstance(proposals, str) else proposals


def recipe_of(proposals: str | Proposals) -> Any:
    """All that decides the regions, as JSON: the name, and for those that look at pixels their settings."""
    chosen = as_proposals(proposals)
    if chosen.mask_model is not None:
        from .model_masks import OVERLAP_LIMIT, SIDE_LIMIT_PX, model_identity

        return {
            "provider": chosen.provider,
            "model": model_identity(chosen.mask_model),
            "side_limit_px": SIDE_LIMIT_PX,
            "overlap_limit": OVERLAP_LIMIT,
        }
    if chosen.provider in SEGMENTING:
        import cv2

        from .selective import FAST, FULL, VERSION

        settings = {"settings": dataclasses.asdict(FULL)}
        if chosen.provider == "selective_320":
            settings |= {"settings_of_larger_images": dataclasses.asdict(FAST)}
        # Another release of OpenCV may draw other segments.
        return {
            "provider": chosen.provider,
            "version": VERSION,
            "opencv": cv2.__version__,
            **settings,
        }
    return chosen.provider


def propose(
    provider: str, width: int, height: int, boxes: ArrayLike, rng: np.random.Generator, image: bytes | None = None
) -> tuple[FloatArray, FloatArray | None]:
    """Proposals (M, 4) and their scores (M,), or None for scores where the provider ranks nothing.

    Args:
        provider: one of `PROVIDERS`.
        width: of the image, in pixels.
        height: of the image, in pixels.
        boxes: the annotated boxes of the image, (N, 4) xywh in pixels; only the provider "boxes" looks at them.
        rng: source of all randomness; only the provider "random" draws from it.
        image: the encoded image, for the providers that look at pixels.
    """
    return Proposals(provider).find(_picture(width, height, boxes, rng, image))


def add_regions(row: dict[str, Any], proposals: str | Proposals) -> dict[str, Any]:
    """A row of the Parquet contract with its `regions`, which depend on the image and its id, not on where it lies."""
    chosen = as_proposals(proposals)
    digest = hashlib.sha256(row["image_id"].encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    objects, segmentation = row["objects"], row.get("segmentation") or {}
    single = [box for box, crowd in zip(objects["bbox"], objects["iscrowd"], strict=True) if not crowd]
    picture = _picture(row["width"], row["height"], single, rng, row["image"]["bytes"], segmentation.get("bytes"))
    try:
        boxes, scores = chosen.find(picture)
    except ValueError as error:
        error.add_note(f"This was image {row['image_id']!r}.")
        raise
    regions = {
        "bbox": boxes.tolist(),
        "score": None if scores is None else scores.tolist(),
        "source": [chosen.provider] * len(boxes),
    }
    return {**row, "regions": regions}


def _picture(
    width: int,
    height: int,
    boxes: ArrayLike,
    rng: np.random.Generator,
    encoded: bytes | None = None,
    encoded_map: bytes | None = None,
) -> ProposalInput:
    if width <= 0 or height <= 0:
        raise ValueError(f"The image is {width} x {height} px, expected both sides to be positive.")
    return ProposalInput(width, height, np.asarray(boxes, np.float32).reshape(-1, 4), rng, encoded, encoded_map)
