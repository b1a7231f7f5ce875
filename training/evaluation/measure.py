"""One call of a protocol: measures with every seed, and writes the numbers with where they come from."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import logging as transformers_logging

from modeling_decodepos.commands.outputs import refuse_unwritable
from modeling_decodepos.diagnosis.models.networks import RANDOM
from modeling_decodepos.diagnosis.models.readings import choose_reading
from training.data.sources import open_images
from training.evaluation.annotated_images import MissingAnnotations
from training.evaluation.evaluation import Evaluation
from training.evaluation.processes import Processes, start_processes
from training.evaluation.protocols import PROTOCOLS, ProtocolEntry
from training.evaluation.results import Measured, build_rows, headline_rows, load_results, merge_results, print_rows
from training.evaluation.settings import STAGES, Common
from training.provenance import commit

# Of `Common`, those that change a number.
_COMMON_SETTINGS = ("size_px", "region_bins", "train_split", "validation_split", "train_images", "validation_images")


def measure(args: argparse.Namespace, entry: ProtocolEntry, common: Common, settings: Any) -> None:
    """Run one protocol and write its numbers."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    processes = start_processes(args.device)
    code = commit()
    if processes.is_main:
        refuse_unwritable(args.output)
    load_results(args.output)  # a file that is something else is better refused before the work than after it
    try:
        with torch.random.fork_rng(devices=[]):
            found, notes = evaluate(entry, common, settings, args.seeds, processes)
    except MissingAnnotations as error:
        others = ", ".join(name for name, other in PROTOCOLS.items() if other.needs != error.what)
        raise ValueError(f"{error}\nWithout, these protocols can run if the rest is there: {others}.") from error
    if processes.is_main:
        origin = {
            "model": common.model,
            "arm": args.arm or find_arm(common.model),
            "protocol": protocol_id(entry, common, settings),
            "commit": code,  # when the measuring began: a checkout may move on meanwhile
            "data_hash": _data_hash(common),
            "label": args.label,
        }
        rows = build_rows(origin, found, dataclasses.asdict(settings))
        merge_results(args.output, rows)
        print(f"{common.model} [{origin['arm']}]\n{origin['protocol']}, seeds {', '.join(map(str, args.seeds))}")
        shown = headline_rows(rows, entry.headline)
        print_rows(shown)
        for note in notes:
            print(f"note: {note}")
        others = f", with {len(rows) - len(shown)} more numbers" if len(rows) > len(shown) else ""
        print(f"wrote {args.output}{others}")


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


def protocol_id(entry: ProtocolEntry, common: Common, settings: Any) -> str:
    """Name, version and every setting that changes a number: equal ids, comparable numbers."""
    values = {name: getattr(common, name) for name in _COMMON_SETTINGS} | dataclasses.asdict(settings)
    # Named only where they are not the default: older ids stay what they were.
    values |= {"centre_cells": True} if choose_reading(common.reading, common.centre_cells) == "known" else {}
    values |= {"reading": common.reading} if common.reading not in ("own", "known") else {}
    values |= {"stage": common.stage} if common.stage != STAGES[0] else {}
    return f"{entry.name}-{entry.version}:" + ",".join(f"{key}={_shown(value)}" for key, value in values.items())


def find_arm(model: str) -> str:
    """The objective of the run that exported a model; what else is known about where it comes from."""
    if model.startswith(RANDOM):
        return "untrained"
    known = Path(model).parent.parent / "run.json"
    if known.is_file():
        return str(json.loads(known.read_text(encoding="utf-8"))["recipe"]["objective"])
    return "as released"


def _data_hash(common: Common) -> str:
    splits = {common.train_split: None, common.validation_split: None}
    found = [f"{split}: {open_images(common.data, split, 'grid').fingerprint}" for split in splits]
    return "; ".join(found)


def _shown(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
