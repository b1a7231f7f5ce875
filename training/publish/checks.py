"""What a built release must be like before anything leaves this machine."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, eval_result_entries_to_yaml, parse_eval_result_entries
from safetensors import SafetensorError, safe_open
from transformers import AutoModel

from dataset_scripts.hub.release import PLACEHOLDERS, card_problems
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining
from training.export.loading import OUTER_PREFIXES, check_finite
from training.publish.folders import CARD, KINDS, WEIGHTS, Release

TEXTS = {".json", ".jsonl", ".md", ".py", ".yaml", ".html", ".svg", ""}
PICTURES = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff"}
# How files of torch.save begin, new (an archive) and old, and how any pickle does.
ZIP_HEAD = b"PK"
LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
PICKLE_HEAD = b"\x80"
# What the Hub gives out; shorter strings of the kind are words.
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_STUDENT_BACKBONE = "decodepos.backbone."


def release_problems(releases: Sequence[Release], places: Sequence[str]) -> list[str]:
    """Everything that is wrong, each in a line that names the file; empty if the release may go out.

    Args:
        releases: Both folders.
        places: Paths of this machine, which no text may hold.
    """
    problems = []
    for release in releases:
        found = [*_file_problems(release.folder, places), *_card_problems(release), *_weight_problems(release)]
        found = found or list(_loading_problems(release))
        problems += [f"{release.folder.name}/{line}" for line in found]
    return problems or list(_pair_problems(releases))


def _file_problems(folder: Path, places: Sequence[str]) -> Iterator[str]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            head = file.read(len(LEGACY_HEAD))
        if path.is_symlink():
            yield f"{name} is a link."
        elif path.suffix == ".safetensors":
            continue  # begins with a length, which may look like anything; it is read whole below
        elif head.startswith((PICKLE_HEAD, LEGACY_HEAD, ZIP_HEAD)):
            yield f"{name} is a pickle or an archive, which can run code when it is opened. Weights are safetensors."
        elif path.suffix in PICTURES:
            if not head.startswith(PICTURES[path.suffix]):
                yield f"{name} is no {path.suffix[1:]} picture."
        elif path.suffix in TEXTS:
            yield from (f"{name} {problem}" for problem in _text_problems(path, places))
        else:
            known = ", ".join(sorted({*TEXTS, *PICTURES, ".safetensors"} - {""}))
            yield f"{name} is of no kind that a release holds ({known})."


def _text_problems(path: Path, places: Sequence[str]) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield "is no text."
        return
    if path.name != CARD:  # the card's are named line by line
        yield from (f"still says {word}." for word in PLACEHOLDERS if word in text)
    yield from (f"names {place}, a path of this machine." for place in places if place in text)
    if _TOKEN.search(text):
        yield "holds what looks like a token of the Hub. Revoke it, then take it out."


def _card_problems(release: Release) -> Iterator[str]:
    text = (release.folder / CARD).read_text(encoding="utf-8")
    if problems := card_problems(text, ModelCard):
        yield from (f"{CARD}: {problem}" for problem in problems)
    else:
        data: Any = ModelCard(text).data
        results = [result.metric_value for result in data.eval_results or []]
        stored = json.loads((release.folder / "results.json").read_text(encoding="utf-8"))["results"]
        if missing := [value for value in results if value not in [row["value"] for row in stored]]:
            yield f"{CARD} has {missing[0]} in model-index, which is no number of results.json."
    for path in sorted((release.folder / ".eval_results").glob("*.yaml")):
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        if eval_result_entries_to_yaml(parse_eval_result_entries(entries)) != entries:
            yield f".eval_results/{path.name} reads back as something else."


def _weight_problems(release: Release) -> Iterator[str]:
    files = sorted(release.folder.glob("*.safetensors"))
    if not files:
        yield f"{WEIGHTS} is missing."
    for path in files:
        try:
            with safe_open(path, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118  no mapping; one at a time, for it may be large
                    if key.startswith(OUTER_PREFIXES):
                        yield f"{path.name} has {key}: save the unwrapped module, else it loads as nothing."
                    check_finite({key: weights.get_tensor(key)}, path.name)
        except (SafetensorError, ValueError) as error:
            yield str(error) if isinstance(error, ValueError) else f"{path.name} cannot be read ({error})."


def _loading_problems(release: Release) -> Iterator[str]:
    """Every weight finds its place, and every place its weight."""
    loader: Any = AutoModel if release.kind == KINDS[0] else DecodePosForPreTraining
    _, report = loader.from_pretrained(release.folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, report[kind])):
            yield f"{WEIGHTS} does not load whole: {len(found)} {kind.replace('_', ' ')}, first {found[0]}."


def _pair_problems(releases: Sequence[Release]) -> Iterator[str]:
    """The plain backbone is the student's of the other repository."""
    folders = {release.kind: release.folder for release in releases}
    one, other = folders[KINDS[0]] / WEIGHTS, folders[KINDS[1]] / WEIGHTS
    with safe_open(one, framework="pt") as plain, safe_open(other, framework="pt") as whole:
        known = set(whole.keys())
        for key in plain.keys():  # noqa: SIM118  no mapping
            theirs = _STUDENT_BACKBONE + key
            if theirs not in known or not torch.equal(plain.get_tensor(key), whole.get_tensor(theirs)):
                yield f"{one.parent.name}/{WEIGHTS}: {key} is not the student's in {other.parent.name}. Export anew."
                return
