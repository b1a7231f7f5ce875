"""Region proposals per core, ours against selective search of others: `python -m benchmarks.proposals --data FOLDER`.

Every method gets an encoded photo and gives boxes, after SoCo's filter where it is a segmentation. The peers are the
PyPI package `selectivesearch` 0.4 with SoCo's settings, which does what SoCo's own copy does, and the selective search
of OpenCV's ximgproc. They are no dependency of this project:

    python -m venv peers && peers/bin/pip install -e .[train] selectivesearch==0.4 scikit-image

A folder of `--data` is COCO as it comes (annotations/instances_*.json and the photos beside it) or one in our Parquet
layout. Objects count for recall if their box covers at least a sixteenth of the image.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.timing import (
    Spread,
    clock_for,
    clock_name,
    print_machine,
    print_result,
    print_table,
    ratio,
    spread,
    time_interleaved,
)
from dataset_scripts.proposals import add_regions
from dataset_scripts.proposals.selective import keep_useful

PEER = "selectivesearch 0.4"
OURS = ("selective", "selective_320", "felzenszwalb", "masks", "grid", "random")
COCO_IMAGES = 118_287
MIN_SIZE = 0.25  # of an object: square root of its area, as a share of the image's
RECALL_IOU = 0.5
# Wanted: times the peer's speed.
TARGETS = {"selective": 4.0, "selective_320": 15.0}


@dataclass(frozen=True)
class Photo:
    """An encoded photo, (N, 4) xywh boxes of its objects, and its map if it has one."""

    image_id: str
    encoded: bytes
    width: int
    height: int
    objects: np.ndarray
    encoded_map: bytes | None = None

    def decode(self) -> np.ndarray:
        """(H, W, 3) RGB."""
        return np.asarray(Image.open(io.BytesIO(self.encoded)).convert("RGB"))


Method = Callable[[Photo], np.ndarray]


# --- photos


def load_photos(folder: Path, split: str, count: int) -> list[Photo]:
    """The first photos of a folder; of Parquet those with a segmentation map."""
    annotations = sorted(folder.glob("annotations/instances_*.json"))
    photos = _from_coco(folder, annotations[0]) if annotations else _from_parquet(folder, split)
    if not photos:
        raise SystemExit(f"--data {folder} holds no photo of split {split!r}.")
    return photos[:count]


def _from_coco(folder: Path, annotations: Path) -> list[Photo]:
    content = json.loads(annotations.read_text())
    boxes: dict[int, list[list[float]]] = {}
    for entry in content["annotations"]:
        if not entry["iscrowd"]:
            boxes.setdefault(entry["image_id"], []).append(entry["bbox"])
    images = folder / annotations.stem.removeprefix("instances_")
    return [
        Photo(
            str(i["id"]),
            (images / i["file_name"]).read_bytes(),
            i["width"],
            i["height"],
            _array(boxes.get(i["id"], [])),
        )
        for i in content["images"]
    ]


def _from_parquet(folder: Path, split: str) -> list[Photo]:
    photos = []
    for path in sorted(folder.glob(f"data/{split}-*.parquet")):
        columns = ["image", "image_id", "width", "height", "objects", "segmentation"]
        for row in pq.read_table(path, columns=columns).to_pylist():
            if row["segmentation"]:
                objects = row["objects"]
                boxes = [box for box, crowd in zip(objects["bbox"], objects["iscrowd"], strict=True) if not crowd]
                encoded, encoded_map = row["image"]["bytes"], row["segmentation"]["bytes"]
                size = row["width"], row["height"]
                photos.append(Photo(str(row["image_id"]), encoded, *size, _array(boxes), encoded_map))
    return photos


def _array(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(boxes, np.float64).reshape(-1, 4)


# --- methods


def our_boxes(photo: Photo, provider: str) -> np.ndarray:
    """Regions as `prepare` writes them."""
    row = {
        "image_id": photo.image_id,
        "image": {"bytes": photo.encoded},
        "width": photo.width,
        "height": photo.height,
        "objects": {"bbox": [], "iscrowd": []},
        "segmentation": {"bytes": photo.encoded_map},
    }
    return _array(add_regions(row, provider)["regions"]["bbox"])


def package_boxes(photo: Photo) -> np.ndarray:
    """The PyPI package with SoCo's settings and filter."""
    import selectivesearch

    _, regions = selectivesearch.selective_search(photo.decode(), scale=300, sigma=0.9, min_size=100)
    return keep_useful(_array([region["rect"] for region in regions]), photo.width, photo.height)


def opencv_boxes(photo: Photo, strategy: str, side_px: int | None) -> np.ndarray:
    """OpenCV's selective search, then SoCo's filter."""
    pixels = photo.decode()
    scale = 1.0 if side_px is None else min(1.0, side_px / max(photo.width, photo.height))
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(pixels[:, :, ::-1]))
    search.switchToSelectiveSearchFast() if strategy == "fast" else search.switchToSingleStrategy()
    return keep_useful(np.array(search.process(), np.float64) / scale, photo.width, photo.height)


def methods() -> dict[str, Method]:
    """All of them by name."""
    return {
        **{name: functools.partial(our_boxes, provider=name) for name in OURS},
        PEER: package_boxes,
        "OpenCV fast": functools.partial(opencv_boxes, strategy="fast", side_px=None),
        "OpenCV single": functools.partial(opencv_boxes, strategy="single", side_px=None),
        "OpenCV single, 320": functools.partial(opencv_boxes, strategy="single", side_px=320),
    }


# --- quality


@dataclass(frozen=True)
class Quality:
    """What the boxes of one method are worth, photo by photo.

    Attributes:
        best: Per photo, the best overlap of every object that counts.
        on_object: Per photo, whether each box overlaps some object by half.
        unique: Per photo, different boxes.
    """

    best: list[np.ndarray]
    on_object: list[np.ndarray]
    unique: list[int]

    @property
    def recalled(self) -> list[np.ndarray]:
        """Per photo, whether some box overlaps each object by half."""
        return [best >= RECALL_IOU for best in self.best]

    @property
    def recall(self) -> float:
        """Share of such objects."""
        return float(np.concatenate(self.recalled).mean())

    @property
    def share(self) -> float:
        """Share of boxes on objects."""
        return float(np.concatenate(self.on_object).mean())


def measure(photos: Sequence[Photo], method: Method) -> Quality:
    """Boxes of every photo against its objects."""
    quality = Quality([], [], [])
    for photo in photos:
        boxes = method(photo)
        overlap = overlaps(boxes, photo.objects)
        size = np.sqrt(photo.objects[:, 2] * photo.objects[:, 3] / (photo.width * photo.height))
        quality.best.append(overlap.max(axis=0, initial=0)[size >= MIN_SIZE])
        quality.on_object.append(overlap.max(axis=1, initial=0) >= RECALL_IOU)
        quality.unique.append(len(np.unique(boxes, axis=0)))
    return quality


def overlaps(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(M, N) intersection over union of xywh boxes."""
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (objects[:, :2] + objects[:, 2:])[None])
    common = (high - low).clip(0).prod(axis=2)
    return common / (boxes[:, 2:].prod(axis=1)[:, None] + objects[:, 2:].prod(axis=1)[None] - common)


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], draws: int = 2000) -> Spread:
    """Of two means over all entries: the difference and its 95 % interval, by drawing photos with replacement."""
    sums = np.array([[a.sum(), len(a), b.sum(), len(b)] for a, b in zip(ours, theirs, strict=True)], float)
    drawn = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    totals = np.concatenate([sums.sum(axis=0)[None], sums[drawn].sum(axis=1)])
    totals = totals[(totals[:, [1, 3]] > 0).all(axis=1)]  # of few photos, a draw may have no object at all
    differences = totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]
    low, high = np.quantile(differences, (0.025, 0.975))
    return Spread(float(differences[0]), float(low), float(high))


# --- the whole


def _report(photos: Sequence[Photo], timed: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measures one folder, prints its tables, and gives the numbers of every method."""
    chosen = methods()
    if not any(photo.encoded_map for photo in photos):
        del chosen["masks"]
    quality = {name: measure(photos, method) for name, method in chosen.items()}

    def one_pass(method: Method) -> None:
        for photo in photos[:timed]:
            method(photo)

    passes = {name: functools.partial(one_pass, method) for name, method in chosen.items()}
    # The quality pass has warmed everything up.
    seconds = time_interleaved(passes, rounds, warmup=0, clock=clock_for(1))
    timed = min(timed, len(photos))
    numbers, rows = {}, []
    for name, found in quality.items():
        each = spread(seconds[name]).median / timed
        gain = ratio(seconds[PEER], seconds[name])
        kept = float(np.mean([len(boxes) for boxes in found.on_object]))
        numbers[name] = {
            "milliseconds": each * 1000,
            "ratio": gain.median,
            "recall": found.recall,
            "mean_best_iou": float(np.concatenate(found.best).mean()),
            "share_on_objects": found.share,
            "kept": kept,
            "unique": float(np.mean(found.unique)),
        }
        hours = each * COCO_IMAGES / 3600
        rows.append(
            (
                name,
                f"{each * 1000:.1f}",
                f"{hours:.2f}",
                gain,
                *(f"{numbers[name][key]:.3f}" for key in ("recall", "mean_best_iou", "share_on_objects")),
                f"{kept:.1f}",
                f"{numbers[name]['unique']:.1f}",
            )
        )
    header = (
        "method",
        "ms/image",
        "h/118k",
        "x peer's speed",
        "recall@0.5",
        "mean best IoU",
        "share",
        "kept",
        "unique",
    )
    print_table(header, rows)
    print("\ndifference to the peer [95 % interval over photos]")
    differences = []
    for name, found in quality.items():
        recall = difference(found.recalled, quality[PEER].recalled)
        share = difference(found.on_object, quality[PEER].on_object)
        numbers[name] |= {"recall_difference": recall.median, "recall_difference_low": recall.low}
        differences.append((name, *(f"{d.median:+.3f} [{d.low:+.3f}..{d.high:+.3f}]" for d in (recall, share))))
    print_table(("method", "recall@0.5", "share on objects"), differences)
    return numbers


def main() -> None:
    """Measure, print the tables and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders; the first gives the result's speed"
    )
    parser.add_argument("--split", default="validation", help="of Parquet folders")
    parser.add_argument("--count", type=int, default=200, help="photos per folder at most")
    parser.add_argument("--timed", type=int, default=12, help="photos that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="how often each method is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    warnings.filterwarnings("ignore", module="skimage|selectivesearch")
    print_machine()
    print(
        f"measured in {clock_name(1)}, ratios median [min..max] of {arguments.rounds} rounds; OpenCV {cv2.__version__}"
    )
    results: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for folder in arguments.data:
        photos = load_photos(folder, arguments.split, arguments.count)
        pixels = np.mean([photo.width * photo.height for photo in photos]) / 1000
        print(
            f"\n{folder.name}: {len(photos)} photos of {pixels:.0f} thousand pixels, {arguments.timed} of them timed"
        )
        results[folder.name] = _report(photos, arguments.timed, arguments.rounds)
    first = results[arguments.data[0].name]
    ours, theirs = (1000 / first[name]["milliseconds"] for name in ("selective_320", PEER))
    gain = first["selective_320"]["ratio"]
    print_result("proposals", PEER, gain, ours, theirs, "images/s", wanted=TARGETS, methods=results)


if __name__ == "__main__":
    main()
