"""A data set whose classes are colours: what a protocol must find in it is known."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from modeling_decodepos.data.schema import build_features
from training.evaluation.evaluation import Common, Evaluation

COLOURS = ((220, 30, 30), (30, 200, 40), (40, 60, 230))
NAMES = ("red", "green", "blue")
SIDE = 64


def png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def squares_row(number: int, split: str) -> dict[str, Any]:
    """Two squares of different colours on grey noise, in whole pixels, with their label map."""
    rng = np.random.default_rng([number, len(split)])
    pixels = rng.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    boxes, categories = [], []
    for half, colour in enumerate(rng.permutation(len(COLOURS))[:2].tolist()):
        side = int(rng.integers(14, 26))
        x, y = int(rng.integers(0, SIDE - side)), int(rng.integers(0, SIDE // 2 - side + 1)) + half * SIDE // 2
        pixels[y : y + side, x : x + side] = COLOURS[colour]
        labels[y : y + side, x : x + side] = colour + 1
        boxes.append([float(x), float(y), float(side), float(side)])
        categories.append(colour)
    labels[:2] = 255
    objects = {
        "bbox": boxes,
        "category": categories,
        "area": [w * h for _, _, w, h in boxes],
        "iscrowd": [False] * len(boxes),
    }
    return {
        "image": png(pixels),
        "image_id": f"{split}-{number:03}",
        "width": SIDE,
        "height": SIDE,
        "objects": objects,
        "regions": {"bbox": [], "score": [], "source": []},
        "segmentation": png(labels),
        "license": None,
        "author": None,
        "original_url": None,
        "landing_url": None,
    }


Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def write_squares(folder: Path, change: Change = list, train: int = 24, validation: int = 12) -> Path:
    """The data set, its rows changed before they are written."""
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", train), ("validation", validation)):
        rows = change([squares_row(number, split) for number in range(count)])
        data = datasets.Dataset.from_list(rows, features=build_features(NAMES))
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("squares") / "data")


class FakeModel:
    """A model whose features are what functions make of the pixels."""

    def __init__(self, region: Callable[[Tensor, Tensor], Tensor] | None = None, cell: Any = None):
        self.name, self.device = "fake", torch.device("cpu")
        self.region, self.cell, self.calls = region, cell, 0

    def embed(self, pixels: Tensor, boxes: list[Tensor]) -> Tensor:
        self.calls += 1
        rows = [self.region(p.float(), box) for p, own in zip(pixels, boxes, strict=True) for box in own]
        return torch.stack(rows) if rows else torch.zeros((0, 3))

    def dense_offset(self, side: int, feature_map: Tensor) -> tuple[float, float]:
        return (0.0, 0.0)

    def fitting_side(self, wanted_px: int) -> int:
        return wanted_px

    def dense(self, pixels: Tensor) -> Tensor:
        return self.cell(pixels.float())


def inside(pixels: Tensor, box: Tensor) -> Tensor:
    """The mean colour of a box."""
    x1, y1, x2, y2 = (box * pixels.shape[-1]).round().int().tolist()
    return pixels[:, y1:y2, x1:x2].mean((1, 2)) - 128


@pytest.fixture
def evaluation(squares: Path) -> Callable[..., Evaluation]:
    """An evaluation of a fake model."""

    def build(model: FakeModel, data: Path = squares, **changes: Any) -> Evaluation:
        common = Common("fake", str(data), **{"size_px": SIDE, "batch_size": 5} | changes)
        built = Evaluation(common)
        built.__dict__["model"] = model
        return built

    return build
