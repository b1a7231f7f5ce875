"""Other people's checkpoints: opened without running what is in them, and unpacked to one network's tensors."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

Network = Literal["student", "teacher"]

WEIGHT_FILES = ("*.safetensors", "*.pth", "*.pt", "*.pth.tar", "*.bin")
# Under which key a training script puts its network, and under which an average of it.
WRAPPERS = ("state_dict", "model", "student")
AVERAGES = ("model_ema", "state_dict_ema", "ema", "teacher")
# What data-parallel training and compilation put before every key.
OUTER_PREFIXES = ("module.", "_orig_mod.")


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
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # timm and others keep their command line beside the weights; as a holder of plain values it does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write; what they hold is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the parsers make of bytes that are no checkpoint
        lines = str(error).splitlines() or [repr(error)]
        reason = next((line for line in lines if "GLOBAL" in line), lines[0]).strip()
        raise ValueError(
            f"{path} is not a checkpoint, an incomplete download of one, or one that only running code in it could "
            f"open, which is not done here ({reason}). If you trust it, save its tensors alone where it was made: "
            "torch.save({'state_dict': model.state_dict()}, 'model.pth'), or of a plain pickle of arrays\n"
            "  data = pickle.load(open('model.pkl', 'rb'))\n"
            "  torch.save({'model': {k: torch.as_tensor(v) for k, v in data['model'].items()}}, 'model.pth')"
        ) from error


def unpack(loaded: Any, network: Network, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one network from whatever a training script saved, and the names of what lay beside them."""
    names = (*AVERAGES, *WRAPPERS) if network == "teacher" else WRAPPERS
    beside: list[str] = []
    is_average = False
    while isinstance(loaded, Mapping) and not _is_weights(loaded):
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
    if network == "teacher" and not is_average:
        raise ValueError(
            f"{path} holds one network and no teacher, which would be under {', '.join(AVERAGES)}. Leave out "
            "--network teacher."
        )
    weights = {str(key): value for key, value in loaded.items()}
    for prefix in OUTER_PREFIXES * 2:  # either may be the outer one
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights, beside


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with NaN or infinity in them."""
    broken = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{where} has NaN or infinite values in {len(broken)} tensors, first {broken[0]}. Such weights are not "
            "converted; take an earlier checkpoint."
        )


def _is_weights(loaded: Mapping[Any, Any]) -> bool:
    return bool(loaded) and all(isinstance(value, Tensor) for value in loaded.values())


def _describe(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    return f"{'tensors and ' if len(others) < len(loaded) else ''}the keys {', '.join(others[:6]) or '(none)'}"
