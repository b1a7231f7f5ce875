"""What networks make of some pictures: the map of the last stage, and what leaks into the feature of a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.pictures import decode_picture
from ..diagnosis.models.features import StageFeatures, read_features
from ..diagnosis.models.load import FeatureModel, load_model
from ..diagnosis.models.networks import Spec
from .leaks import CommonAnswers, Leaks, ask, ask_common
from .views import middle_square, scene_view

SCENE = "scene:"
Point = tuple[float, float]
Box = tuple[float, float, float, float]

_MIDDLE: Box = (0.3, 0.3, 0.7, 0.7)
_LEAST_SIDE = 0.05
_LARGEST_GRID = 32  # cells per side that are drawn


@dataclass(frozen=True)
class Asked:
    """A picture, and what is asked about it."""

    name: str
    view: Tensor  # (3, S, S) uint8, the square in the picture's middle
    box: Tensor  # (4,) in units of the square
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Seen:
    """What one network makes of all pictures."""

    common: CommonAnswers
    features: StageFeatures  # cells of the last stage
    leaks: list[Leaks]  # picture by picture

    @property
    def model(self) -> FeatureModel:
        """The network."""
        return self.common.model


@dataclass(frozen=True)
class Look:
    """Pictures, and what each network makes of them."""

    asked: list[Asked]
    seen: list[Seen]


def look(
    models: Spec | FeatureModel | Sequence[Spec | FeatureModel],
    pictures: Sequence[str | Path],
    *,
    points: Sequence[Point] = (),
    box: Box | None = None,
    size_px: int = 320,
    reading: str = "own",
    device: str = "cpu",
    progress: bool = False,
) -> Look:
    """What one or several networks make of picture files, or of scenes that are drawn: `scene:0`, `scene:1` …

    Args:
        models: Whatever the diagnosis takes.
        pictures: Files; of each, the largest square in its middle is looked at.
        points: Places in [0, 1] of the square; what is like each of them is shown. By default the box's centre.
        box: The region in question, x1, y1, x2, y2 in [0, 1]; by default an object of a scene, or the middle.
        size_px: Side of the square that networks see; more gives a finer map.
        reading: Where the cells of maps lie, as in the diagnosis.
        device: Where the networks run.
        progress: Show a bar.
    """
    specs = [models] if isinstance(models, str) or not isinstance(models, Sequence) else list(models)
    if not specs or not pictures:
        raise ValueError("there is nothing to look at: expected at least one model and one picture.")
    asked = [_ask_about(str(name), size_px, points, box) for name in pictures]
    seen = []
    with tqdm(total=len(specs) * len(asked), unit=" look", disable=not progress, dynamic_ncols=True) as bar:
        for spec in specs:
            model = load_model(spec, size_px=size_px, device=device, reading=reading)
            seen.append(_see(model, asked, bar))
    return Look(asked, seen)


def _see(model: FeatureModel, asked: Sequence[Asked], bar: tqdm) -> Seen:
    common = ask_common(model, asked[0].view.shape[1])
    leaks = []
    for one in asked:
        leaks.append(ask(common, one.view, one.box))
        bar.update()
    every = torch.stack([one.view for one in asked])
    return Seen(common, read_features(model, every, cells=True, largest_grid=_LARGEST_GRID)[-1], leaks)


def _ask_about(name: str, side: int, points: Sequence[Point], box: Box | None) -> Asked:
    if name.startswith(SCENE):
        number = name.removeprefix(SCENE)
        if not number.isdecimal():
            raise ValueError(f"{name} is no scene; expected a number, such as {SCENE}0.")
        view, found = scene_view(int(number), side)
    else:
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no picture {name}. Give a file, or {SCENE}0 for a drawn scene.")
        pixels = decode_picture(Path(name).read_bytes(), name, at_least=(4 * side, 4 * side))
        view, found = middle_square(pixels, side), torch.tensor(_MIDDLE)
    if box is not None:
        found = torch.tensor(box)
        _check_box(box)
    x, y = ((found[:2] + found[2:]) / 2).tolist()
    for point in points:
        if not all(0 <= part <= 1 for part in point):
            raise ValueError(f"point is {point}; expected x and y in [0, 1] of the square that is shown.")
    return Asked(Path(name).name, view, found.float(), tuple(points) or ((x, y),))


def _check_box(box: Box) -> None:
    x1, y1, x2, y2 = box
    inside = x1 >= 0 and y1 >= 0 and x2 <= 1 and y2 <= 1
    if not inside or min(x2 - x1, y2 - y1) < _LEAST_SIDE or (x2 - x1) * (y2 - y1) > 0.5:
        raise ValueError(
            f"box is {box}; expected x1, y1, x2, y2 in [0, 1] of the square that is shown, with sides of at least "
            f"{_LEAST_SIDE} and at most half of its area: a larger one has no surroundings."
        )
