"""Features of the regions of photos: `embed` against the loop that one writes first.

    OMP_NUM_THREADS=1 python -m benchmarks.embed --model FOLDER --data FOLDER

The loop opens a photo, runs the network on it, takes RoIAlign's mean for each box, appends, and writes a Parquet file
at the end. Both see the same squares and write the same features, which is checked. Every run is a process of its own:
the most memory that it held is its own, and is told for a part of the photos and for all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from benchmarks.timing import clock_name, print_machine, print_result, print_table, ratio, spread

SIZE_PX = 224


def run_ours(model: str, data: str, output: Path) -> None:
    """Features of image and regions by `embed`."""
    from modeling_decodepos.embedding import embed

    embed(model, data, output, size_px=SIZE_PX, regions="boxes")


@torch.no_grad()
def run_naive(model: str, data: str, output: Path) -> None:
    """The same, photo by photo."""
    from modeling_decodepos.diagnosis.data.photos import read_regions
    from modeling_decodepos.diagnosis.models.features import pool_stages
    from modeling_decodepos.diagnosis.models.load import load_model
    from modeling_decodepos.embedding.pictures import open_source, show

    network = load_model(model, size_px=SIZE_PX)
    rows: list[dict[str, Any]] = []
    source = open_source(data)
    for where, row in source.rows(0):
        picture = show(where, row, SIZE_PX, "boxes", 1, source)
        maps = network(picture.pixels[None])
        boxes, _ = read_regions(where, row, row["width"], row["height"])
        found = [maps[-1].mean((2, 3))[0], *pool_stages(network, maps, [torch.from_numpy(boxes)])[-1]]
        rows += [{"image_id": str(row["image_id"]), "feature": feature.numpy()} for feature in found]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), output)


SIDES = {"ours": run_ours, "naive": run_naive}


def take(photos: Path, count: int, output: Path) -> Path:
    """A data set of the first photos."""
    (output / "data").mkdir(parents=True)
    with pyarrow.parquet.ParquetWriter(
        output / "data" / "train-0.parquet", pyarrow.parquet.read_schema(photos)
    ) as writer:
        left = count
        for batch in pyarrow.parquet.ParquetFile(photos).iter_batches(batch_size=64):
            part = batch.slice(0, left)
            writer.write_batch(part)
            left -= len(part)
            if not left:
                break
    return output


def measure(side: str, model: str, data: Path, output: Path) -> dict[str, float]:
    """Seconds of the work, network loaded and all, and the most memory that a process of its own held, in MB."""
    command = [sys.executable, "-m", "benchmarks.embed", "--model", model, "--data", str(data)]
    done = subprocess.run([*command, "--side", side, "--output", str(output)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_side(side: str, model: str, data: str, output: Path) -> None:
    """Print what one run took."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    SIDES[side](model, data, output)
    seconds = clock() - began
    # Not getrusage: what a process is told there begins with what the one that started it held.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    memory = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 2**10
    print(json.dumps({"seconds": seconds, "memory_mb": memory}))


def compare(model: str, photos: Path, count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Of each side, images per second of every round, and the memory for a quarter of the photos and for all."""
    found: dict[str, dict[str, Any]] = {name: {"rates": [], "memory": {}} for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        whole, part = (take(photos, number, Path(folder) / str(number)) for number in (count, count // 4))
        for number in range(rounds):
            outputs = {}
            for name in sorted(SIDES, reverse=bool(number % 2)):
                outputs[name] = Path(folder) / f"{name}{number}.parquet"
                taken = measure(name, model, whole, outputs[name])
                found[name]["rates"].append(count / taken["seconds"])
                found[name]["memory"][count] = taken["memory_mb"]
            check_same(*outputs.values())
        for name in SIDES:
            taken = measure(name, model, part, Path(folder) / f"{name}.parquet")
            found[name]["memory"][count // 4] = taken["memory_mb"]
    return found


def check_same(one: Path, other: Path) -> None:
    """Both sides must have written the same features, in the same order."""
    first, second = (
        np.array(pyarrow.parquet.read_table(path)["feature"].to_pylist(), np.float32) for path in (one, other)
    )
    difference = np.abs(first - second).max() / np.abs(second).max()
    if difference > 1e-4:
        raise RuntimeError(f"the features differ by {difference:.1e} of the largest.")


def main() -> None:
    """Compare both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:resnet18", help="whatever embed takes")
    parser.add_argument("--data", required=True, help="a Parquet file of photos with boxes")
    parser.add_argument("--count", type=int, default=1200, help="photos")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run_side(args.side, args.model, args.data, args.output)
        return
    print_machine()
    found = compare(args.model, Path(args.data), args.count, args.rounds)
    rows = []
    for name, side in found.items():
        held = [f"{side['memory'][number]:.0f}" for number in (args.count // 4, args.count)]
        rows.append((name, spread(side["rates"]), *held))
    header = ("side", f"images/s ({clock_name(torch.get_num_threads())})", "MB, a quarter", f"MB, {args.count} photos")
    print_table(header, rows)
    times = ratio(found["ours"]["rates"], found["naive"]["rates"]).median
    ours, naive = (spread(found[name]["rates"]).median for name in ("ours", "naive"))
    more = {"memory_mb": {name: side["memory"] for name, side in found.items()}, "count": args.count}
    print_result("embed", "a loop over photos", times, ours, naive, "images/s", **more)


if __name__ == "__main__":
    main()
