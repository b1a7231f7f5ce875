"""What each stage of a build costs per image, and what many images would take.

    python -m benchmarks.build --source COCO_FOLDER

The folder is in COCO's original layout. One process, processor time. Images do not depend on each other and shards not
either, so hours shrink with the number of cores; reading and writing on a disk that many share is not in them.
"""

from __future__ import annotations

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.timing import print_machine, print_result, print_table, spread
from dataset_scripts.build.parquet import Row, build_dataset, write_shard
from dataset_scripts.build.work_folder import WorkFolder
from dataset_scripts.check import check_dataset
from dataset_scripts.prepare import BUILDERS, build_parser
from dataset_scripts.proposals import add_regions
from modeling_decodepos.data.schema import build_features

PROVIDERS = ("boxes", "grid", "selective_320", "selective")
MANY = 100_000_000
DECODE = "Pillow decodes it at full size (the peer)"
READ = "read, decode small, annotate"
WRITE = "encode, write and hash a shard"


def seconds_of(call: Callable[[], object], rounds: int) -> list[float]:
    """Processor seconds of each round, after one that does not count."""
    found = []
    for _ in range(rounds + 1):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return found[1:]


def main() -> None:
    """Measure, print the table and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="COCO's folder")
    parser.add_argument("--count", type=int, default=40, help="images measured")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["coco", "--source", str(arguments.source), "--output", str(folder / "built"), "--workers", "1"]
        source = BUILDERS["coco"].open_source(build_parser().parse_args(command), WorkFolder(folder / "built"))
        assert source is not None
        split, rows = max(source.splits.items(), key=lambda item: item[1])
        places = range(min(arguments.count, rows))

        def make() -> list[Row]:
            return [source.make_row(split, place) for place in places]

        made = make()
        whole = [add_regions(row, "boxes") for row in made]
        schema = build_features(source.class_names).arrow_schema
        files = [row["image"]["bytes"] for row in made]
        stages: dict[str, Callable[[], object]] = {DECODE: partial(_decode_all, files), READ: make}
        for provider in PROVIDERS:
            stages[f"regions: {provider}"] = partial(_all_regions, made, provider)
        stages[WRITE] = partial(write_shard, folder / "shard.parquet", whole, schema)
        seconds = {stage: seconds_of(call, arguments.rounds) for stage, call in stages.items()}
        build_dataset(folder / "built", source, workers=1)
        total = sum(source.splits.values())
        checked = [value * len(places) / total for value in seconds_of(lambda: check_dataset(folder / "built"), 1)]
        seconds["check, afterwards"] = checked
        per_image = {stage: [1000 * value / len(places) for value in values] for stage, values in seconds.items()}
        print_table(
            ("stage", "ms per image", "core hours for 118,287", "core hours for 100 million, EXTRAPOLATED"),
            [
                (stage, middle := spread(values), *(f"{middle.median * n / 3.6e6:,.1f}" for n in (118_287, MANY)))
                for stage, values in per_image.items()
            ],
        )
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size_kb = (folder / "shard.parquet").stat().st_size / len(places) / 1000
    print(f"{len(places)} images, {size_kb:.0f} KB each; peak memory of this process {peak_mb:.0f} MB")
    ours = sum(spread(per_image[stage]).median for stage in (READ, "regions: boxes", WRITE))
    theirs = spread(per_image[DECODE]).median
    print_result(
        "build", "Pillow, decoding alone", theirs / ours, 1000 / ours, 1000 / theirs, "images/s", peak_mb=peak_mb
    )


def _decode_all(files: list[bytes]) -> None:
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            image.load()


def _all_regions(rows: list[Row], provider: str) -> None:
    for row in rows:
        add_regions(row, provider)


if __name__ == "__main__":
    main()
