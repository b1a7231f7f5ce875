"""A ResNet's tensors under the names of another layout, there and back, with every key accounted for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from training.export.key_layouts import BARE, LAYOUTS, TRANSFORMERS, LayerNames, Layout, Prefix

Network = Literal["student", "teacher"]

LAST_STAGE = 3
CONVOLUTIONS = ("stem", "conv", "shortcut")
NORMS = ("stem_norm", "norm", "shortcut_norm")
STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
TENSORS = dict.fromkeys(CONVOLUTIONS, ("weight",)) | dict.fromkeys(NORMS, STATISTICS)


@dataclass(frozen=True)
class Place:
    """Where in a ResNet a tensor belongs; stages, blocks and convolutions count from zero, the stem has none."""

    kind: str
    tensor: str
    stage: int = -1
    block: int = -1
    conv: int = -1


@dataclass
class Renamed:
    """What came of a file's keys.

    Args:
        weights: The backbone's tensors under the names of transformers.
        left_out: What the file holds besides, and in how many tensors.
    """

    weights: dict[str, Tensor]
    left_out: Counter[str]


@cache
def _patterns(names: LayerNames) -> dict[str, re.Pattern[str]]:
    """One pattern per kind of layer that finds what its template writes."""
    patterns = {}
    for kind, tensors in TENSORS.items():
        layer = re.escape(getattr(names, kind))
        for number in ("stage", "block", "conv"):
            layer = layer.replace(re.escape("{" + number + "}"), rf"(?P<{number}>\d+)")
        patterns[kind] = re.compile(rf"{layer}\.(?P<tensor>{'|'.join(tensors)})")
    return patterns


def find_place(key: str, names: LayerNames, prefix: Prefix = BARE) -> Place | None:
    """The place of a key of a layout; none if it is not part of the ResNet."""
    for start, is_last in ((prefix.trunk, False), (prefix.last_stage, True)):
        if start is None or not key.startswith(start):
            continue
        for kind, pattern in _patterns(names).items():
            match = pattern.fullmatch(key[len(start) :])
            if match is None:
                continue
            found = match.groupdict()
            stage = int(found["stage"]) - names.first_stage if "stage" in found else -1
            conv = int(found["conv"]) - names.first_conv if "conv" in found else -1
            if prefix.last_stage is None or is_last == (stage == LAST_STAGE):
                return Place(kind, found["tensor"], stage, int(found.get("block", -1)), conv)
    return None


def name_place(place: Place, names: LayerNames, prefix: Prefix = BARE) -> str:
    """The key of a place in a layout; the inverse of `find_place`."""
    start = prefix.trunk if prefix.last_stage is None or place.stage != LAST_STAGE else prefix.last_stage
    template: str = getattr(names, place.kind)
    layer = template.format(
        stage=place.stage + names.first_stage, block=place.block, conv=place.conv + names.first_conv
    )
    return f"{start}{layer}.{place.tensor}"


def to_layout(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The tensors of transformers' ResNet under the names of another layout."""
    renamed = {}
    for key, value in weights.items():
        place = find_place(key, TRANSFORMERS)
        if place is None:
            raise ValueError(f"{key} is no tensor of transformers' ResNet, which is what this layout can hold.")
        renamed[name_place(place, layout.names, layout.student[0])] = value
    assert len(renamed) == len(weights)
    return renamed


def from_layout(weights: Mapping[str, Tensor], name: str, network: Network = "student") -> Renamed:
    """The tensors of a file under the names of transformers' ResNet.

    Raises:
        ValueError: The network is not there, or the file holds a key that is neither its own nor a known leftover.
    """
    layout = LAYOUTS[name]
    prefixes = layout.student if network == "student" else layout.teacher
    prefix = next((p for p in prefixes if _has_stem(weights, layout.names, p)), None)
    if prefix is None:
        raise ValueError(_not_this_layout(weights, name, network))
    others = [(p, "student") for p in layout.student if p != prefix]
    others += [(p, "teacher") for p in layout.teacher if p != prefix]
    found: dict[str, Tensor] = {}
    copies: list[tuple[str, str]] = []
    left_out: Counter[str] = Counter()
    unknown = []
    for key, value in weights.items():
        place = find_place(key, layout.names, prefix)
        if place is not None:
            found[name_place(place, TRANSFORMERS)] = value
            continue
        twin = next(((p, whose) for p, whose in others if find_place(key, layout.names, p)), None)
        kind = next((what for pattern, what in layout.leftovers.items() if re.fullmatch(pattern, key)), None)
        if kind is not None:
            left_out[kind] += 1
        elif twin is not None:
            if twin[1] == network:
                twin_place = find_place(key, layout.names, twin[0])
                assert twin_place is not None
                copies.append((key, name_place(twin_place, TRANSFORMERS)))
                left_out[f"second copy of the {network}"] += 1
            else:
                left_out[f"the {twin[1]}"] += 1
        else:
            unknown.append(key)
    different = [key for key, native in copies if native not in found or not torch.equal(weights[key], found[native])]
    if different:
        raise ValueError(f"the file holds two different networks; {different[0]} is not what the first one has there.")
    if unknown:
        raise ValueError(
            f"{len(unknown)} keys are no part of a ResNet in the layout {name!r}: {_some(unknown)}. Nothing was "
            f"converted.{_suggest(weights, name)}"
        )
    return Renamed(found, left_out)


def looks_like(keys: Iterable[str]) -> list[str]:
    """Names of the layouts that explain the most of a file's keys, and its stem among them."""
    keys = list(keys)
    scores: dict[str, int] = {}
    for name, layout in LAYOUTS.items():
        for prefix in layout.student:
            if _has_stem(keys, layout.names, prefix):
                known = (find_place(key, layout.names, prefix) is not None for key in keys)
                left = (any(re.fullmatch(p, key) for p in layout.leftovers) for key in keys)
                score = sum(a or b for a, b in zip(known, left, strict=True))
                scores[name] = max(score, scores.get(name, 0))
    best = max(scores.values(), default=0)
    return [name for name, score in scores.items() if score == best]


def is_native(keys: Iterable[str]) -> bool:
    """Whether keys are those of transformers' own ResNet."""
    return name_place(Place("stem", "weight"), TRANSFORMERS) in {key.removeprefix("resnet.") for key in keys}


def _has_stem(keys: Iterable[str], names: LayerNames, prefix: Prefix) -> bool:
    if name_place(Place("stem", "weight"), names, prefix) not in keys:
        return False
    last = re.compile(re.escape(name_place(Place("conv", "weight", LAST_STAGE, 0, 0), names, prefix)))
    return any(last.fullmatch(key) for key in keys)


def _not_this_layout(weights: Mapping[str, Tensor], name: str, network: Network) -> str:
    layout = LAYOUTS[name]
    prefixes = layout.student if network == "student" else layout.teacher
    if network == "teacher" and not prefixes:
        return f"files of the layout {name!r} hold one network and no teacher. Leave out --network teacher."
    expected = " or ".join(name_place(Place("stem", "weight"), layout.names, prefix) for prefix in prefixes)
    return (
        f"no {network} in the layout {name!r} here: that would have {expected}, and a last stage; the file has "
        f"{_some(list(weights))}.{_suggest(weights, name)}"
    )


def _suggest(weights: Mapping[str, Tensor], name: str) -> str:
    if is_native(weights):
        return " These are the keys of transformers' own ResNet: give its folder without --from."
    others = [other for other in looks_like(weights) if other != name]
    return f" The keys look like {' or '.join(others)}: try --from {others[0]}." if others else ""


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
