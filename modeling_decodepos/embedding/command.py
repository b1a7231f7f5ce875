"""`decodepos embed MODEL --data DIR_OR_ID --output features.parquet`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..commands.settings import CommandParser, number
from ..diagnosis.models.readings import READINGS
from .choices import KINDS, REGIONS

NAME = "decodepos embed"


def build_parser(name: str = NAME) -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog=name,
        description="Features of pictures, of their regions and of the patches of their maps, from any vision "
        "backbone. Memory does not grow with the number of pictures, and a run that was stopped goes on.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="as for decodepos diagnose: Hub id, folder, random:NAME, timm:NAME …")
    add("--data", required=True, help="a folder of pictures or of Parquet files in our contract, or a Hub id")
    add("--output", type=Path, required=True, help="file to write: NAME.parquet, or NAME.safetensors")
    add("--features", default="image,regions", help=f"comma-separated: {_named(KINDS)} (default: image,regions)")
    add("--regions", choices=REGIONS, default="auto", help=f"{_named(REGIONS)} (default: auto)")
    add("--grid", type=number(int, 1, 64), default=3, help="boxes per side, where regions are a grid")
    add("--stage", default="", help="name of the stage that is read (default: the last)")
    add("--split", default="", help="one split of the data (default: all)")
    add(
        "--size_px",
        "--size",
        type=number(int, 8, 16_384),
        default=224,
        help="side of the square that pictures are resized to",
    )
    add("--reading", choices=READINGS, default="own", help=f"where cells of maps lie: {_named(READINGS)}")
    add("--fp16", action="store_true", help="write features in half precision, and on a GPU compute in it")
    add("--batch_size", type=number(int, 1, 100_000), help="pictures at a time (default: 8 on a CPU, else 64)")
    add("--workers", type=number(int, 0, 1000), default=2, help="threads that decode pictures")
    add("--device", default="cpu", help="where the model runs: cpu, cuda, mps")
    return parser


def _named(texts: dict[str, str]) -> str:
    return "; ".join(f"{name} ({text})" for name, text in texts.items())


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> int:
    """Write the file; 2 where the model, the data or the settings cannot be used."""
    args = build_parser(name).parse_args(arguments)
    from transformers.utils import logging  # takes seconds, and --help needs none of it

    from .run import embed

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        found = embed(**vars(args), progress=True)
    except (ValueError, OSError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    about = found.about
    if not found.is_new:
        print(f"{found.path} was made with the same settings: nothing to do.")
        return 0
    rows = ", ".join(f"{count:,} {kind}" for kind, count in about["rows"].items())
    where = f"stage {about['stage']} of {about['model']}, read as {about['reading']}"
    print(f"wrote {found.path}: {about['pictures']:,} pictures ({rows or 'maps'}), {where}")
    if about["broken"]:
        print(f"left out, because they cannot be read: {'; '.join(about['broken'][:5])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
