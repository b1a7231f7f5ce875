"""`decodepos diagnose MODEL [MODEL …] --output DIR`, and the console script `decodepos-diagnose`, its former name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..commands.outputs import refuse_unwritable
from ..commands.settings import CommandParser, number
from .measures.metrics import MEASURES, choose_measures
from .models.readings import READINGS

QUICK_IMAGES, QUICK_SIZE = 32, 128


NAME = "decodepos-diagnose"


def build_parser(name: str = NAME) -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog=name,
        description="How much position and surroundings are in a vision backbone's features, next to random "
        "weights of the same architecture and plain image statistics. Writes report.html, report.json and figures.",
        epilog="measures: " + "; ".join(f"{name} ({text.partition(':')[0]})" for name, text in MEASURES.items()),
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="Hub id or folder of a transformers model; random:ID for its architecture with fresh weights, or "
        "random:NAME (resnet18, vit_small, convnext …) without a download; timm:NAME; module:function, found from the "
        "current folder, for anything that turns (B, 3, H, W) into (B, C, h, w)",
    )
    parser.add_argument(
        "--data",
        default="scenes",
        help="scenes (drawn in memory), a folder of Parquet files in our contract or of pictures, or a "
        "Hub id of a data set; of exact pairs (a benchmark) every row is shown as it is",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--images", type=number(int, 4, 1_000_000), help="pictures in the gallery, and as many queries (default: 96)"
    )
    parser.add_argument(
        "--size_px", "--size", type=number(int, 8, 16_384), help="side of the pictures in pixels (default: 160)"
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of everything drawn by chance")
    parser.add_argument(
        "--seeds", type=number(int, 1, 1000), default=1, help="repetitions with other data and other random weights"
    )
    parser.add_argument(
        "--random_seeds",
        type=number(int, 1, 1000),
        default=3,
        help="random weights of the same architecture beside each model, at least (default: 3); with fewer, intervals "
        "do not say how much weights differ",
    )
    parser.add_argument(
        "--layers", type=number(int, 1, 1000), default=4, help="layers of a ViT that are read, evenly spaced"
    )
    parser.add_argument(
        "--reading",
        choices=READINGS,
        default="own",
        help="where cells of maps lie: " + "; ".join(f"{name} ({text})" for name, text in READINGS.items()),
    )
    parser.add_argument(
        "--centre_cells", action="store_const", const="known", dest="reading", help="the same as --reading known"
    )
    parser.add_argument("--measures", help="comma-separated names of measures (default: all)")
    parser.add_argument(
        "--eval_results",
        metavar="ORG/NAME",
        help="of a benchmark: its id on the Hub; its scores go into .eval_results/NAME.yaml of each MODEL that is a "
        "folder",
    )
    parser.add_argument("--device", default="cpu", help="where the models run: cpu, cuda, mps")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_IMAGES} pictures of {QUICK_SIZE} pixels: a first look"
    )
    return parser


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> int:
    """Run a diagnosis; 1 where only some of the models could be measured, 2 where none, or the data cannot be used."""
    args = build_parser(name).parse_args(arguments)
    images, size_px = (QUICK_IMAGES, QUICK_SIZE) if args.quick else (96, 160)
    try:
        choose_measures(args.measures)
        refuse_unwritable(args.output, folder=True)
        if args.eval_results is not None:
            from .report.eval_results import find_folders

            folders = find_folders(args.eval_results, args.data, args.models)
        import transformers

        from .run import diagnose

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        found = diagnose(
            args.models,
            args.data,
            images=images if args.images is None else args.images,
            size_px=size_px if args.size_px is None else args.size_px,
            seed=args.seed,
            seeds=args.seeds,
            random_seeds=args.random_seeds,
            layers=args.layers,
            measures=args.measures,
            device=args.device,
            reading=args.reading,
            progress=True,
        )
        from .report.page import save_report
        from .report.verdicts import summarise

        for model in found.models:
            print(f"\n{summarise(model)}")
        for measure, reason in found.skipped.items():
            if measure in found.measures:
                print(f"not measured: {measure}, because {reason}")
        print(f"\nwrote {save_report(found, args.output)}")
        if args.eval_results is not None:
            from .report.eval_results import write_scores

            for written in write_scores(found, folders, args.eval_results):
                print(f"wrote {written}")
        for reason in found.failed.values():
            print(f"{name}: {reason}", file=sys.stderr)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
