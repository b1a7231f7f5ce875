"""What a built release must be like before anything leaves this machine."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModel

from dataset_scripts.hub.release import PLACEHOLDERS, card_problems
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining
from training.export.loading import OUTER_PREFIXES, check_finite
from training.publish.about import ABOUT_NAME
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


def refuse_unfit(releases: Sequence[Release], run_dir: Path, places: Sequence[str]) -> None:
    """Raises unless both folders may go out; `places` are paths of this machine, which no text may hold.

    Everything that is wrong is said, each in a line that names the file.
    """
    problems = []
    for release in releases:
        text = (release.folder / CARD).read_text(encoding="utf-8")
        found = [f"{CARD}: {problem}" for problem in card_problems(text, ModelCard)]
        found = [*_file_problems(release.folder, places), *found, *_weight_problems(release.folder / WEIGHTS)]
        found = found or list(_loading_problems(release))
        problems += [f"{release.folder.name}/{line}" for line in found]
    if problems := problems or list(_pair_problems(releases)):
        hint = (
            f"Say what is missing in {run_dir / ABOUT_NAME}: license, data, biases, base_model (docs/publishing.md)."
        )
        hint = f"\n{hint}" if any("still says" in problem for problem in problems) else ""
        raise ValueError(f"The release of {run_dir} is not fit to be published:\n  " + "\n  ".join(problems) + hint)


def _file_problems(folder: Path, places: Sequence[str]) -> Iterator[str]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            head = file.read(len(LEGACY_HEAD))
        if name == WEIGHTS:
            continue  # begins with a length, which may look like anything; it is read whole below
        elif head.startswith((PICKLE_HEAD, LEGACY_HEAD, ZIP_HEAD)):
            yield f"{name} is a pickle or an archive, which can run code when it is opened. Weights are safetensors."
        elif path.suffix in PICTURES:
            if not head.startswith(PICTURES[path.suffix]):
                yield f"{name} is no {path.suffix[1:]} picture."
        elif path.suffix in TEXTS:
            yield from (f"{name} {problem}" for problem in _text_problems(path, places))
        else:
            known = ", ".join(sorted({*TEXTS, *PICTURES} - {""}))
            yield f"{name} is of no kind that a release holds beside {WEIGHTS} ({known})."


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


def _weight_problems(path: Path) -> Iterator[str]:
    with safe_open(path, framework="pt") as weights:
        for key in weights.keys():  # noqa: SIM118  no mapping; one at a time, for it may be large
            if key.startswith(OUTER_PREFIXES):
                yield f"{path.name} has {key}: save the unwrapped module, else it loads as nothing."
            try:
                check_finite({key: weights.get_tensor(key)}, path.name)
            except ValueError as error:
                yield str(error)


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
