"""python -m training.views --data DIR --index N --output views.png."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from modeling_decodepos.commands.outputs import refuse_unwritable
from modeling_decodepos.commands.settings import CommandParser, add_flags, from_values, given, number
from training.errors import UnusableData
from training.recipe import DataArguments, ViewArguments, load_recipe


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m training.views", description="Draw the views of one sample with their regions."
    )
    add_flags(parser, DataArguments, only=("data", "split", "region_source"))
    parser.add_argument("--index", type=number(int, 0), default=0, help="which image")
    parser.add_argument("--epoch", type=number(int, 0), default=0, help="the views of another epoch")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="the views of another run")
    parser.add_argument("--recipe", help="take the view settings from this recipe (default: the defaults, 224 pixels)")
    add_flags(parser, ViewArguments, only=("repositioning",))
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the views of one sample of a data set."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    # These take seconds, and --help needs none of them.
    from training.data.batches import RegionDataset
    from training.data.sources import open_images
    from training.show import draw_sample
    from training.views.sampling import VIEW_RULES

    try:
        refuse_unwritable(args.output)
        data = from_values(DataArguments, given(args, DataArguments), "the command line")
        views = load_recipe(args.recipe).views if args.recipe else ViewArguments()
        views = dataclasses.replace(views, **given(args, ViewArguments))
        images = open_images(data.data, data.split, data.region_source, args.seed)
        dataset = RegionDataset(images, views, list(VIEW_RULES), seed=args.seed)
        picture = draw_sample(dataset, args.epoch, args.index)
    except (ValueError, OSError, UnusableData) as error:
        parser.exit(2, f"{error}\n")
    for image_id, reason in dataset.known_broken.values():
        print(f"image {image_id} {reason}; the next one takes its place")
    picture.save(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
