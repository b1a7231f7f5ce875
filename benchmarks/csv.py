"""Reading a box table as large as that of Open Images and choosing OpenImage-MINI from it, against pandas.

python -m benchmarks.csv

The table, 2 GB and 14.6 million rows, is made in a temporary folder and deleted. Ours goes all the way to the list of
chosen images with their boxes; pandas only to the candidates, which must be as many.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks.csv_sides import FULL_ROWS
from benchmarks.timing import print_machine, print_result, print_table, ratio, spread

BYTES_PER_ROW = 160


def run_side(side: str, folder: Path, rows: int) -> dict[str, float]:
    """Facts of one side from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.csv_sides", side, str(folder), str(rows)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def main() -> None:
    """Measure, print the table and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=FULL_ROWS, help="rows of the training table")
    parser.add_argument("--rounds", type=int, default=1, help="how often each side is run")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room for it")
    arguments = parser.parse_args()
    free, needed = shutil.disk_usage(arguments.folder).free, BYTES_PER_ROW * arguments.rows
    if free < 2 * needed:
        raise SystemExit(
            f"{arguments.folder} has {free / 1e9:.0f} GB free, {2 * needed / 1e9:.0f} are wanted; --folder."
        )
    print_machine()
    sides: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        made = run_side("generate", Path(name), arguments.rows)
        print(f"{arguments.rows:,} rows, {made['bytes'] / 1e9:.2f} GB, made in {made['seconds']:.0f} s", flush=True)
        for number in range(arguments.rounds):
            for side in sorted(sides, reverse=number % 2 == 1):
                sides[side].append(run_side(side, Path(name), arguments.rows))
    found = {side: (facts[0]["candidates"], facts[0]["classes"]) for side, facts in sides.items()}
    print(f"candidates and classes: {found}")
    if abs(found["ours"][0] / found["theirs"][0] - 1) > 1e-4 or found["ours"][1] != found["theirs"][1]:
        raise SystemExit("The sides disagree, so their times mean nothing.")

    seconds = {side: [one["seconds"] for one in facts] for side, facts in sides.items()}
    processor = {side: [one["processor_seconds"] for one in facts] for side, facts in sides.items()}
    peaks = {side: max(one["peak_mb"] for one in facts) for side, facts in sides.items()}
    per_second = {side: arguments.rows / spread(values).median for side, values in seconds.items()}
    gain = ratio(seconds["theirs"], seconds["ours"])
    gain_processor = ratio(processor["theirs"], processor["ours"])
    peer = f"pandas {version('pandas')}"
    print_table(
        ("side", "seconds", "processor seconds", "rows/s", "peak memory, MB", "ratio", "ratio in processor time"),
        [
            (
                side if side == "ours" else peer,
                spread(seconds[side]),
                spread(processor[side]),
                f"{per_second[side]:,.0f}",
                f"{peaks[side]:.0f}",
                gain if side == "ours" else "",
                gain_processor if side == "ours" else "",
            )
            for side, facts in sides.items()
        ],
    )
    print_result(
        "csv",
        peer,
        gain.median,
        per_second["ours"],
        per_second["theirs"],
        "rows/s",
        rows=arguments.rows,
        gigabytes=made["bytes"] / 1e9,
        ratio_processor=gain_processor.median,
        processor_seconds={side: spread(values).median for side, values in processor.items()},
        peak_mb=peaks,
    )


if __name__ == "__main__":
    main()
