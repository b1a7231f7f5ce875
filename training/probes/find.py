"""python -m training.probes.find MODEL --output found.png: what `search` finds, beside the network from before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from modeling_decodepos.commands.outputs import refuse_unwritable
from modeling_decodepos.commands.settings import CommandParser, number


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m training.probes.find",
        description="Let a network find objects again, elsewhere and before other backgrounds, beside the network it "
        "was trained from or its untrained twin.",
    )
    parser.add_argument("model", help="an export of ours or any backbone of transformers: folder, Hub id, random:NAME")
    parser.add_argument("--before", help="the network that training began with; without it, untrained twins")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--count", type=number(int, 4, 1_000_000), default=100, help="objects to search")
    parser.add_argument("--size_px", type=number(int, 32, 16_384), default=96, help="side of the scenes")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the scenes")
    parser.add_argument("--untrained", type=number(int, 1, 1000), default=3, help="untrained twins")
    parser.add_argument(
        "--centre_cells", action="store_true", help="read a plain ResNet's regions where its cells have their centres"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, print the shares, draw the first searches."""
    args = build_parser().parse_args(arguments)
    # These take seconds, and --help needs none of them.
    from tqdm import tqdm
    from transformers.utils import logging

    from training.probes.search import draw_searches, load, search_objects, share_by_chance, share_found, untrained

    logging.disable_progress_bar()
    try:
        refuse_unwritable(args.output)
        model, *others = (load(name, args.centre_cells) for name in (args.model, args.before) if name)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    names = ("before", "after") if others else ("untrained", "trained")
    networks = [model, *(others or (untrained(model, seed, args.size_px) for seed in range(args.untrained)))]
    own, *controls = (
        search_objects(network, seed=args.seed, count=args.count, size_px=args.size_px)
        for network in tqdm(networks, unit=" network")
    )
    shares = zip(names, (share_found(*controls), share_found(own)), strict=True)
    notes = {name: f"finds {s.value:.0%} ({s.low:.0%} to {s.high:.0%})" for name, s in shares}
    columns = [(name, notes[name], found) for name, found in zip(names, (controls[0], own), strict=True)]
    draw_searches(columns).quantize(256).save(args.output, optimize=True)
    for name, note in notes.items():
        print(f"{name:>9}  {note} of {args.count} objects")
    print(f"{'by chance':>9}  {share_by_chance(own):.0%}\nwrote {args.output}")


if __name__ == "__main__":
    main()
