"""The diagnosis on networks and features whose answer is known: `python -m benchmarks.known_cases`.

Each case says what was planted, what must be found, and how far off it may be. The table is the ruler's own ruler; the
test suite runs the same cases.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, ResNetBackbone, ResNetConfig, ViTConfig, ViTModel

from benchmarks.timing import print_table
from modeling_decodepos.diagnosis.data.exchange import draw_objects
from modeling_decodepos.diagnosis.data.probe import ProbeData, RegionImages
from modeling_decodepos.diagnosis.data.scenes import build_scene_data
from modeling_decodepos.diagnosis.measures.debias import LinearLayer, fit_layer, project_out
from modeling_decodepos.diagnosis.measures.evaluate import StageResult, evaluate
from modeling_decodepos.diagnosis.measures.norms import count_outliers
from modeling_decodepos.diagnosis.measures.objects import (
    NeighbourPairs,
    find_itself,
    measure_leak,
    name_neighbour,
    object_accuracy,
    place_or_content,
)
from modeling_decodepos.diagnosis.measures.padding import padded_with
from modeling_decodepos.diagnosis.measures.position import (
    divide_variance,
    positional_subspace,
    probe_position,
    probe_regions,
)
from modeling_decodepos.diagnosis.models.features import read_features
from modeling_decodepos.diagnosis.models.image_statistics import pixel_statistics, pool_statistics
from modeling_decodepos.diagnosis.models.load import FeatureModel, load_model
from modeling_decodepos.diagnosis.statistics.estimates import overlap, pool_seeds

SIZE_PX, IMAGES = 64, 24


@dataclass(frozen=True)
class Case:
    """Something with a known answer.

    Attributes:
        name: What was planted.
        number: Which number is looked at.
        expected: What it must be.
        tolerance: How far off it may be.
        find: Measures it.
        slow: Whether it takes more than a few seconds.
    """

    name: str
    number: str
    expected: float
    tolerance: float
    find: Callable[[], float | None]
    slow: bool = False


@functools.cache
def scenes() -> ProbeData:
    """A few small scenes, the same for all cases."""
    return build_scene_data(IMAGES, SIZE_PX, seed=0, objects=6)


def numbers_of(model: FeatureModel, measures: str) -> StageResult:
    """The last stage of a model on the scenes."""
    return evaluate(model, scenes(), measures.split(","), control=True)[0][-1]


def find(build: Callable[[], FeatureModel], measures: str, key: str) -> Callable[[], float | None]:
    """A function that measures one number of a model's last stage."""

    def call() -> float | None:
        return numbers_of(build(), measures).numbers[key].value

    return call


# ------------------------------------------------------------------------------------------------------------ networks


def small_resnet(seed: int = 0) -> PreTrainedModel:
    """A small ResNet with random weights."""
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic")
    config.out_features = ["stage1", "stage2", "stage3"]
    return ResNetBackbone(config).eval()


def small_vit(position: float, seed: int = 0) -> PreTrainedModel:
    """A small ViT with random weights and position embeddings of a given deviation; 0 takes them away."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96, image_size=SIZE_PX,
        patch_size=8,
    )  # fmt: skip
    model = ViTModel(config).eval()
    with torch.no_grad():
        embedding: Tensor = model.embeddings.position_embeddings
        embedding.copy_(torch.randn_like(embedding) * position)
    return model


def own_pixels(pixels: Tensor) -> Tensor:
    """(B, 14, 8, 8): colours and edges of each cell, and nothing from elsewhere."""
    return pool_statistics(pixel_statistics(pixels), (8, 8))


def place_code(grid: int = 8) -> Tensor:
    """(6, h, w) of mean 0 and mean squared length 1: x, y and waves of them."""
    steps = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    code = torch.stack([x, y, *(torch.cos(math.pi * k * axis) for k in (1, 2) for axis in (x, y))])
    code = code - code.mean((1, 2), keepdim=True)
    return code / code.square().sum(0).mean().sqrt()


def with_place(share: float) -> FeatureModel:
    """Each cell's own pixels, and the place in further channels, so large that it makes `share` of all variance."""
    seen = own_pixels(load_model(own_pixels, size_px=SIZE_PX).prepare(scenes().queries.pixels))
    variance = float((seen - seen.mean((0, 2, 3), keepdim=True)).square().sum(1).mean())
    # What pictures have in common at each place is place as well; scenes have a little of it.
    size = math.sqrt(variance * share / (1 - share)) if share < 1 else 1.0
    keep = float(share < 1)

    def planted(pixels: Tensor) -> Tensor:
        code = place_code().to(pixels).expand(len(pixels), -1, -1, -1)
        return torch.cat([keep * own_pixels(pixels), size * code], 1)

    return load_model(planted, size_px=SIZE_PX)


def whole_picture(pixels: Tensor) -> Tensor:
    """(B, 3, 8, 8): the mean colour of the whole picture in every cell."""
    return pixels.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8)


def constant(pixels: Tensor) -> Tensor:
    """(B, 16, 8, 8) ones: a collapsed network."""
    return torch.ones(len(pixels), 16, 8, 8)


def one_line(pixels: Tensor) -> Tensor:
    """(B, 16, 8, 8) that differ in length only: collapsed to a line."""
    return F.adaptive_avg_pool2d(pixels.mean(1, keepdim=True), 8).expand(-1, 16, -1, -1)


def place_only(pixels: Tensor) -> Tensor:
    """(B, 6, 8, 8): the place, whatever is shown."""
    return place_code().expand(len(pixels), -1, -1, -1)


def circular(module: nn.Module) -> FeatureModel:
    """A CNN with circular padding."""
    model = load_model(module, size_px=SIZE_PX)
    plain = model.maps

    def maps(pixels: Tensor) -> list[Tensor]:
        with padded_with(module, "circular"):
            return list(plain(pixels))

    model.maps = maps
    return model


def turned(model: FeatureModel, scale: float = 250.0) -> FeatureModel:
    """The same features, all turned by one random rotation and scaled."""
    plain = model.maps

    def maps(pixels: Tensor) -> list[Tensor]:
        found = []
        for part in plain(pixels):
            generator = torch.Generator().manual_seed(part.shape[1])
            rotation = torch.linalg.qr(torch.randn(part.shape[1], part.shape[1], generator=generator))[0]
            found.append(scale * torch.einsum("oc,bchw->bohw", rotation, part))
        return found

    return FeatureModel(model.name, model.stages, maps, model.size_px)


# ------------------------------------------------------------------------------------------------------------ features


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted_share(share: float) -> float | None:
    """Share of place found in cells of noise and a place code with known shares of the variance."""
    content = noise(60, 64, 24) / math.sqrt(24)
    code = F.pad(place_code().flatten(1).T, (0, 18))
    cells = math.sqrt(1 - share) * content + math.sqrt(share) * code
    return divide_variance(cells).place.value


def planted_leak(share: float) -> float | None:
    """Leak found in features of content and surroundings, orthogonal, with known shares of the squared length."""
    content, other, around, elsewhere = (F.normalize(noise(400, 256, seed=k), dim=1) for k in range(4))

    def feature(inside: Tensor, outside: Tensor) -> Tensor:
        return 5.0 + torch.cat([math.sqrt(1 - share) * inside, math.sqrt(share) * outside], 1)

    rows = feature(content, around), feature(content, elsewhere), feature(other, around)
    return measure_leak(*rows)["context_leak"].value


def finds_itself(share: float) -> float | None:
    """How often an object in other surroundings is nearest to itself, from features as in `planted_leak`."""
    content, around, elsewhere = (F.normalize(noise(200, 256, seed=k), dim=1) for k in range(3))

    def feature(outside: Tensor) -> Tensor:
        return 5.0 + torch.cat([math.sqrt(1 - share) * content, math.sqrt(share) * outside], 1)

    return find_itself(feature(around), feature(elsewhere), torch.arange(200)).value


def planted_position(share: float) -> float | None:
    """R² found where the features hold x and y under noise; by theory 1 - noise / all."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    place = torch.stack([x.flatten(), y.flatten()], 1)
    place = (place - place.mean(0)) / place.std(0, correction=0)
    cells = math.sqrt(share) * place + math.sqrt(1 - share) * noise(80, 64, 2)
    return probe_position(cells[:40], cells[40:], (8, 8), rows=2560).value


def planted_region_position(share: float) -> float | None:
    """The same with regions, one of each of 400 pictures."""
    place = noise(400, 2, seed=1)
    return probe_regions(math.sqrt(share) * place + math.sqrt(1 - share) * noise(400, 2, seed=2), place).value


def planted_neighbour(known: float) -> float | None:
    """Advantage found where the features name the neighbour's group in a share of regions, and nothing in the rest."""
    generator = np.random.default_rng(0)
    box = torch.tensor([[0.0, 0.0, 0.3, 0.3], [0.4, 0.0, 0.7, 0.3]])

    def side(seed: int) -> tuple[Tensor, NeighbourPairs]:
        labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, 600))
        images = RegionImages(torch.zeros(300, 3, 2, 2, dtype=torch.uint8), [box] * 300, labels)
        beside = labels.view(300, 2).flip(1).flatten()
        told = torch.from_numpy(generator.random(600) < known)
        rows = F.one_hot(beside, 4).float() * told[:, None]
        return rows + 0.01 * noise(600, 4, seed=seed), NeighbourPairs(images, torch.arange(4))

    gallery, queries = side(1), side(2)
    return name_neighbour(*gallery, *queries)["neighbour_advantage"].value


def planted_outliers(share: float) -> float | None:
    """Share of outliers found where that share of cells is twenty times as long as the others."""
    norms = 1 + 0.1 * noise(40, 10, 10).abs()
    norms.view(40, -1)[:, : round(100 * share)] *= 20
    return count_outliers(norms)["norm_outliers"].value


@dataclass(frozen=True)
class Mixture:
    """Features of content, and of surroundings and place mixed, along directions that are not at right angles."""

    views: Tensor  # (E, V, C) of objects: as they are, twice in other surroundings, once elsewhere
    cells: Tensor  # (I, L, C)
    exchanged: tuple[Tensor, Tensor, Tensor]  # as they are, with other surroundings, with other content
    moved: Tensor  # (E, C) of other objects
    centres: Tensor  # (E, 2) of the moved
    labels: Tensor  # (E,)


@functools.cache
def mixture(objects: int = 240, channels: int = 32) -> Mixture:
    """Content in 12 directions, surroundings in 6, and place in 6, of which 4 are those of the surroundings."""
    directions = F.normalize(noise(20, channels, seed=40), dim=1)
    inside, around = directions[:12], directions[12:18]
    where = torch.cat([around[:4], directions[18:]])
    labels = torch.arange(2 * objects) % 12
    content = 0.6 * noise(12, 12, seed=41)[labels] + 0.25 * noise(2 * objects, 12, seed=42)
    code = place_code().flatten(1).T  # 64 places

    def show(what: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        places = torch.randint(64, (len(what),), generator=torch.Generator().manual_seed(seed))
        return what @ inside + noise(len(what), 6, seed=seed) @ around + 2 * code[places] @ where, places

    known, asked = content[:objects], content[objects:]
    views = torch.stack([show(known, 50 + view)[0] for view in range(4)], 1)
    stuff = torch.cat([noise(60 * 64, 12, seed=60) / 2, noise(60 * 64, 6, seed=61)], 1) @ directions[:18]
    cells = stuff.view(60, 64, channels) + 2 * code @ where
    here, other = 2 * code[9] @ where, asked.roll(1, 0)
    first, second = (noise(objects, 6, seed=seed) @ around for seed in (70, 71))
    moved, places = show(asked, 80)
    exchanged = asked @ inside + first + here, asked @ inside + second + here, other @ inside + first + here
    return Mixture(views, cells, exchanged, moved, torch.stack([places % 8, places // 8], 1) / 8, labels[:objects])


@functools.cache
def layer_against_mixture(fit: str) -> LinearLayer:
    """The remedy of the mixture: whole, its projection alone, or fitted on views that are not of one object."""
    planted = mixture()
    projection = project_out(positional_subspace(planted.cells), 6)
    views = planted.views
    if fit == "shuffled":
        views = torch.stack([part.roll(shift, 0) for shift, part in enumerate(views.unbind(1))], 1)
    return projection if fit == "projection" else fit_layer(views, projection)[0]


def unmixed(fit: str, number: str) -> float | None:
    """Leak, R² of the place or gained object k-NN behind a layer against the mixture."""
    planted, layer = mixture(), layer_against_mixture(fit)
    if number == "leak":
        return measure_leak(*(layer(part.double()) for part in planted.exchanged))["context_leak"].value
    if number == "place":
        return probe_regions(layer(planted.moved.double()), planted.centres).value
    sides = planted.views[:, 0].double(), planted.moved.double()
    before, after = (
        object_accuracy(known, planted.labels, asked, planted.labels, torch.arange(len(asked)))[0].value
        for known, asked in (sides, tuple(map(layer, sides)))
    )
    return None if before is None or after is None else after - before


def whole_picture_outside() -> float:
    """What must lie outside the boxes if all pixels count alike: one minus the mean area."""
    swaps = scenes().swaps
    assert swaps is not None
    boxes = swaps.boxes[:16]
    return float(1 - (boxes[:, 2:] - boxes[:, :2]).prod(1).mean())


def grid_of(content: float, place: float) -> float | None:
    """Place against content, from features (9, 9, D) with known sizes of either."""
    objects, places = noise(9, 1, 32, seed=1), noise(1, 9, 32, seed=2)
    return place_or_content(content * objects + place * places).value


def verdict_is(call: Callable[[Tensor], Tensor], wanted: str) -> Callable[[], float]:
    """1 if a network gets the wanted verdict and no number that is not one."""

    def check() -> float:
        result = numbers_of(load_model(call, size_px=SIZE_PX), "position,retrieval,subspace,context,object_knn")
        finite = all(value.value is None or math.isfinite(value.value) for value in result.numbers.values())
        return float(result.verdict == wanted and finite)

    return check


def greatest_change() -> float:
    """The most that any number changes when features are rotated and scaled."""
    measures = "position,retrieval,border,subspace,context,neighbour,object_knn,norms,influence"
    model = load_model(small_resnet(), size_px=SIZE_PX)
    first, second = numbers_of(model, measures), numbers_of(turned(model), measures)
    changes = [abs((value.value or 0.0) - (second.numbers[key].value or 0.0)) for key, value in first.numbers.items()]
    return max(changes)


def blank_is_the_same_everywhere() -> float:
    """Largest deviation on a blank page under circular padding, relative to the feature's length."""
    page = torch.full((1, 3, SIZE_PX, SIZE_PX), 200, dtype=torch.uint8)
    cells = read_features(circular(small_resnet()), page, cells=True)[-1].cells
    return float((cells - cells.mean(1)).norm(dim=2).max() / cells.norm(dim=2).mean())


# ------------------------------------------------------------------------------------------- content and surroundings


def coloured_pictures() -> ProbeData:
    """Objects of four colours, their classes, on pages of the next class's colour: whoever goes by the page is wrong.

    Pictures follow each other class by class, so that the next one's surroundings are another class's as well.
    """
    rng = np.random.default_rng(0)
    colours = np.array([[220, 40, 40], [40, 200, 60], [50, 70, 220], [220, 200, 50]])

    def side(count: int) -> RegionImages:
        labels = torch.arange(count) % 4
        pixels = np.empty((count, 3, SIZE_PX, SIZE_PX), np.uint8)
        boxes = []
        for picture, label in zip(pixels, labels.tolist(), strict=True):
            around, inside = (colours[(label + k) % 4] + rng.integers(-25, 26, 3) for k in (1, 0))
            left, top = rng.integers(0, SIZE_PX // 2 + 1, 2)
            picture[:] = around[:, None, None].clip(0, 255)
            picture[:, top : top + SIZE_PX // 2, left : left + SIZE_PX // 2] = inside[:, None, None].clip(0, 255)
            corner = torch.tensor([left, top], dtype=torch.float32) / SIZE_PX
            boxes.append(torch.cat([corner, corner + 0.5])[None])
        return RegionImages(torch.from_numpy(pixels), boxes, labels)

    gallery, queries = side(40), side(24)
    return ProbeData("colours", SIZE_PX, 0, gallery, queries, objects=draw_objects(gallery, queries, rng))


def object_and_page(surroundings: float) -> Callable[[Tensor], Tensor]:
    """A network: of every pixel its own colour, and, times `surroundings`, the colour of most of its picture."""

    def maps(pixels: Tensor) -> Tensor:
        most = pixels.flatten(2).median(2).values[..., None, None].expand_as(pixels)
        return torch.cat([pixels, surroundings * most], 1)

    return maps


def told_by_colour(surroundings: float, key: str) -> Callable[[], float | None]:
    """A function that measures one number of a mixture on the coloured pictures."""

    def call() -> float | None:
        model = load_model(object_and_page(surroundings), size_px=SIZE_PX)
        measures = ("object_knn", "same_object")
        return evaluate(model, coloured_pictures(), measures, control=True)[0][-1].numbers[key].value

    return call


# ----------------------------------------------------------------------------------------------- random against random

DRAWS, CONTROLS = 20, 3


def one_stage(seed: int) -> FeatureModel:
    """A small ResNet with random weights, read after its last stage only."""
    module = small_resnet(seed)
    return load_model(lambda pixels: module(pixels).feature_maps[-1], size_px=SIZE_PX)


def random_against_random() -> float:
    """How many of 20 random networks, each beside three others, show no clear difference in a number; the least of all
    numbers. No network is seen twice.
    """
    measures = "position,retrieval,border,subspace,context,neighbour,object_knn,same_object,norms"
    numbers = [numbers_of(one_stage(seed), measures).numbers for seed in range(DRAWS * (1 + CONTROLS))]
    alike = []
    for key in (key for key, value in numbers[0].items() if value.low is not None):
        column = [found[key] for found in numbers]
        controls = (column[start : start + CONTROLS] for start in range(DRAWS, len(column), CONTROLS))
        alike.append(
            sum(
                overlap(one, pool_seeds(others, another=True))
                for one, others in zip(column[:DRAWS], controls, strict=True)
            )
        )
    return float(min(alike))


def _resnet() -> FeatureModel:
    return load_model(small_resnet(), size_px=SIZE_PX)


CASES = (
    Case("random CNN, zero padding: place is there", "position_blank", 0.65, 0.35,
         find(_resnet, "position", "position_blank")),
    Case("the same weights, circular padding", "position_blank", 0.0, 0.02,
         find(lambda: circular(small_resnet()), "position", "position_blank")),
    Case("the same: drift on a blank page", "relative deviation", 0.0, 1e-4, blank_is_the_same_everywhere),
    Case("ViT with position embeddings", "position_blank", 0.75, 0.25,
         find(lambda: load_model(small_vit(0.5), size_px=SIZE_PX), "position", "position_blank")),
    Case("ViT without", "position_blank", 0.0, 0.02,
         find(lambda: load_model(small_vit(0.0), size_px=SIZE_PX), "position", "position_blank")),
    Case("each cell's own pixels only", "position_blank", 0.0, 0.02,
         find(lambda: load_model(own_pixels, size_px=SIZE_PX), "position", "position_blank")),
    *(Case(f"place is {share:.0%} of the variance (features)", "position_share", share, 0.02,
           functools.partial(planted_share, share)) for share in (0.0, 0.1, 0.5, 0.9)),
    *(Case(f"place is {share:.0%} of the variance (network)", "position_share", share, 0.06,
           find(functools.partial(with_place, share), "subspace", "position_share")) for share in (0.25, 0.75)),
    *(Case(f"x and y are {share:.0%} of the variance, the rest noise", "position R²", share, 0.04,
           functools.partial(planted_position, share)) for share in (0.0, 0.25, 0.75, 1.0)),
    *(Case(f"the same in regions: {share:.0%}", "position_regions", share, 0.06,
           functools.partial(planted_region_position, share)) for share in (0.0, 0.25, 0.75, 1.0)),
    Case("place and nothing else, objects moved at random", "position_regions", 1.0, 0.05,
         find(lambda: load_model(place_only, size_px=SIZE_PX), "position", "position_regions")),
    Case("own pixels and nothing else, objects moved at random", "position_regions", 0.0, 0.1,
         find(lambda: load_model(own_pixels, size_px=SIZE_PX), "position", "position_regions")),
    *(Case(f"surroundings are {share:.0%} of the feature", "context_leak", share, 0.02,
           functools.partial(planted_leak, share)) for share in (0.0, 0.2, 0.5, 0.8, 1.0)),
    *(Case(f"{known:.0%} of regions name their neighbour", "neighbour_advantage", known, 0.07,
           functools.partial(planted_neighbour, known)) for known in (0.0, 0.5, 1.0)),
    *(Case(f"{share:.0%} of tokens are 20 times as long", "norm_outliers", share, 0.001,
           functools.partial(planted_outliers, share)) for share in (0.0, 0.02, 0.1)),
    Case("all pixels count alike: one minus the boxes' area", "influence_outside", whole_picture_outside(), 0.01,
         find(lambda: load_model(whole_picture, size_px=SIZE_PX), "influence", "influence_outside")),
    Case("content much larger than place", "content_wins", 1.0, 0.01, functools.partial(grid_of, 1.0, 0.1)),
    Case("place much larger than content", "content_wins", 0.0, 0.01, functools.partial(grid_of, 0.1, 1.0)),
    Case("content and place alike", "content_wins", 0.5, 0.2, functools.partial(grid_of, 1.0, 1.0)),
    *(Case(f"colour of the object and {share:g} times the page's: {what}", key, expected, 0.05,
           told_by_colour(share, key))
      for share, what, key, expected in (
          (0.0, "as it is", "knn_clean", 1.0),
          (0.0, "before another page", "knn_recontextualised", 1.0),
          (0.0, "alone", "knn_alone", 1.0),
          (0.0, "alone, itself", "same_alone", 1.0),
          (10.0, "as it is", "knn_clean", 1.0),
          (10.0, "before another page", "knn_recontextualised", 0.0),
          (10.0, "alone", "knn_alone", 1.0),
          (10.0, "alone, itself", "same_alone", 0.0))),
    *(Case(f"surroundings are {share:.0%} of the feature, same object", "same_recontextualised", expected, 0.02,
           functools.partial(finds_itself, share)) for share, expected in ((0.0, 1.0), (1.0, 1 / 200))),
    Case("random against random: of 20 draws", "without a difference", 20.0, 3.0, random_against_random, slow=True),
    Case("content, surroundings and place mixed: behind the layer", "context_leak", 0.0, 0.02,
         functools.partial(unmixed, "whole", "leak")),
    Case("the same", "position_regions", 0.0, 0.02, functools.partial(unmixed, "whole", "place")),
    Case("the same: gained", "knn_repositioned", 0.36, 0.05, functools.partial(unmixed, "whole", "knn")),
    Case("behind the positional projection alone", "context_leak", 0.24, 0.05,
         functools.partial(unmixed, "projection", "leak")),
    Case("behind a layer fitted on shuffled objects", "context_leak", 0.17, 0.05,
         functools.partial(unmixed, "shuffled", "leak")),
    Case("constant network", "verdict collapsed", 1.0, 0.0, verdict_is(constant, "collapsed")),
    Case("all features on one line", "verdict collapsed", 1.0, 0.0, verdict_is(one_line, "collapsed")),
    Case("place and nothing else", "verdict content-blind", 1.0, 0.0, verdict_is(place_only, "content-blind")),
    Case("features rotated and scaled by 250", "greatest change", 0.0, 0.01, greatest_change),
)  # fmt: skip


def main() -> None:
    """Print the table of known cases; fail if one is not recovered."""
    rows, missed = [], 0
    for case in CASES:
        found = case.find()
        right = found is not None and abs(found - case.expected) <= case.tolerance
        missed += not right
        shown = "nothing" if found is None else f"{found:.4f}"
        wanted = f"{case.expected:.3f} ± {case.tolerance:g}"
        rows.append((case.name, case.number, wanted, shown, "ok" if right else "MISSED"))
    print_table(("what was planted", "number", "expected", "found", ""), rows)
    if missed:
        raise SystemExit(f"{missed} of {len(CASES)} known cases are missed.")


if __name__ == "__main__":
    main()
