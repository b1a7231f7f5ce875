"""Checkpoints: everything that changes during a run, as safetensors and JSON.

    checkpoints/step_0000200/{model.safetensors, config.json, optimizer.safetensors, random.safetensors, state.json}

A checkpoint is written under a temporary name, flushed to disk and then renamed, so a folder called `step_…` is always
whole, and `DecodePosForPreTraining.from_pretrained` reads it. The main process alone writes; on several machines all
must see the folder. Data order, learning rate and momentum are functions of the step and need no saving.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dataset_scripts.files import read_json, sync_to_disk
from training.errors import RunStopped
from training.export.folders import bring_back_replaced, new_folder
from training.run.log import count_things

STATE_FILE = "state.json"


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    state: dict[str, Any],
    keep: int,
    best_step: int | None = None,
) -> Path:
    """The folder of a new checkpoint; all processes must call this.

    Older ones are deleted, but for the `keep` newest and that of `best_step`.

    Raises:
        RunStopped: It could not be written, for example because the disk is full. The earlier ones are untouched.
    """
    final = folder / f"step_{step:07d}"
    random = _random_states(accelerator)
    problem: Exception | None = None
    if accelerator.is_main_process:
        try:
            for left in (*folder.glob(".writing_*"), *folder.glob(".deleting_*")):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            with new_folder(final, replace=True) as writing:
                save_file(_contiguous(model.state_dict()), writing / "model.safetensors", metadata={"format": "pt"})
                save_file(_contiguous(_optimizer_tensors(model, optimizer)), writing / "optimizer.safetensors")
                save_file(random, writing / "random.safetensors")
                if isinstance(model, PreTrainedModel):
                    model.config.save_pretrained(writing)
                text = json.dumps({**state, "step": step, "processes": accelerator.num_processes}, indent=2)
                (writing / STATE_FILE).write_text(text, encoding="utf-8")
                for file in (*writing.iterdir(), writing):
                    sync_to_disk(file)
            sync_to_disk(folder)
            _retire(folder, final, keep, best_step)
        except (OSError, SafetensorError) as error:
            problem = error
    failed = accelerator.reduce(torch.tensor(int(problem is not None), device=accelerator.device), "sum")
    if failed:
        kept = saved_steps(folder)
        last = f"the last whole one is {kept[-1]}" if kept else "there is no earlier one"
        raise RunStopped(
            f"the checkpoint of step {step} could not be written to {folder} ({problem or 'by the main process'}); "
            f"{last}. Make room, then run the same command: it continues from there."
        )
    return final


def saved_steps(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first. Folders of other names, such as copies, are left alone."""
    found = (path.parent for path in folder.glob(f"step_*/{STATE_FILE}"))
    return sorted((path for path in found if step_of(path) >= 0), key=step_of)


def step_of(path: Path) -> int:
    """The step that the name of a checkpoint tells; -1 for other names."""
    named = re.fullmatch(r"step_(\d{7,})", path.name)
    return int(named[1]) if named else -1


def _retire(folder: Path, newest: Path, keep: int, best_step: int | None) -> None:
    """Delete what is not kept, so that a half deleted checkpoint is never taken for a whole one.

    What cannot go yet, because somebody reads it over a network, goes when the next one is written.
    """
    saved = saved_steps(folder)
    # Later ones belong to a run that was taken up again from here or before: they must not be resumed.
    later = [path for path in saved if step_of(path) > step_of(newest)]
    older = [path for path in saved if step_of(path) <= step_of(newest)][:-keep]
    for path in [*later, *(path for path in older if step_of(path) != best_step)]:
        doomed = path.with_name(f".deleting_{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def find_checkpoint(folder: Path, resume: str) -> Path | None:
    """The checkpoint to continue from: the newest in `folder` for auto, none, or the path given."""
    for old in folder.glob(".replaced_step_*"):
        bring_back_replaced(old.with_name(old.name.removeprefix(".replaced_")))
    if resume == "none":
        kept = saved_steps(folder)
        if kept:
            raise ValueError(
                f"resume is none, but {folder} holds {kept[-1].name} of an earlier run. Give this run its own "
                "--output_dir, or delete the folder."
            )
        return None
    if resume == "auto":
        return next(reversed(saved_steps(folder)), None)
    path = Path(resume)
    if not (path / STATE_FILE).is_file():
        raise FileNotFoundError(f"resume: {path} is no checkpoint; expected a folder step_… holding {STATE_FILE}.")
    return path


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    other_processes: bool = False,
) -> dict[str, Any]:
    """The saved state, after model, optimiser and random numbers have been put back.

    With `other_processes` their number may differ. What a process draws on its own (a backbone's stochastic depth)
    then does too; data order and views do not depend on it.
    """
    try:
        state = read_json(path / STATE_FILE)
        numbers = (state.get("step"), state.get("processes"))
        if not isinstance(state.get("recipe", {}), dict) or not all(isinstance(number, int) for number in numbers):
            raise ValueError(f"{STATE_FILE} does not say its step, processes and recipe")
        weights, moments, random = (load_file(path / f"{n}.safetensors") for n in ("model", "optimizer", "random"))
        _refuse_foreign(model, weights, moments, random)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged ({error}). Delete that folder; the same command then continues from the "
            "checkpoint before it."
        ) from error
    if state["processes"] != accelerator.num_processes and not other_processes:
        raise ValueError(
            f"{path} was written by {count_things(state['processes'], 'process', 'es')}, this run has "
            f"{accelerator.num_processes}. Use as many again, or allow the change by name: --allow_change processes"
        )
    model.load_state_dict(weights, strict=True)
    _restore_optimizer(model, optimizer, moments)
    number = accelerator.process_index
    if number < len(random["cpu"]):
        torch.set_rng_state(random["cpu"][number].clone())
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"][number].clone())
    else:
        torch.manual_seed(state["step"] + number)
    return state


def _refuse_foreign(
    model: nn.Module, weights: dict[str, Tensor], moments: dict[str, Tensor], random: dict[str, Tensor]
) -> None:
    """Raises ValueError where what was saved is of another network than the model."""
    own, parameters = model.state_dict(), dict(model.named_parameters())
    other = sorted(own.keys() ^ weights.keys()) or [name for name in own if own[name].shape != weights[name].shape]
    if other:
        raise ValueError(f"its weights are of another network: {other[0]} differs")
    for name, value in moments.items():
        parameter = parameters.get(name.rpartition(".")[0])
        if parameter is None or value.shape not in ((), parameter.shape):
            raise ValueError(f"its optimiser state is of another network: {name} differs")
    if "cpu" not in random:
        raise ValueError("it has no random numbers")


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


def _random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """The random state of every process, one row each."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    return {name: accelerator.gather(row[None].to(accelerator.device)).cpu() for name, row in own.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in tensors.items()}
