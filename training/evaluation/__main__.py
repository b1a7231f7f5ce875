"""python -m training.evaluation PROTOCOL --model PATH_OR_ID --data DIR_OR_ID --output results.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_decodepos.commands.memory import named_shortage
from modeling_decodepos.commands.settings import CommandParser, add_flags, fields, from_values, given, number
from training.errors import UnusableData
from training.evaluation.protocols import PROTOCOLS, QUICK, ProtocolEntry
from training.evaluation.settings import Common
from training.sweep.__main__ import main as sweep

LABELS = ("reduced scale", "reproduced", "quoted")


def build_parser() -> CommandParser:
    """The command line: a protocol, what all protocols share, and the protocol's own settings."""
    parser = CommandParser(prog="python -m training.evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    commands.add_parser("ablation", help="train the arms of a sweep file, measure and compare them")
    for name, entry in PROTOCOLS.items():
        command = commands.add_parser(name, help=entry.settings.__doc__, description=entry.settings.__doc__)
        add = command.add_argument
        add_flags(command, Common, only=fields(Common).keys() - {"seed"})
        add("--output", type=Path, required=True, help="results file; new numbers are put into it")
        add(
            "--seeds",
            type=number(int, 0),
            nargs="+",
            default=[0],
            help="measure once with each and report the spread over them",
        )
        add("--quick", action="store_true", help="sizes for a look in minutes on a CPU; flags beside it count more")
        add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one")
        add("--arm", help="what tells this model from its comparisons (default: the objective of its run, if known)")
        add("--label", choices=LABELS, default=LABELS[0], help="what the number may be called")
        add_flags(command, entry.settings)
    return parser


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, ProtocolEntry, Common, Any]:
    """The call: its flags, the protocol, and the settings that result."""
    args = build_parser().parse_args(arguments)
    entry = PROTOCOLS[args.protocol]
    quick = QUICK | entry.quick if args.quick else {}

    def settings(kind: Any) -> Any:
        chosen = {name: value for name, value in quick.items() if name in fields(kind)} | given(args, kind)
        return from_values(kind, chosen, "the command line")

    return args, entry, settings(Common), settings(entry.settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one protocol, or a sweep."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["ablation"]:  # no protocol: it trains what the protocols then measure
        sweep(words[1:], "python -m training.evaluation ablation")
        return
    try:
        call = parse(words)
        from training.evaluation.measure import measure  # torch takes seconds, --help needs none

        _, _, common, _ = call
        with named_shortage({"size_px": common.size_px, "batch_size": common.batch_size}, ", or take fewer images"):
            measure(*call)
    except (ValueError, FileNotFoundError, ImportError, UnusableData) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
