"""What tests of runs share: a run without files, and the command itself."""

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import logging as transformers_logging

from modeling_decodepos.losses import OBJECTIVES
from tests.forks import python
from training import pretrain
from training.data.batches import RegionDataset
from training.data.sources import open_images
from training.recipe import Recipe
from training.run.model import build_model
from training.run.optimisation import build_optimizer
from training.run.setup import Run

Make = Callable[..., Recipe]


def small_run(recipe: Recipe, total_steps: int = 20) -> tuple[Run, RegionDataset]:
    """A run without its surroundings: no files, no loop."""
    objective = OBJECTIVES[recipe.model.objective]
    image_level = objective.level == "image"
    source = open_images(recipe.data.data, "train")
    data = RegionDataset(source, recipe.views, list(objective.views), image_level=image_level)
    net = build_model(recipe.model, recipe.run.seed)
    optimizer = build_optimizer(net, recipe.run.optimizer, 0.0, 0.9)
    run = Run(Accelerator(cpu=True), net, net, optimizer, objective, recipe, total_steps, 1e-3)
    return run, data


def freeze_statistics(net: nn.Module) -> None:
    """Batch norms in eval mode: their statistics are the one thing that splitting a batch must change."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command_line(values: dict[str, Any], *launcher: str) -> list[str]:
    """What Python is given to run."""
    flags = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return [*launcher, "training/pretrain.py", *flags]


def run_here(values: dict[str, Any]) -> int | str | None:
    """The command in this process, which has imported everything already: its exit code, 0 or a message."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    verbosity = transformers_logging.get_verbosity()
    try:
        pretrain.main(command_line(values)[1:])
    except SystemExit as end:
        return end.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        transformers_logging.set_verbosity(verbosity)
    return 0


def run_command(values: dict[str, Any], *launcher: str, **environment: str) -> subprocess.CompletedProcess:
    return python().run(command_line(values, *launcher), env=ENVIRONMENT | environment)
