"""The loops that one would take instead: BYOL and DenseCL with the losses, heads and views of `lightly`.

    python -m venv .venv-peers && .venv-peers/bin/pip install -c constraints.txt -e '.[train]' lightly torchvision
    .venv-peers/bin/python -m benchmarks.peers densecl --data data/scenes --seed 0 --output runs/peers/densecl_0
    .venv-peers/bin/python -m benchmarks.peers speed --data data/scenes

`lightly` imports torchvision, which must be of the same build as torch: both from PyTorch's index of CPU wheels, or
both the default ones.

The same network, images, steps, optimiser and schedule as the runs that they stand beside; a method's losses, heads
and views are those of `lightly` 1.6. What comes out, `--output`, is a model as ours are: every measure takes it, and
reads regions from it in the same way. `peer.json` in it says what it cost.

`speed` trains image-level BYOL here and there, turn by turn, and prints how many pixels go through a network in a
second: a pixel of a view counts once for a forward pass, and twice more for a backward pass. Theirs sends both views
through student and teacher; ours one view and a smaller one through the student, two through the teacher.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.timing import clock_for, print_machine, print_result, print_table, ratio, spread, time_interleaved
from dataset_scripts.files import write_json
from modeling_decodepos import DecodePosConfig, DecodePosModel
from modeling_decodepos.backbones import BACKBONES
from training.data.batches import RegionDataset, epoch_order
from training.data.sources import open_images
from training.precision import has_fast_bf16
from training.run.optimisation import build_optimizer, learning_rate_at, set_schedule

HIDDEN, OUT = 512, 128
"""Of every head, as in our small recipes."""

MOMENTUM = 0.99
"""Of the teacher at first. The examples of `lightly` begin with 0.996: it would hardly move in so few steps."""

ROUND = 10

TEMPERATURE = 0.2
"""MoCo v2's, which DenseCL keeps."""

BANK = 4096
"""Negatives that DenseCL remembers: its paper has 65,536, sixteen times as many as there are scenes."""


class Byol(nn.Module):
    """Image-level BYOL (Grill et al., 2020)."""

    def __init__(self, backbone: nn.Module, channels: int, hidden: int, out: int):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

        super().__init__()
        self.student = nn.ModuleDict({"backbone": backbone, "head": BYOLProjectionHead(channels, hidden, out)})
        self.predictor = BYOLPredictionHead(out, hidden, out)
        self.teacher: Any = copy.deepcopy(self.student).requires_grad_(False)
        self.criterion = NegativeCosineSimilarity()

    @staticmethod
    def transform(size_px: int) -> Callable[[Image.Image], list[Tensor]]:
        """Two views of a picture."""
        from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform

        return BYOLTransform(BYOLView1Transform(input_size=size_px), BYOLView2Transform(input_size=size_px))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Loss of two views."""

        def project(net: Any, view: Tensor) -> Tensor:
            return net["head"](net["backbone"](view).mean((2, 3)))

        predicted = [self.predictor(project(self.student, view)) for view in (one, other)]
        with torch.no_grad():
            targets = [project(self.teacher, view) for view in (other, one)]
        losses = [self.criterion(mine, theirs) for mine, theirs in zip(predicted, targets, strict=True)]
        return torch.stack(losses).mean()


class DenseCL(nn.Module):
    """DenseCL (Wang et al., 2021): MoCo v2 on the image, and on each cell with its nearest of the other view."""

    def __init__(self, backbone: nn.Module, channels: int, hidden: int, out: int):
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import DenseCLProjectionHead

        super().__init__()
        heads = {name: DenseCLProjectionHead(channels, hidden, out) for name in ("head", "cell_head")}
        self.student = nn.ModuleDict({"backbone": backbone} | heads)
        self.teacher: Any = copy.deepcopy(self.student).requires_grad_(False)
        self.of_images = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(BANK, out))
        self.of_cells = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(BANK, out))

    @staticmethod
    def transform(size_px: int) -> Callable[[Image.Image], list[Tensor]]:
        """Two views of a picture."""
        from lightly.transforms import DenseCLTransform

        return DenseCLTransform(input_size=size_px)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Loss of two views; the second is the keys'."""
        from lightly.models.utils import select_most_similar

        def read(net: Any, view: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            cells = net["backbone"](view).flatten(2).transpose(1, 2)
            projected = net["cell_head"](cells)
            return cells, net["head"](cells.mean(1)), projected, F.normalize(projected.mean(1), dim=1)

        cells, image, projected, _ = read(self.student, one)
        with torch.no_grad():
            order = torch.randperm(len(other))
            keys = [part[order.argsort()] for part in read(self.teacher, other[order])]
        matched = select_most_similar(cells.detach(), keys[0], keys[2])
        of_cells = self.of_cells(projected.flatten(0, 1), matched.flatten(0, 1))
        return (self.of_images(image, keys[1]) + of_cells) / 2


METHODS: dict[str, type[Byol] | type[DenseCL]] = {"byol": Byol, "densecl": DenseCL}


class LastMap(nn.Module):
    """(B, C, h, w) of pixels: what both methods read. It shares its weights with the model that is saved."""

    def __init__(self, model: DecodePosModel):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """The last map."""
        return self.model(pixels).last_hidden_state


def views_of(
    data: str, transform: Callable[[Image.Image], list[Tensor]], batch: int, seed: int
) -> Iterator[list[Tensor]]:
    """Two views of `batch` pictures at a time, for ever; pictures stay decoded, as in our cache."""
    source = open_images(data)
    kept: dict[int, Image.Image] = {}

    def picture(number: int) -> Image.Image:
        if number not in kept:
            kept[number] = Image.fromarray(source.pixels(number))
        return kept[number]

    order = (int(number) for epoch in count() for number in epoch_order(len(source), seed, epoch))
    while True:
        pairs = [transform(picture(next(order))) for _ in range(batch)]
        yield [torch.stack(views).contiguous(memory_format=torch.channels_last) for views in zip(*pairs, strict=True)]


def build_method(arguments: argparse.Namespace, name: str) -> tuple[DecodePosModel, Byol | DenseCL]:
    """The model that is saved, and the method that trains it."""
    config = DecodePosConfig(
        backbone_config=BACKBONES[arguments.backbone](),
        region_bins=arguments.region_bins,
        centre_cells=True,
        zero_init_residual=False,
    )
    model = DecodePosModel(config)
    method: Any = METHODS[name](LastMap(model), config.hidden_size, HIDDEN, OUT)
    return model, method.to(memory_format=torch.channels_last).train()


def steps_of(arguments: argparse.Namespace, method: Byol | DenseCL, half: bool) -> Iterator[float]:
    """The loss of step after step, for ever."""
    from lightly.models.utils import update_momentum
    from lightly.utils.scheduler import cosine_schedule

    transform = method.transform(arguments.size_px)
    optimizer = build_optimizer(method, "adamw", 1e-4, 0.9)
    for step, (one, other) in enumerate(views_of(arguments.data, transform, arguments.batch, arguments.seed)):
        done = min(step, arguments.steps)
        rate = learning_rate_at(done, arguments.steps, arguments.steps // 10, arguments.learning_rate, 0.0)
        set_schedule(optimizer, rate, 1e-4)
        update_momentum(method.student, method.teacher, cosine_schedule(done, arguments.steps, MOMENTUM, 1.0))
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            loss = method(one, other)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a peer, save the model, and say what it took."""
    model, method = build_method(arguments, arguments.what)
    start = time.process_time()
    steps = islice(steps_of(arguments, method, has_fast_bf16()), arguments.steps)
    losses = list(tqdm(steps, total=arguments.steps, desc=arguments.what, unit="step"))
    seconds, images = time.process_time() - start, arguments.steps * arguments.batch
    model.eval().save_pretrained(arguments.output)
    found = {"method": arguments.what, "seed": arguments.seed, "images": images, "processor_seconds": seconds}
    found |= {"images_per_s": images / seconds, "loss": [float(np.mean(part)) for part in (losses[:10], losses[-10:])]}
    write_json(arguments.output / "peer.json", found)
    return found


def our_steps(arguments: argparse.Namespace) -> Iterator[int]:
    """Pixels of step after step of our trainer, for ever: image-level BYOL from the decoded cache."""
    from training.pretrain import training_step
    from training.recipe import load_recipe
    from training.run.setup import build_accelerator, build_run

    recipe = Path(__file__).parents[1] / "training/recipes/byol_image.yaml"
    with tempfile.TemporaryDirectory() as folder:
        keys = {"data": arguments.data, "output_dir": f"{folder}/run", "backbone": arguments.backbone, "cpu": True}
        keys |= {"region_bins": arguments.region_bins, "view_size_px": arguments.size_px, "cache_px": 128}
        keys |= {"mixed_precision": "auto", "global_batch_size": arguments.batch, "num_workers": 0}
        keys |= {"measure_steps": 0, "probe_count": 0}
        made = load_recipe(recipe, keys)
        run, data, order = build_run(build_accelerator(made), made, Path(folder) / "run")
        order = replace(order, last_step=made.run.max_steps)
        for batch in map(cast("RegionDataset", data).__getitems__, order):
            training_step(run, [batch])
            run.step += 1
            side = {name: view.pixel_values.shape[-1] for name, view in batch.views.items()}
            views = [*run.objective.student_views * 3, *run.objective.teacher_views]
            yield len(batch.indices) * sum(side[name] ** 2 for name in views)


def speed(arguments: argparse.Namespace) -> dict[str, float]:
    """Million pixels a second of ours and of theirs, in fp32 as its examples are and in bf16."""
    ours = our_steps(arguments)
    sides: dict[str, Iterator[float]] = {
        name: steps_of(arguments, build_method(arguments, "byol")[1], half)
        for name, half in (("theirs, fp32", False), ("theirs, bf16", True))
    }
    pixels = {"ours": next(ours)} | dict.fromkeys(sides, 8 * arguments.batch * arguments.size_px**2)
    sides["ours"] = ours
    calls = {name: partial(lambda steps: deque(islice(steps, ROUND), 0), steps) for name, steps in sides.items()}
    seconds = time_interleaved(calls, arguments.rounds, clock=clock_for(arguments.threads))
    rates = {name: spread([ROUND * pixels[name] / taken / 1e6 for taken in seconds[name]]) for name in calls}
    print_table(("image-level BYOL", "million pixels/s"), [(name, rates[name]) for name in calls])
    found = {}
    for name in ("theirs, fp32", "theirs, bf16"):
        gain = ratio(
            [each / pixels[name] for each in seconds[name]], [each / pixels["ours"] for each in seconds["ours"]]
        )
        print(f"ours over {name}: {gain}")
        found[name] = gain.median
    return {
        "ours": rates["ours"].median,
        "theirs": rates["theirs, fp32"].median,
        "ratio": found["theirs, fp32"],
    } | found


def main() -> None:
    """Train a peer, or time one, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*METHODS, "speed"])
    parser.add_argument("--data", default="data/scenes")
    parser.add_argument("--output", type=Path, help="folder of the trained model")
    parser.add_argument("--backbone", default="resnet_mini", choices=sorted(BACKBONES))
    parser.add_argument("--region_bins", type=int, default=8, help="that measures read")
    parser.add_argument("--size_px", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--learning_rate", type=float, default=0.002)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help=f"of `speed`, {ROUND} steps each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what != "speed" and arguments.output is None:
        parser.error("--output is missing: the folder of the trained model.")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    print_machine()
    if arguments.what == "speed":
        found = speed(arguments)
        print_result("peers", "lightly's BYOL", found["ratio"], found["ours"], found["theirs"], "million pixels/s")
    else:
        print(json.dumps(train(arguments)))


if __name__ == "__main__":
    main()
