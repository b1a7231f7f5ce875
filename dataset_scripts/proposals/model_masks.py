"""Regions from a SAM-type model: boxes of the masks that transformers' mask generation finds, with their scores."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .inputs import FloatArray, ProposalInput, Regions

SIDE_LIMIT_PX = 1024  # what such models look at
OVERLAP_LIMIT = 0.7  # of two boxes (intersection over union) the one with the lower score goes; as in transformers


def model_masks(picture: ProposalInput, model: str) -> Regions:
    """Boxes and the model's scores, best first."""
    pixels = picture.pixels(SIDE_LIMIT_PX)
    corners, scores = _generator(model)(Image.fromarray(pixels))
    kept = without_doubles(corners, scores)
    boxes = np.concatenate([corners[kept, :2], corners[kept, 2:] - corners[kept, :2]], axis=1)
    height, width = pixels.shape[:2]
    scaled = boxes * np.array([picture.width / width, picture.height / height] * 2)
    return scaled.astype(np.float32), scores[kept].astype(np.float32)


def without_doubles(corners: FloatArray, scores: FloatArray) -> np.ndarray:
    """Indices of xyxy boxes, best score first, no two of which overlap by more than the limit."""
    order = np.argsort(-scores, kind="stable")
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(corners[best, :2], corners[order, :2])
        common = (np.minimum(corners[best, 2:], corners[order, 2:]) - low).clip(0).prod(1)
        order = order[common <= OVERLAP_LIMIT * (area[best] + area[order] - common)]
    return np.array(kept, np.int64)


@lru_cache(maxsize=1)  # gigabytes to read
def model_identity(model: str) -> str:
    """What tells a model from another: the hash of a folder's files, or the Hub id itself."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


@lru_cache(maxsize=1)  # one per process
def _generator(model: str) -> Any:
    from transformers import MaskGenerationPipeline, pipeline

    class Boxes(MaskGenerationPipeline):
        """Ends at boxes: the last step of transformers' own needs torchvision, and draws masks that nobody reads."""

        def postprocess(self, model_outputs: Any, *_: Any, **__: Any) -> tuple[FloatArray, FloatArray]:
            """(N, 4) xyxy, the far border exclusive, and (N,) scores."""
            corners = np.concatenate([output["boxes"].float().cpu().numpy() for output in model_outputs])
            scores = np.concatenate([output["iou_scores"].float().cpu().numpy() for output in model_outputs])
            corners[:, 2:] += 1  # theirs is the last pixel
            return corners, scores

    try:
        return pipeline("mask-generation", model=model, pipeline_class=Boxes)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"mask_model {model!r} cannot be loaded as a model for mask generation (SAM and its kin): {error}"
        ) from error
