"""python -m training.evaluation PROTOCOL --model PATH_OR_ID --data DIR_OR_ID --output results.json."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from transformers import logging as transformers_logging

from modeling_decodepos.diagnosis.models.networks import RANDOM
from training.errors import UnusableData
from training.evaluation.evaluation import Common, Evaluation, ProtocolEntry
from training.evaluation.pictures import MissingAnnotations
from training.evaluation.processes import Processes, start_processes
from training.evaluation.protocols import PROTOCOLS
from training.evaluation.results import (
    LABELS,
    Measured,
    Origin,
    build_rows,
    load_results,
    merge_results,
    print_rows,
)
from training.provenance import commit
from training.sweep.command import main as ablate

# Of `Common`, those that change a number.
_COMMON_SETTINGS = ("size_px", "region_bins", "train_split", "validation_split", "train_images", "validation_images")


def build_parser() -> argparse.ArgumentParser:
    """The command line: a protocol, what all protocols share, and the protocol's own settings."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    commands.add_parser("ablation", help="train the arms of a sweep file, measure and compare them")
    for name, entry in PROTOCOLS.items():
        command = commands.add_parser(name, help=entry.summary, description=entry.summary)
        _add_common(command)
        for setting in dataclasses.fields(entry.settings):  # type: ignore[arg-type]
            _add_setting(command, setting, get_type_hints(entry.settings)[setting.name])
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    names = f"{RANDOM}NAME or {RANDOM}FOLDER for an untrained network; timm:NAME; module:function"
    add("--model", required=True, help=f"folder or Hub id; {names}")
    add("--data", required=True, help="folder or Hub id in the layout of modeling_decodepos/schema.py")
    add("--output", type=Path, required=True, help="results file; new numbers are put into it")
    add("--seeds", type=int, nargs="+", default=[0], help="measure once with each; the spread over them is reported")
    add("--quick", action="store_true", help="sizes for a look in minutes on a CPU; flags beside it count more")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one")
    add("--arm", help="what tells this model from its comparisons; the objective of its run if that is known")
    add("--label", choices=LABELS, default="reduced scale", help="what the number may be called")
    add("--centre_cells", action="store_true", help="read regions where a ResNet's cells have their centres")
    helps = {
        "size_px": "side that images are resized to",
        "region_bins": "bins per side of a region; 0: the checkpoint's own, or 14",
        "train_split": "split that galleries and heads learn from",
        "validation_split": "split that is measured",
        "train_images": "take so many training images only; 0: all",
        "validation_images": "take so many images only to measure on; 0: all",
        "batch_size": "images at a time through a frozen network; no number depends on it",
        "num_workers": "processes that read images",
    }
    for field in dataclasses.fields(Common):
        if field.name in helps:
            add(f"--{field.name}", type=type(field.default), help=f"{helps[field.name]} (default: {field.default})")


def _add_setting(command: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    text = f"{field.metadata['help']} (default: {_shown(field.default)})"
    if hint is bool:
        command.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=None, help=text)
    elif get_args(hint):
        command.add_argument(f"--{field.name}", type=get_args(hint)[0], nargs="+", help=text)
    else:
        command.add_argument(f"--{field.name}", type=hint, help=text)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, ProtocolEntry, Common, Any]:
    """The call: its flags, the protocol, and the settings that result."""
    args = build_parser().parse_args(arguments)
    entry = PROTOCOLS[args.protocol]
    quick = entry.quick if args.quick else {}
    given = {name: value for name, value in vars(args).items() if value is not None}
    names = {field.name for field in dataclasses.fields(Common)}
    common = Common(**{name: value for name, value in (quick | given).items() if name in names})
    own = {field.name for field in dataclasses.fields(entry.settings)}  # type: ignore[arg-type]
    chosen = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in (quick | given).items()
        if name in own
    }
    for name in ("size_px", "batch_size"):
        if getattr(common, name) < 1:
            raise ValueError(f"{name} is {getattr(common, name)}; expected at least 1.")
    return args, entry, common, entry.settings(**chosen)


def evaluate(
    entry: ProtocolEntry, common: Common, settings: Any, seeds: Sequence[int], processes: Processes
) -> tuple[dict[int, Mapping[str, Measured]], list[str]]:
    """What each seed measured, and what the reader should know."""
    found, notes = {}, []
    for seed in dict.fromkeys(seeds):
        evaluation = Evaluation(dataclasses.replace(common, seed=seed), processes)
        found[seed] = entry.run(evaluation, settings)
        told = [note for own in processes.collect([evaluation.notes]) for note in own]  # a process knows its images
        notes += [note for note in dict.fromkeys(told) if note not in notes]
    return found, notes


def protocol_id(name: str, entry: ProtocolEntry, common: Common, settings: Any) -> str:
    """Name, version and every setting that changes a number: equal ids, comparable numbers."""
    values = {name: getattr(common, name) for name in _COMMON_SETTINGS} | dataclasses.asdict(settings)
    if common.centre_cells:  # named only where it is so: older ids stay what they were
        values["centre_cells"] = True
    return f"{name}-{entry.version}:" + ",".join(f"{key}={_shown(value)}" for key, value in values.items())


def find_arm(model: str) -> str:
    """The objective of the run that exported a model; what else is known about where it comes from."""
    if model.startswith(RANDOM):
        return "untrained"
    known = Path(model).parent.parent / "run.json"
    if known.is_file():
        return str(json.loads(known.read_text(encoding="utf-8"))["recipe"]["objective"])
    return "as released"


def what_runs(missing: str) -> str:
    """Which protocols need nothing of what is missing."""
    others = [name for name, entry in PROTOCOLS.items() if entry.needs != missing]
    return ", ".join(others)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one protocol and write its numbers."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["ablation"]:  # not a protocol: it trains what the protocols then measure
        ablate(words[1:])
        return
    try:
        args, entry, common, settings = parse(words)
        processes = start_processes(args.device)
        code = commit()
        load_results(args.output)  # a file that is something else is better refused before the work than after it
        with torch.random.fork_rng(devices=[]):
            found, notes = evaluate(entry, common, settings, args.seeds, processes)
        if processes.is_main:
            hashes = _data_hash(common)
            arm = args.arm or find_arm(args.model)
            identity = protocol_id(args.protocol, entry, common, settings)
            origin = Origin(args.model, arm, identity, hashes, args.label, code)
            rows = build_rows(origin, found, dataclasses.asdict(settings))
            merge_results(args.output, rows)
            print(f"{args.model} [{arm}]\n{origin.protocol}, seeds {', '.join(map(str, args.seeds))}")
            print_rows(rows)
            for note in notes:
                print(f"note: {note}")
            print(f"wrote {args.output}")
    except MissingAnnotations as error:
        others = what_runs(error.what)
        raise SystemExit(
            f"error: {error}\nWithout, these protocols can run if the rest is there: {others}."
        ) from error
    except (ValueError, FileNotFoundError, ImportError, UnusableData) as error:
        raise SystemExit(f"error: {error}") from error


def _data_hash(common: Common) -> str:
    from training.data.sources import open_images

    splits = {common.train_split: None, common.validation_split: None}
    found = [f"{split}: {open_images(common.data, split, 'grid').fingerprint}" for split in splits]
    return "; ".join(found)


def _shown(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main()
