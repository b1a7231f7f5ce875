"""Checkpoints of strangers: opened without running what is in them, and unpacked to one network's tensors."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.export.renaming import Network

WEIGHT_FILES = ("*.safetensors", "*.pth", "*.pt", "*.pth.tar", "*.bin")
# Under which key a training script puts its network, and under which an average of it.
WRAPPERS = ("state_dict", "model", "student")
AVERAGES = ("model_ema", "state_dict_ema", "ema", "teacher")
# What data-parallel training, compilation, and transformers' classifiers put before every key.
OUTER_PREFIXES = ("module.", "_orig_mod.")

# How files of torch.save begin, new and old, and how any pickle does.
ZIP_HEAD = b"PK"
LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
PICKLE_HEAD = b"\x80"


@dataclass
class Unpacked:
    """One network's tensors, whether they are an average over training, and what lay beside them in the file."""

    weights: dict[str, Tensor]
    is_average: bool
    beside: list[str]


def find_weights(path: Path) -> Path:
    """The file itself, or the one file of weights in a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} is no file and no folder.")
    found = sorted({file for pattern in WEIGHT_FILES for file in path.glob(pattern)})
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"expected one file of weights in {path}, found {names}. Give the file itself.")
    return found[0]


def read_checkpoint(path: Path) -> Any:
    """What a file holds, read without executing any of it.

    Raises:
        ValueError: It is no checkpoint, or one that only running foreign code could open.
    """
    with path.open("rb") as file:
        head = file.read(len(LEGACY_HEAD))
    if path.suffix != ".safetensors" and not head.startswith((ZIP_HEAD, LEGACY_HEAD)):
        if head.startswith(PICKLE_HEAD):
            raise ValueError(
                f"{path} is a plain pickle, which can run any code when it is opened, so it is not opened here. Where "
                "you trust it, turn it into tensors in its own environment:\n"
                "  data = pickle.load(open('model.pkl', 'rb'))\n"
                "  torch.save({'model': {k: torch.as_tensor(v) for k, v in data['model'].items()}}, 'model.pth')"
            )
        raise ValueError(f"{path} is not a checkpoint: it begins with {head!r}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # SoCo and others keep their command line beside the weights; as a holder of plain values it does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
        raise ValueError(
            f"{path} cannot be read as tensors and plain values ({reason.strip()}). If it is a checkpoint that you "
            "trust, save its tensors alone where it was made: torch.save({'state_dict': model.state_dict()}, path)."
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(f"{path} is not a checkpoint, or an incomplete download of one ({reason}).") from error


def unpack(loaded: Any, network: Network, path: Path) -> Unpacked:
    """The tensors of one network from whatever a training script saved."""
    beside: list[str] = []
    is_average = False
    while isinstance(loaded, Mapping) and not _is_weights(loaded):
        names = (*AVERAGES, *WRAPPERS) if network == "teacher" else WRAPPERS
        inner = next((name for name in names if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        is_average |= inner in AVERAGES
        beside += [str(key) for key in loaded if key != inner]
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not _is_weights(loaded):
        raise ValueError(
            f"{path} holds no tensors by name: found {_describe(loaded)}; expected them at the top or under "
            f"{', '.join(WRAPPERS)}."
        )
    weights = {str(key): value for key, value in loaded.items()}
    for prefix in OUTER_PREFIXES * 2:  # either may be the outer one
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return Unpacked(weights, is_average, beside)


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with NaN or infinity in them."""
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{where} has NaN or infinite values in {len(broken)} tensors, first {broken[0]}. Such weights are not "
            "converted; take an earlier checkpoint."
        )


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_weights(loaded: Mapping[Any, Any]) -> bool:
    return bool(loaded) and all(isinstance(value, Tensor) for value in loaded.values())


def _describe(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    if any(isinstance(value, Tensor) for value in loaded.values()):
        return (
            f"among tensors {next(k for k, value in loaded.items() if not isinstance(value, Tensor))}, which is none"
        )
    return f"the keys {', '.join(map(str, list(loaded)[:6])) or '(none)'}"
