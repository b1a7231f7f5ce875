"""Both sides of the benchmark `csv`, each to be run in a process of its own, so that its memory is its own.

python -m benchmarks.csv_sides generate|ours|theirs FOLDER ROWS

Prints one JSON object. Synthetic tables have the columns, the length of rows and the numbers of images, boxes and
classes of Open Images; ids and boxes are random.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

FULL_ROWS = 14_600_000  # of the training table of Open Images V6
VALIDATION_SHARE = 304 / 14_600
BOXES_PER_IMAGE = {"train": 8.4, "validation": 7.3}
CLASSES = 601
CHUNK_ROWS = 500_000


def _rule(rows: int) -> dict[str, Any]:
    """The thresholds of the real set, scaled to the length of the table."""
    share = min(rows / FULL_ROWS, 1.0)
    full = {
        "train_images": 118_287,
        "small_images": 20_000,
        "validation_images": 5_000,
        "least_train_boxes": 500,
        "least_validation_boxes": 20,
    }
    return {name: max(int(value * share), 1) for name, value in full.items()}


def generate(folder: Path, rows: int) -> dict[str, object]:
    """Writes the tables."""
    classes = "".join(f"/m/{k:05x},class {k}\n" for k in range(CLASSES))
    (folder / "class-descriptions-boxable.csv").write_text(classes)
    for seed, (split, count) in enumerate({"train": rows, "validation": int(rows * VALIDATION_SHARE)}.items()):
        _write_boxes(folder / f"{split}-annotations-bbox.csv", count, BOXES_PER_IMAGE[split], seed)
    return {"bytes": (folder / "train-annotations-bbox.csv").stat().st_size}


def _write_boxes(path: Path, rows: int, boxes_per_image: float, seed: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    rng = np.random.default_rng(seed)
    ids = np.char.mod("%016x", rng.integers(0, 2**63, max(int(rows / boxes_per_image), 1)))
    frequency = 1 / np.arange(1, CLASSES + 1)  # most boxes are of few classes, as in the real table
    labels = np.array([f"/m/{k:05x}" for k in range(CLASSES)])
    image = np.sort(rng.integers(0, len(ids), rows))
    with contextlib.ExitStack() as stack:
        writer = None
        for start in range(0, rows, CHUNK_ROWS):
            of_chunk = image[start : start + CHUNK_ROWS]
            n = len(of_chunk)
            x, y = np.sort(rng.random((2, n, 2)), axis=2).round(6)
            flags = {f"Is{name}": pa.array((rng.random(n) < 0.06).astype(np.int8)) for name in FLAG_NAMES}
            clicks = {f"XClick{k}{axis}": pa.array(rng.random(n).round(6)) for axis in "XY" for k in range(1, 5)}
            table = pa.table(
                {
                    "ImageID": pa.array(ids[of_chunk]),
                    "Source": pa.array(np.full(n, "xclick")),
                    "LabelName": pa.array(labels[rng.choice(CLASSES, n, p=frequency / frequency.sum())]),
                    "Confidence": pa.array(np.ones(n, np.int8)),
                    "XMin": pa.array(x[:, 0]),
                    "XMax": pa.array(x[:, 1]),
                    "YMin": pa.array(y[:, 0]),
                    "YMax": pa.array(y[:, 1]),
                    **flags,
                    **clicks,
                }
            )
            if writer is None:
                options = pa_csv.WriteOptions(quoting_style="none")
                writer = stack.enter_context(pa_csv.CSVWriter(path, table.schema, write_options=options))
            writer.write_table(table)


FLAG_NAMES = ("Occluded", "Truncated", "GroupOf", "Depiction", "Inside")


def ours(folder: Path, rows: int) -> dict[str, object]:
    """Reads and selects as `prepare openimage-mini` does, up to the list of images with their boxes."""
    from dataset_scripts.sources.openimage_mini.builder import choose
    from dataset_scripts.sources.openimage_mini.selection import Rule

    tables = {
        "classes": folder / "class-descriptions-boxable.csv",
        "train boxes": folder / "train-annotations-bbox.csv",
        "validation boxes": folder / "validation-annotations-bbox.csv",
    }
    with contextlib.redirect_stdout(sys.stderr):
        index = choose(tables, Rule(**_rule(rows)))
    counts = index.counts["selection"]
    return {"candidates": counts["train candidates"], "classes": counts["classes"], "chosen": index.train.num_rows}


def theirs(folder: Path, rows: int) -> dict[str, object]:
    """The candidates of the same rule with `pandas.read_csv` and `groupby`; nothing is chosen among them."""
    import pandas as pd

    rule = _rule(rows)
    corners, flags = ["XMin", "XMax", "YMin", "YMax"], ["IsGroupOf", "IsDepiction", "IsInside"]
    boxes = {}
    for split in ("train", "validation"):
        frame = pd.read_csv(
            folder / f"{split}-annotations-bbox.csv",
            usecols=["ImageID", "LabelName", *corners, *flags],
            dtype={"LabelName": "category", **dict.fromkeys(corners, "float32"), **dict.fromkeys(flags, "int8")},
        )
        frame = frame[(frame[flags] != 1).all(axis=1)]
        frame = frame[(frame.XMin < frame.XMax) & (frame.YMin < frame.YMax)]
        boxes[split] = frame.drop(columns=flags).drop_duplicates()
    train = boxes["train"]
    enough = [
        boxes[split].groupby("LabelName", observed=True).size() >= rule[f"least_{split}_boxes"]
        for split in ("train", "validation")
    ]
    common = set(enough[0].index[enough[0]]) & set(enough[1].index[enough[1]])
    frequency = train.LabelName.value_counts()
    # The 254 most frequent; ties by name.
    classes = sorted(common, key=lambda label: (-frequency[label], f"class {int(label[3:], 16)}"))[:254]
    train = train[train.LabelName.isin(classes)]
    side = ((train.XMax - train.XMin).astype("float64") * (train.YMax - train.YMin)) ** 0.5
    train = train.assign(of_size=(side >= 0.1) & (side <= 0.8))
    images = train.groupby("ImageID").agg(
        boxes=("LabelName", "size"), classes=("LabelName", "nunique"), of_size=("of_size", "any")
    )
    good = images[(images.boxes >= 2) & (images.classes >= 2) & images.of_size]
    fresh = ~good.index.isin(boxes["validation"].ImageID)
    return {"candidates": int(fresh.sum()), "classes": len(classes)}


SIDES = {"generate": generate, "ours": ours, "theirs": theirs}


def main() -> None:
    """Runs one side and prints its facts, seconds and peak memory."""
    side, folder, rows = sys.argv[1:]
    start = time.perf_counter()
    facts = SIDES[side](Path(folder), int(rows))
    seconds = time.perf_counter() - start
    times = resource.getrusage(resource.RUSAGE_SELF)
    facts |= {
        "seconds": seconds,
        "processor_seconds": times.ru_utime + times.ru_stime,
        "peak_mb": times.ru_maxrss / 1000,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
