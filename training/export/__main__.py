"""python -m training.export MODEL --format FORMAT --output PATH."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling_decodepos.commands.outputs import refuse_unwritable
from modeling_decodepos.commands.settings import CommandParser, number
from training.export.layouts import LAYOUTS, PIXEL_FORMS, READABLE

FORMATS = ("backbone", *LAYOUTS, "onnx", "torch_export", "pretraining")


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m training.export",
        description="Write what a run made in others' formats, or import their checkpoint for a run to start from.",
    )
    add = parser.add_argument
    add("model", help="folder or Hub id of a model; with --from, a checkpoint file or its folder")
    add("--format", choices=FORMATS, default="backbone", help="what to write")
    add("--output", type=Path, required=True, help="folder to write; must not exist")
    add("--from", dest="layout", choices=READABLE, help="the library that a checkpoint is of")
    add("--network", choices=["student", "teacher"], default="student", help="where there are two")
    add("--stride_in", choices=["1x1", "3x3"], help="with --from detectron2")
    add("--pixels", choices=tuple(PIXEL_FORMS), help="with --from detectron2")
    size = "size that the preprocessor asks for, and that graphs take"
    add("--size_px", "--image_size_px", type=number(int, 8, 16_384), default=224, help=size)
    return parser


def run(args: argparse.Namespace) -> str:
    """Export a model or import a checkpoint; returns what to print."""
    # These take seconds, and --help needs none of them.
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from training.export.folders import export_pretraining, new_folder
    from training.export.loading import load_foreign, load_network, load_pretraining
    from training.export.writing import export

    refuse_unwritable(args.output, folder=True)
    disable_progress_bar()
    set_verbosity_error()  # what it would say of weights is an error here
    if args.format == "pretraining":
        if args.layout is not None or args.network == "teacher":
            raise ValueError("--format pretraining holds student, teacher and heads: leave out --from and --network.")
        model = load_pretraining(args.model)
        with new_folder(args.output) as folder:
            export_pretraining(model, folder, args.size_px)
        return f"wrote {args.output}"
    if args.layout is not None:
        loaded = load_foreign(Path(args.model), args.layout, args.network, args.stride_in, args.pixels)
    elif args.stride_in or args.pixels:
        raise ValueError("--stride_in and --pixels describe a checkpoint of another library: they go with --from.")
    else:
        loaded = load_network(args.model, args.network)
    readme = export(loaded, args.format, args.output, args.size_px)
    return "\n".join([*loaded.notes, *readme.fact_lines(), f"wrote {args.output}: {readme.title}", "", readme.code])


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a model, or import a checkpoint."""
    args = build_parser().parse_args(arguments)
    try:
        print(run(args))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
