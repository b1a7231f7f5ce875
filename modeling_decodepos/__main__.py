"""The command of the installed library: `decodepos diagnose|embed|look …`, or `python -m modeling_decodepos …`."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence

from .commands.garbage import collect_less
from .commands.settings import CommandParser

# Where the `main` of each command is, and what it does. It is imported when it is called: `--help` must be fast.
COMMANDS = {
    "diagnose": ("diagnosis.command", "how much place and surroundings are in a backbone's features, as a page"),
    "embed": ("embedding.command", "features of pictures, of their regions and of their patches, as a file"),
    "look": ("looking.command", "see a backbone's map of your pictures: main directions, what is alike, what leaks"),
}
# What is no part of the installed library, and its command line in a checkout.
IN_A_CHECKOUT = {
    "pretrain": "accelerate launch training/pretrain.py",
    "evaluate": "python -m training.evaluation",
    "prepare": "python -m dataset_scripts.prepare",
    "export": "python -m training.export",
    "publish": "python -m training.publish",
}


def build_parser() -> CommandParser:
    """The command line up to the name of a command."""
    parser = CommandParser(
        prog="decodepos",
        description="See how much context and position leak into a vision backbone's region features.",
        epilog="`decodepos COMMAND --help` tells more about one.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=importlib.import_module(f"{__package__}").__version__,
        help="show the version and exit",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for name, (_, what) in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    for name, line in IN_A_CHECKOUT.items():
        commands.add_parser(name, help=f"in a checkout: {line}", add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named; 2 for one that the installed library has not."""
    if arguments is None:
        collect_less()
    words = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name in COMMANDS:
        module = importlib.import_module(f"{__package__}.{COMMANDS[name][0]}")
        code: int = module.main(rest, f"decodepos {name}")
        return code
    if name in IN_A_CHECKOUT:
        line = " ".join([IN_A_CHECKOUT[name], *map(shlex.quote, rest)])
        print(
            f"decodepos: {name} needs a checkout; this is the library alone. There, after pip install -e '.[train]', "
            f"say: {line}",
            file=sys.stderr,
        )
        return 2
    build_parser().parse_args(words)  # shows help, or says what is wrong
    return 0


if __name__ == "__main__":
    sys.exit(main())
