"""The arms of the comparison are honest: each loss is what its literature says, and all else is the same."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ResNetModel

from modeling_decodepos.losses import OBJECTIVES
from modeling_decodepos.regions import View
from tests.modeling.conftest import shake
from tests.training.runs import Make, freeze_statistics
from training import pretrain
from training.data.batches import RegionBatch, RegionDataset, StepBatches, build_loader
from training.data.sources import ImageSource
from training.recipe import DEFAULT_RECIPE, load_recipe
from training.run.setup import Run, build_run

# Of the comparison with the paper. Those that show regions alone are another method: `test_posttrain.py`.
ARMS = {name: objective for name, objective in OBJECTIVES.items() if "alone" not in objective.views}
REGION_ARMS = tuple(name for name, objective in ARMS.items() if objective.level == "region")
# Images with 2 to 4 regions, of which about half have a mixed view; some mixed views lose a region.
RAGGED = {"mixed_share": 0.5, "max_foreground": 0.3, "global_batch_size": 6}
PLAIN = {
    "jitter_probability": 0.0, "grayscale_probability": 0.0, "solarize_probability": 0.0,
    "blur_probability": 0.0, "blur_probability_whole": 0.0,
}  # fmt: skip
SIDE = 64  # of a full-size view
MEAN, DEVIATION = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@dataclasses.dataclass
class Arm:
    """One arm of the comparison as the trainer builds it."""

    run: Run
    data: RegionDataset
    batches: StepBatches

    @property
    def loader(self) -> DataLoader:
        return build_loader(self.data, self.batches, 0, False)


Build = Callable[..., Arm]


@pytest.fixture
def build(make_recipe: Make, tmp_path: Path) -> Build:
    def build(objective: str, **changes: object) -> Arm:
        recipe = make_recipe(objective=objective, **changes)
        run, data, batches = build_run(Accelerator(cpu=True), recipe, tmp_path / objective)
        assert isinstance(data, RegionDataset)
        return Arm(run, data, dataclasses.replace(batches, last_step=run.total_steps))

    return build


# --- each loss, written down from its source

Vectors = dict[tuple[int, int], Tensor]  # by image and number of the region
Embed = Callable[[str], Vectors]  # of a view, by its name


def distance(predictions: Vectors, targets: Vectors) -> Tensor:
    """-2 cos, averaged over the regions that both views show (BYOL's squared distance without its constant)."""
    both = predictions.keys() & targets.keys()
    return sum(-2 * p @ t / (p.norm() * t.norm()) for p, t in ((predictions[k], targets[k]) for k in both)) / len(both)


def byol(s: Embed, t: Embed, weight: float) -> Tensor:
    """BYOL on the crop and the whole image: each predicts the other. The student has the crop at half size."""
    return distance(s("crop_small"), t("whole")) + distance(s("whole"), t("crop"))


def decoupling(s: Embed, t: Embed, weight: float) -> Tensor:
    """L_dc of the figure: the two student views are region-augmented, and so is the teacher's whole image."""
    return distance(s("crop_cut_small"), t("whole_cut")) + distance(s("whole_cut"), t("crop"))


def depositioning(s: Embed, t: Embed, weight: float) -> Tensor:
    """L_dp beside BYOL, without region augmentation."""
    moved = distance(s("repositioned"), t("whole")) + distance(s("repositioned"), t("crop"))
    return byol(s, t, weight) + weight * moved


def both(s: Embed, t: Embed, weight: float) -> Tensor:
    """L_dc + lambda L_dp of the figure: the teacher's whole image is the augmented one in both."""
    moved = distance(s("repositioned"), t("whole_cut")) + distance(s("repositioned"), t("crop"))
    return decoupling(s, t, weight) + weight * moved


def both_uncut_teacher(s: Embed, t: Embed, weight: float) -> Tensor:
    """Ours: the same students, and a teacher that sees the whole image without cuts."""
    moved = distance(s("repositioned"), t("whole")) + distance(s("repositioned"), t("crop"))
    return distance(s("crop_cut_small"), t("whole")) + distance(s("whole_cut"), t("crop")) + weight * moved


def closeness(predictions: Vectors, targets: Vectors) -> Tensor:
    """Twice the mean cosine, where positive, with the targets of the image's other regions; averaged over regions."""
    shared = predictions.keys() & targets.keys()
    total = torch.zeros((), dtype=torch.float64)
    for image, region in shared:
        p = predictions[image, region]
        others = [targets[k] for k in shared if k[0] == image and k[1] != region]
        total = total + sum(2 * (p @ t / (p.norm() * t.norm())).clamp(min=0) for t in others) / max(len(others), 1)
    return total / len(shared)


def both_apart(s: Embed, t: Embed, weight: float) -> Tensor:
    """Ours: the figure's losses, and the regions of an image kept apart."""
    apart = closeness(s("crop_cut_small"), t("whole_cut")) + closeness(s("whole_cut"), t("crop"))
    return both(s, t, weight) + apart


# The two BYOLs differ in what a vector stands for: SoCo's is a region, the original's the image.
LITERATURE = {
    "byol_image": byol, "byol_region": byol, "decoupling": decoupling, "depositioning": depositioning, "both": both,
    "both_uncut_teacher": both_uncut_teacher, "both_apart": both_apart,
}  # fmt: skip


class PlainNetwork(nn.Module):
    """A ResNet of transformers and plain heads, with the weights of ours, in float64."""

    def __init__(self, config: object, weights: dict[str, nn.Module]):
        super().__init__()
        self.backbone = ResNetModel(config)
        self.backbone.load_state_dict(weights["backbone"].state_dict())
        for name in weights.keys() - {"backbone"}:
            one, norm, _, other = weights[name]
            self.add_module(
                name,
                nn.Sequential(
                    nn.Linear(one.in_features, one.out_features),
                    nn.BatchNorm1d(norm.num_features),
                    nn.ReLU(),
                    nn.Linear(other.in_features, other.out_features),
                ),
            )
            self.get_submodule(name).load_state_dict(weights[name].state_dict())
        self.double()

    def images(self, batches: list[RegionBatch], name: str) -> Vectors:
        """A vector per image, as any ResNet gives it."""
        found: Vectors = {}
        for images, pixels, _ in read(batches, name):
            vectors = self.heads(self.backbone(pixels).pooler_output.flatten(1))
            found |= {(image, 0): vector for image, vector in zip(images, vectors, strict=True)}
        return found

    def regions(self, batches: list[RegionBatch], name: str) -> Vectors:
        """A vector per region: the first three stages see the image, the last one sees what is pooled from a box."""
        found: Vectors = {}
        for images, pixels, boxes in read(batches, name):
            hidden = self.backbone.embedder(pixels)
            for stage in self.backbone.encoder.stages[:3]:
                hidden = stage(hidden)
            keys = [(row, region) for row in range(len(boxes)) for region in boxes[row]]
            pooled = torch.stack([pool(hidden[row], boxes[row][region]) for row, region in keys])
            vectors = self.heads(self.backbone.encoder.stages[3](pooled).mean((2, 3)))
            found |= {(images[row], region): vector for (row, region), vector in zip(keys, vectors, strict=True)}
        return found

    def heads(self, vectors: Tensor) -> Tensor:
        vectors = self.projector(vectors)
        return self.predictor(vectors) if hasattr(self, "predictor") else vectors


Boxes = dict[int, Tensor]  # by number of the region


def read(batches: list[RegionBatch], name: str) -> Iterator[tuple[list[int], Tensor, list[Boxes]]]:
    """Of each batch that has the view: which images it shows, their normalised pixels, and the boxes of each."""
    for batch in batches:
        view = batch.views[name]
        if len(images := images_of(batch, name)):
            boxes = [
                {region: box for region, (box, real) in enumerate(zip(boxes, valid, strict=True)) if real}
                for boxes, valid in zip(view.boxes, view.valid_regions, strict=True)
            ]
            yield images, (view.pixel_values.double() / 255 - MEAN) / DEVIATION, boxes


def images_of(batch: RegionBatch, name: str) -> list[int]:
    """Which images of the data set a view shows."""
    rows = batch.views[name].rows
    return batch.indices if rows is None else [batch.indices[row] for row in rows]


def pool(feature_map: Tensor, box: Tensor) -> Tensor:
    """RoIAlign with a bin for each cell of the map's side, as in SoCo: one bilinear sample in the middle of each."""
    side = feature_map.shape[-1]
    x1, y1, x2, y2 = box.double().tolist()
    middles = [(step + 0.5) / side for step in range(side)]
    places = [[(x1 + (x2 - x1) * u, y1 + (y2 - y1) * v) for u in middles] for v in middles]
    grid = 2 * torch.tensor([places], dtype=torch.float64) - 1
    return F.grid_sample(feature_map[None], grid, align_corners=False, padding_mode="border")[0]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("name", ARMS)
def test_a_step_descends_the_loss_of_the_literature(
    build: Build, monkeypatch: pytest.MonkeyPatch, name: str, micro_batches: int
):
    """Loss and gradients of the trainer's step, on batches of the trainer's loader.

    In one piece the batch norms take part; in two their statistics are fixed, which split batches do not share.
    """
    arm = build(name, **RAGGED, depositioning_weight=0.3, teacher_momentum=1.0, accumulation_steps=micro_batches)
    run, net = arm.run, arm.run.net
    shake(net)
    net.double()
    config = net.config.backbone_config
    student = PlainNetwork(
        config, {"backbone": net.decodepos.backbone, "projector": net.projector, "predictor": net.predictor}
    )
    teacher = PlainNetwork(
        config, {"backbone": net.teacher["decodepos"].backbone, "projector": net.teacher["projector"]}
    )
    if micro_batches > 1:
        for network in (net, student, teacher):
            freeze_statistics(network)
    batches = list(itertools.islice(arm.loader, micro_batches))
    assert sum(len(batch.indices) for batch in batches) == 6

    level = PlainNetwork.images if name == "byol_image" else PlainNetwork.regions
    teach = torch.no_grad()(functools.partial(level, teacher, batches))
    expected = LITERATURE[name](functools.cache(functools.partial(level, student, batches)), teach, 0.3)
    expected.backward()

    step_in_double(monkeypatch)
    gradients: dict[str, Tensor] = {}
    monkeypatch.setattr(
        run.optimizer,
        "step",
        lambda: gradients.update((n, p.grad.clone()) for n, p in net.named_parameters() if p.grad is not None),
    )
    logged = pretrain.training_step(run, batches)
    assert float(logged["loss"]) == pytest.approx(expected.item(), abs=1e-5)
    reference = {n: p.grad for n, p in student.named_parameters()}
    assert gradients.keys() == {f"decodepos.{n}" if n.startswith("backbone") else n for n in reference}
    for key, gradient in reference.items():
        ours = gradients[f"decodepos.{key}" if key.startswith("backbone") else key]
        # The step normalises pixels in float32, which turns a few ReLUs; on equal pixels 1e-6 holds.
        assert (ours - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, key


def step_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = pretrain.prepare_views

    def prepare_in_double(batch: RegionBatch, *settings: Any) -> dict[str, View]:
        return {
            name: dataclasses.replace(view, pixel_values=view.pixel_values.double(), boxes=view.boxes.double())
            for name, view in prepare(batch, *settings).items()
        }

    monkeypatch.setattr(pretrain, "prepare_views", prepare_in_double)


def test_the_batches_above_hold_every_difficulty(build: Build):
    batch = next(iter(build("both", **RAGGED).loader))
    counts, moved = batch.views["crop"].valid_regions.sum(1), batch.views["repositioned"]
    assert counts.min() < counts.max() == 4
    assert moved.rows is not None and 1 < len(moved.rows) < 6
    dropped = batch.views["crop"].valid_regions[moved.rows] & ~moved.valid_regions
    assert (dropped[:, :-1] & moved.valid_regions[:, 1:]).any(), "a region before one that stays"


# --- all else is the same


def test_views_of_the_same_name_are_the_same_bytes_in_every_arm(build: Build):
    arms = {name: build(name, **RAGGED) for name in ARMS}
    seen: dict[str, int] = {}
    for steps in itertools.islice(zip(*(arm.loader for arm in arms.values()), strict=True), 5):  # two epochs
        batches = dict(zip(arms, steps, strict=True))
        for view_name in {name for objective in ARMS.values() for name in objective.views}:
            having = {name: b.views[view_name] for name, b in batches.items() if view_name in b.views}
            first = having.get("both") or having["byol_region"]
            seen[view_name] = len(having)
            for name, view in having.items():
                assert batches[name].indices == batches["both"].indices
                assert torch.equal(view.pixel_values, first.pixel_values), (view_name, name)
                assert view.rows is first.rows is None or torch.equal(view.rows, first.rows), (view_name, name)
                if name in REGION_ARMS:
                    assert torch.equal(view.boxes, first.boxes), (view_name, name)
                    assert torch.equal(view.valid_regions, first.valid_regions), (view_name, name)
    assert seen == {
        "crop": 7, "whole": 4, "crop_small": 3, "whole_cut": 4, "crop_cut_small": 4, "repositioned": 4
    }  # fmt: skip


def test_a_cut_view_stands_where_the_view_without_cuts_stands_in_other_arms(build: Build):
    plain, cut = (build(name, flip="shared") for name in ("byol_region", "decoupling"))
    for index in range(24):
        one, other = plain.data.read_sample(0, index), cut.data.read_sample(0, index)
        for name, with_cuts in (("whole", "whole_cut"), ("crop_small", "crop_cut_small")):
            assert one.views[name].source.window == other.views[with_cuts].source.window
            np.testing.assert_array_equal(one.views[name].boxes, other.views[with_cuts].boxes)
            np.testing.assert_array_equal(one.views[name].valid, other.views[with_cuts].valid)


def test_weights_schedules_and_the_order_of_images_are_the_same_in_every_arm(build: Build):
    def settings(arm: Arm) -> list:
        schedule = []
        for step in range(arm.run.total_steps):
            at = dataclasses.replace(arm.run, step=step)
            schedule.append((at.learning_rate(), at.momentum(), at.weight_decay()))
        groups = [
            {**group, "params": [tuple(p.shape) for p in group["params"]]} for group in arm.run.optimizer.param_groups
        ]
        return [schedule, arm.batches, list(arm.batches), type(arm.run.optimizer), groups]

    def weights(arm: Arm) -> dict[str, bytes]:
        return {name: value.numpy().tobytes() for name, value in arm.run.net.state_dict().items()}

    changes = {"warmup_share": 0.3, "weight_decay": 0.01, "weight_decay_end": 0.1}
    first = build("both", **changes)
    for name in ARMS:
        arm = build(name, **changes)
        assert settings(arm) == settings(first), name
        assert weights(arm) == weights(first), name
    other_seed = build("both", **changes, seed=1)
    assert list(other_seed.batches) != list(first.batches)
    assert weights(other_seed) != weights(first)


@pytest.mark.parametrize(("arm", "without"), [("both", "decoupling"), ("depositioning", "byol_region")])
def test_an_arm_whose_term_weighs_nothing_is_the_arm_without_it(build: Build, arm: str, without: str):
    """To the last bit, after steps of the whole pipeline: no randomness and no setting differs on the side."""
    trained = []
    for name in (arm, without):
        built = build(name, depositioning_weight=0.0, **RAGGED)
        run = built.run
        for batch in itertools.islice(built.loader, 2):
            pretrain.training_step(run, [batch])
            run.step += 1
        trained.append(dict(run.net.named_parameters()))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_the_recipes_of_the_ablation_differ_in_their_objective_only():
    recipes = {path.stem: load_recipe(path).values() for path in DEFAULT_RECIPE.parent.glob("ablation_*.yaml")}
    assert {f"ablation_{name}" for name in ("byol_region", "decoupling", "depositioning", "both")} <= recipes.keys()
    for name, values in recipes.items():
        assert name == f"ablation_{values['objective']}"
    for one, other in itertools.combinations(recipes.values(), 2):
        assert {key for key in one if one[key] != other[key]} == {"objective", "output_dir"}


# --- the claims of the method, on pixels that say where they come from


class Coded:
    """A source's boxes over other pixels: red and green say where a pixel lies, blue in which image."""

    def __init__(self, source: ImageSource):
        self.source = source

    def __getattr__(self, name: str):
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def pixels(self, index: int) -> np.ndarray:
        place = np.arange(SIDE, dtype=np.uint8) * 4
        blue = np.full((SIDE, SIDE), 8 * index + 1, np.uint8)
        return np.stack([*np.broadcast_arrays(place[None], place[:, None]), blue], 2)


def shown(pixels: Tensor, images: list[int]) -> str:
    """What a batch of 8-bit pixels is a view of, judged by the pixels alone."""
    cut = (pixels == torch.tensor([124, 116, 104]).view(1, 3, 1, 1)).all(1)
    own = (pixels[:, 2] == torch.tensor([8 * image + 1 for image in images]).view(-1, 1, 1)) & ~cut
    others = ~own & ~cut
    places = [image[:2, mine] for image, mine in zip(pixels.int(), own, strict=True)]
    extent = min((place.amax(1) - place.amin(1)).min().item() for place in places)
    words = ["whole" if extent > 0.9 * 252 else "crop"]
    for word, mask in (("cut", cut), ("over another image", others)):
        everywhere = mask.flatten(1).any(1)
        assert everywhere.all() or not everywhere.any(), f"some images are {word}"
        words += [word] * bool(everywhere.all())
    return " ".join(["small"] * (pixels.shape[-1] < SIDE) + words)


@pytest.mark.parametrize(
    ("name", "student_sees", "teacher_sees"),
    [
        ("byol_image", {"small crop", "whole"}, {"whole", "crop"}),
        ("byol_region", {"small crop", "whole"}, {"whole", "crop"}),
        ("decoupling", {"small crop cut", "whole cut"}, {"whole cut", "crop"}),
        ("depositioning", {"small crop", "whole", "crop over another image"}, {"whole", "crop"}),
        ("both", {"small crop cut", "whole cut", "crop over another image"}, {"whole cut", "crop"}),
    ],
)
def test_what_either_network_sees(
    build: Build, monkeypatch: pytest.MonkeyPatch, name: str, student_sees: set[str], teacher_sees: set[str]
):
    arm = build(name, **PLAIN, crop_scale_min=0.4, crop_scale_max=0.5)
    arm.data.source = Coded(arm.data.source)
    batch = next(iter(arm.loader))
    net = arm.run.net
    seen: dict[str, list[str]] = {"student": [], "teacher": []}
    for who, model in (("student", net.decodepos), ("teacher", net.teacher["decodepos"])):

        def look(pixels: Tensor, who: str = who, go_on: Callable[[Tensor], Tensor] = model.feature_map) -> Tensor:
            bytes_ = (pixels * DEVIATION + MEAN) * 255
            seen[who].append(shown(bytes_.round().to(torch.uint8), batch.indices))
            return go_on(pixels)

        monkeypatch.setattr(model, "feature_map", look)
    pretrain.training_step(arm.run, [batch])
    for who, sights in (("student", student_sees), ("teacher", teacher_sees)):
        assert sorted(seen[who]) == sorted(sights), who


def test_region_i_shows_the_same_place_in_every_view(build: Build):
    """Also where an image has few regions, or where its mixed view lost some."""
    changes = {**PLAIN, "crop_scale_min": 1.0, "crop_aspect": 1.0, "cut_foreground": False}
    arm = build("both", **RAGGED | changes)
    arm.data.source = Coded(arm.data.source)
    arm.data.view_names = ["whole", *OBJECTIVES["both"].views]
    compared = dict.fromkeys(arm.data.view_names, 0)
    for batch in arm.loader:
        places: dict[tuple[int, int], list[int]] = {}
        for name, view in batch.views.items():
            for row, image in enumerate(images_of(batch, name)):
                for region in view.valid_regions[row].nonzero().flatten().tolist():
                    centre = view.boxes[row, region].view(2, 2).mean(0) * view.pixel_values.shape[-1]
                    *place, blue = view.pixel_values[row, :, int(centre[1]), int(centre[0])].tolist()
                    if blue == 8 * image + 1:  # else it is cut
                        expected = places.setdefault((image, region), place)
                        assert math.dist(place, expected) < 4 * 4, (name, image, region)
                        compared[name] += 1
    assert min(compared.values()) > 30


@pytest.mark.parametrize("name", REGION_ARMS)
def test_exchanging_the_regions_of_one_view_changes_the_loss_and_of_all_views_does_not(build: Build, name: str):
    arm = build(name, **RAGGED)
    net = shake(arm.run.net.eval(), 0.2)
    views = pretrain.prepare_views(next(iter(arm.loader)), torch.device("cpu"))

    @torch.no_grad()
    def loss(views: dict[str, View]) -> float:
        return net(views, objective=arm.run.objective).loss.item()

    def exchanged(view: View) -> View:
        boxes = view.boxes.clone()
        for row, valid in enumerate(view.valid_regions):
            boxes[row, valid] = boxes[row, valid].flip(0)
        return dataclasses.replace(view, boxes=boxes)

    right = loss(views)
    for changed in arm.run.objective.views:
        assert abs(loss(views | {changed: exchanged(views[changed])}) - right) > 1e-3, changed
    everywhere = {
        n: dataclasses.replace(v, boxes=v.boxes.flip(1), valid_regions=v.valid_regions.flip(1))
        for n, v in views.items()
    }
    assert loss(everywhere) == pytest.approx(right, abs=1e-5)
