"""`decodepos look MODEL IMAGE… [--beside MODEL]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..commands.settings import CommandParser, number
from ..diagnosis.models.readings import READINGS

NAME = "decodepos look"
_EXAMPLE = ("0.3", "0.3", "0.7", "0.7")


def build_parser(name: str = NAME) -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog=name,
        description="What a vision backbone makes of your pictures: the main directions of its map as colours, what "
        "is like a place, and what leaks into the feature of a box. Writes one PNG and one page.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="as for decodepos diagnose: Hub id, folder, random:NAME, timm:NAME …")
    add("pictures", nargs="+", metavar="IMAGE", help="picture files; scene:0, scene:1 … are drawn, without a file")
    add("--beside", action="append", default=[], metavar="MODEL", help="another model beside it; may be repeated")
    add(
        "--point",
        action="append",
        default=[],
        dest="points",
        type=_numbers(2, "X,Y"),
        metavar="X,Y",
        help="show what is like this place, in [0, 1] of the square that is shown; may be repeated (default: the "
        "middle of the box)",
    )
    add(
        "--box",
        type=_numbers(4, "X1,Y1,X2,Y2"),
        metavar="X1,Y1,X2,Y2",
        help="the region whose leak is shown, in [0, 1] of the square (default: its middle; of a scene, an object)",
    )
    add("--output", type=Path, default=Path("look"), help="writes OUTPUT.png and OUTPUT.html")
    add(
        "--size_px",
        "--size",
        type=number(int, 8, 16_384),
        default=320,
        help="side of the square; more gives a finer map",
    )
    add("--reading", choices=READINGS, default="own", help="where cells of maps lie, as for decodepos diagnose")
    add("--device", default="cpu", help="where the models run: cpu, cuda, mps")
    return parser


def _numbers(count: int, form: str) -> Callable[[str], tuple[float, ...]]:
    def read(text: str) -> tuple[float, ...]:
        try:
            values = tuple(map(float, text.split(",")))
        except ValueError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not of the form {form}, such as {','.join(_EXAMPLE[:count])}"
            )
        return values

    return read


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> int:
    """Write the picture and the page; 2 where a model or a picture cannot be used."""
    args = build_parser(name).parse_args(arguments)
    from transformers.utils import logging  # takes seconds, and --help needs none of it

    from .page import save_look
    from .run import look

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        found = look(
            [args.model, *args.beside],
            args.pictures,
            points=args.points,
            box=args.box,
            size_px=args.size_px,
            reading=args.reading,
            device=args.device,
            progress=True,
        )
        print("wrote {} and {}".format(*save_look(found, args.output)))
    except (ValueError, OSError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
