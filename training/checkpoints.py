"""Checkpoints: everything that changes during a run, as safetensors and JSON.

    checkpoints/step_0000200/{model.safetensors, optimizer.safetensors, random_0.safetensors, state.json}

A checkpoint is written under a temporary name, flushed to disk and then renamed, so a folder called `step_…` is always
whole. Data order, learning rate and momentum are functions of the step and need no saving.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STATE_FILE = "state.json"


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """The folder of a new checkpoint; all processes must call this. Older ones beyond `keep` are deleted."""
    final = folder / f"step_{step:07d}"
    temporary = folder / f".writing_step_{step:07d}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_file(_random_state(), temporary / f"random_{accelerator.process_index}.safetensors")
    if accelerator.is_main_process:
        save_file(_contiguous(model.state_dict()), temporary / "model.safetensors")
        save_file(_contiguous(_optimizer_tensors(model, optimizer)), temporary / "optimizer.safetensors")
        text = json.dumps({**state, "step": step, "processes": accelerator.num_processes}, indent=2)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        _delete(final)
        os.replace(temporary, final)
        _flush(folder)
        saved = sorted(folder.glob("step_*"))
        # Later ones belong to a run that was taken up again from here or before: they must not be resumed.
        later = [path for path in saved if path.name > final.name]
        for old in [*later, *[path for path in saved if path.name <= final.name][:-keep]]:
            _delete(old)
    accelerator.wait_for_everyone()
    return final


def find_checkpoint(folder: Path, resume: str) -> Path | None:
    """The checkpoint to continue from: the newest in `folder` for auto, none, or the path given."""
    if resume == "none":
        kept = sorted(folder.glob("step_*"))
        if kept:
            raise ValueError(
                f"resume is none, but {folder} holds {kept[-1].name} of an earlier run. Give this run its own "
                "--output_dir, or delete the folder."
            )
        return None
    if resume == "auto":
        return max((p.parent for p in folder.glob(f"step_*/{STATE_FILE}")), default=None)
    path = Path(resume)
    if not (path / STATE_FILE).is_file():
        raise FileNotFoundError(f"resume: {path} is no checkpoint; expected a folder step_… holding {STATE_FILE}.")
    return path


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> dict[str, Any]:
    """The saved state, after model, optimiser and random numbers have been put back."""
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    if state["processes"] != accelerator.num_processes:
        raise ValueError(
            f"{path} was written by {state['processes']} processes, this run has {accelerator.num_processes}. Use as "
            "many again, or give this run its own --output_dir."
        )
    model.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    _restore_optimizer(model, optimizer, load_file(path / "optimizer.safetensors"))
    random = load_file(path / f"random_{accelerator.process_index}.safetensors")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"])
    return state


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        owner, key = name.rsplit(".", 1)
        parameter = parameters[owner]
        # AdamW keeps its step count on the CPU; everything else lies where, and how, the weight lies.
        optimizer.state[parameter][key] = value if value.ndim == 0 else torch.empty_like(parameter).copy_(value)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def _delete(path: Path) -> None:
    """Delete a checkpoint so that a half deleted one is never taken for a whole one."""
    if path.is_dir():
        doomed = path.with_name(f".deleting_{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
