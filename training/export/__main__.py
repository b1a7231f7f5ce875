"""python -m training.export MODEL --format FORMAT --output PATH."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from modeling_decodepos.settings import CommandParser
from training.export.layouts import LAYOUTS, READABLE

FORMATS = ("backbone", *LAYOUTS, "onnx", "torch_export", "pretraining")
PIXELS = ("imagenet", "caffe", "imagenet_bgr")  # the keys of pixel_forms.PIXEL_FORMS, which needs torch


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
    add("--pixels", choices=PIXELS, help="with --from detectron2")
    add(
        "--size_px",
        "--image_size_px",
        type=int,
        default=224,
        help="size that the preprocessor asks for, and that graphs take",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a model, or import a checkpoint."""
    args = build_parser().parse_args(arguments)
    from training.export.command import run  # torch takes seconds, --help needs none

    try:
        print(run(args))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
