"""Small data sets to embed, and networks whose features are known without running them."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from dataset_scripts import prepare
from modeling_decodepos.data.schema import build_features


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of 64 pixels in one split, four in another, with objects and label maps."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    size = ["--train", "12", "--validation", "4", "--size-px", "64", "--workers", "1"]
    assert prepare.main(["scenes", "--output", str(folder), *size]) in (0, None)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """150 pictures of noise, in two folders, and a file that is none."""
    rng = np.random.default_rng(0)
    for number in range(150):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "a" / "070.jpg").write_bytes(b"\xff\xd8\xff and nothing more")
    return tmp_path / "photos"


def write_table(folder: Path, rows: list[dict[str, Any]], classes: list[str], without: tuple[str, ...] = ()) -> Path:
    """A data set in the contract from rows with `image` (pixels), `bbox`, `category` and `segmentation`."""
    made = []
    for number, row in enumerate(rows):
        height, width = row["image"].shape[:2]
        boxes = row.get("bbox", [])
        objects = {"bbox": boxes, "category": row.get("category", [0] * len(boxes))}
        objects |= {"area": [1.0] * len(boxes), "iscrowd": [False] * len(boxes)}
        made.append(
            {
                "image": encode(row["image"], row.get("format", "PNG")),
                "image_id": f"p{number}",
                "width": width,
                "height": height,
                "objects": objects,
                "regions": {"bbox": row.get("proposals", []), "score": [], "source": []},
                "segmentation": encode(row["segmentation"]) if "segmentation" in row else None,
                **dict.fromkeys(("license", "author", "original_url", "landing_url")),
            }
        )
    table = datasets.Dataset.from_list(made, features=build_features(classes)).remove_columns(list(without))
    (folder / "data").mkdir(parents=True)
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def encode(pixels: np.ndarray, kind: str = "PNG") -> dict[str, Any]:
    """Pixels as a file, in a row."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}
