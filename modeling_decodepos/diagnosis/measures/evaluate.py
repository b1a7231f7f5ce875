"""All measures of one network on one set of probe data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.exchange import ALONE_SIDE, show_alone
from ..data.probe import ObjectProbe, ProbeData, RegionImages, blank_pictures, noise_pictures
from ..models.features import StageFeatures, read_features, read_whole
from ..models.load import FeatureModel
from ..models.networks import padded_convolutions
from ..statistics.estimates import Estimate, difference, nothing, pool_seeds
from ..statistics.knn import knn_predict
from .debias import COUNTS, LinearLayer, RemovalPoint
from .influence import measure_influence
from .metrics import BY_KEY
from .norms import count_outliers
from .objects import (
    NEIGHBOURS,
    NeighbourPairs,
    find_itself,
    measure_leak,
    naive_accuracy,
    name_neighbour,
    object_accuracy,
    place_or_content,
)
from .padding import PADDING_MODES, padded_with
from .position import (
    Subspace,
    border_profile,
    divide_variance,
    positional_subspace,
    probe_position,
    probe_regions,
)

BLANKS = 12  # colours of blank pages
INFLUENCES = 16  # pictures whose gradient is taken
PADDED = 24  # pictures seen with every padding mode
_ONE_SIZE = "the network takes pictures of one size only"

_EXCHANGING = frozenset({"context", "debias"})  # measures that look at the swaps' exchanged regions
_MOVING = frozenset({"position", "debias"})  # and at moved ones
_RECOGNISING = frozenset({"object_knn", "same_object", "debias"})  # and at the objects to be recognised


@dataclass
class StageResult:
    """What was measured at one stage."""

    name: str
    grid: tuple[int, int] = (0, 0)  # h and w of the cells that were looked at
    channels: int = 0
    verdict: str = "ok"  # or a key of `report.verdicts.EMPTY_STAGES`
    numbers: dict[str, Estimate] = field(default_factory=dict)  # by key of `metrics.METRICS`, and a few beside
    border: list[Estimate] = field(default_factory=list)  # outermost ring first
    energy: list[float] = field(default_factory=list)  # share of each positional direction, cumulative
    removal: list[RemovalPoint] = field(default_factory=list)  # on the gallery
    padding: dict[str, dict[str, Estimate]] = field(default_factory=dict)  # two numbers under each padding mode
    subspace: Subspace | None = None  # the positional directions themselves; not part of report.json

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON takes it."""
        return {
            "stage": self.name,
            "grid": list(self.grid),
            "channels": self.channels,
            "verdict": self.verdict,
            "numbers": {key: value.to_dict() for key, value in self.numbers.items()},
            "border_profile": [ring.to_dict() for ring in self.border],
            "subspace_energy": [round(share, 4) for share in self.energy],
            "removal": [vars(point) for point in self.removal],
            "padding": {
                mode: {key: value.to_dict() for key, value in found.items()} for mode, found in self.padding.items()
            },
        }


@dataclass
class ProbeFeatures:
    """Features of everything that a network was shown; pictures for the report are drawn from it."""

    gallery: list[StageFeatures]
    queries: list[StageFeatures]
    surroundings: list[StageFeatures] = field(default_factory=list)
    content: list[StageFeatures] = field(default_factory=list)
    moved: list[StageFeatures] = field(default_factory=list)
    known: list[StageFeatures] = field(default_factory=list)  # objects of known classes
    probed: list[StageFeatures] = field(default_factory=list)  # the objects to be recognised
    probed_surroundings: list[StageFeatures] = field(default_factory=list)
    probed_moved: list[StageFeatures] = field(default_factory=list)
    known_alone: list[StageFeatures] = field(default_factory=list)
    probed_alone: list[StageFeatures] = field(default_factory=list)
    placed: list[StageFeatures] = field(default_factory=list)
    noise: list[StageFeatures] = field(default_factory=list)
    blank: list[StageFeatures] = field(default_factory=list)
    gradients: Tensor = field(default_factory=lambda: torch.zeros(0))


def skipped_measures(data: ProbeData) -> dict[str, str]:
    """Measures that the data does not allow, and why."""
    skipped: dict[str, str] = {}
    probed = data.probed
    if reason := _no_classes(data.gallery, data.queries):
        skipped |= dict.fromkeys(("object_knn", "neighbour", "debias"), reason)
    if probed is not None and (reason := _no_classes(probed.gallery, probed.queries)):
        skipped |= dict.fromkeys(("object_knn", "debias"), reason)
    return skipped | data.skipped


def _no_classes(gallery: RegionImages, queries: RegionImages) -> str:
    """Why classes of one side cannot be told by the other's; empty if they can."""
    if gallery.labels is None or queries.labels is None:
        return "the data has no classes"
    if len(gallery.labels) < 2 or len(queries.labels) < 1:
        return "there are too few regions of at least 10 % of the view on both sides"
    if len(gallery.labels.unique()) < 2:
        return "all regions are of one class: nothing to tell apart"
    if len(gallery.labels) < NEIGHBOURS:
        count = len(gallery.labels)
        return f"the gallery has {count} objects, fewer than the k = {NEIGHBOURS} neighbours that vote"
    return ""


def evaluate(
    model: FeatureModel,
    data: ProbeData,
    measures: Sequence[str],
    *,
    control: bool = False,
) -> tuple[list[StageResult], ProbeFeatures]:
    """Results of every stage, and the features they come from.

    A `control` is spared what concerns the model only: other paddings, and the removal curve.
    """
    skipped = skipped_measures(data)
    wanted = [name for name in measures if name not in skipped and not (control and name == "debias")]
    seen = _read_probe(model, data, wanted)
    pairs = None
    if "neighbour" in wanted and data.groups is not None:
        pairs = NeighbourPairs(data.gallery, data.groups), NeighbourPairs(data.queries, data.groups)
    results = []
    for number, name in enumerate(model.stages):
        queries = seen.queries[number]
        result = StageResult(name, queries.grid, queries.cells.shape[2])
        variance = divide_variance(queries.cells, seed=data.seed)
        result.verdict = variance.verdict
        result.subspace = positional_subspace(seen.gallery[number].cells)
        numbers = result.numbers
        if "position" in wanted:
            numbers |= _position_numbers(seen, number, data)
        if "subspace" in wanted:
            result.energy = result.subspace.energy.cumsum(0).tolist()
            numbers["position_share"] = variance.place
            numbers["subspace_size"] = Estimate(float(result.subspace.size), count=len(data.gallery))
        if "border" in wanted:
            result.border = border_profile(queries.cells, queries.grid, seed=data.seed)
            numbers["border_contrast"] = _first(result.border)
        numbers |= _object_numbers(seen, number, data, wanted)
        if pairs is not None:
            numbers |= name_neighbour(
                seen.gallery[number].regions, pairs[0], queries.regions, pairs[1], seed=data.seed
            )
        if "norms" in wanted:
            numbers |= count_outliers(queries.norms, seed=data.seed)
        if not control and ("subspace" in wanted or "debias" in wanted):
            result.removal = removal_curve(seen.gallery[number], result.subspace, data)
        results.append(result)
    if "influence" in wanted and data.swaps is not None:
        chosen = slice(0, INFLUENCES)
        pixels = data.queries.pixels[data.swaps.images[chosen]]
        shares, seen.gradients = measure_influence(model, pixels, data.swaps.boxes[chosen], seed=data.seed)
        for result, share in zip(results, shares, strict=True):
            result.numbers["influence_outside"] = share
    if "border" in wanted and not control and model.is_cnn:
        _exchange_padding(model, data, results, seen)
    return results, seen


def _read_probe(model: FeatureModel, data: ProbeData, wanted: Sequence[str]) -> ProbeFeatures:
    seen = ProbeFeatures(
        read_features(model, data.gallery.pixels, data.gallery.boxes, cells=True),
        read_features(model, data.queries.pixels, data.queries.boxes, cells=True),
    )
    swaps, recognising = data.swaps, _RECOGNISING.intersection(wanted)
    shared = recognising and data.objects is None
    if swaps is not None and (_EXCHANGING.intersection(wanted) or shared):
        here = list(swaps.boxes[:, None])
        seen.surroundings = read_features(model, swaps.other_surroundings, here)
        seen.content = read_features(model, swaps.other_content, here)
    if swaps is not None and (_MOVING.intersection(wanted) or shared):
        seen.moved = read_features(model, swaps.moved, list(swaps.moved_boxes[:, None]))
    if recognising:
        _read_objects(seen, model, data)
    if data.grid is not None and "retrieval" in wanted:
        boxes = list(data.grid.boxes.flatten(0, 1)[:, None])
        seen.placed = read_features(model, data.grid.pixels.flatten(0, 1), boxes)
    if "position" in wanted:
        noise = noise_pictures(max(4, len(data.queries) // 2), data.size_px, data.seed)
        seen.noise = read_features(model, noise, cells=True)
        blank = blank_pictures(BLANKS, data.size_px, data.seed)
        seen.blank = read_features(model, blank, cells=True)
    return seen


def _read_objects(seen: ProbeFeatures, model: FeatureModel, data: ProbeData) -> None:
    """Adds the features of the objects to be recognised; where they are those of the swaps, they are read already."""
    objects = data.probed
    if objects is None:
        return
    if data.objects is None and data.swaps is not None:
        rows, none = data.swaps.regions, torch.zeros(0)
        seen.known, seen.probed_surroundings, seen.probed_moved = seen.gallery, seen.surroundings, seen.moved
        seen.probed = [StageFeatures(part.regions[rows], none, part.grid, none) for part in seen.queries]
    else:
        here = list(objects.queries.every_box[:, None])
        seen.known = read_features(model, objects.gallery.pixels, objects.gallery.boxes)
        seen.probed = read_features(model, objects.queries.pixels, objects.queries.boxes)
        seen.probed_surroundings = read_features(model, objects.other_surroundings, here)
        seen.probed_moved = read_features(model, objects.moved, list(objects.moved_boxes[:, None]))
    small = model.at(round(ALONE_SIDE * model.size_px))
    try:
        seen.probed_alone = read_whole(small, _each_alone(objects.queries, small.size_px))
        if objects.gallery.labels is not None:
            seen.known_alone = read_whole(small, _each_alone(objects.gallery, small.size_px))
    except (RuntimeError, ValueError):  # it takes pictures of one size only; what falls away says so
        seen.known_alone = seen.probed_alone = []


def _each_alone(images: RegionImages, side: int) -> Tensor:
    """(N, 3, side, side): every region by itself."""
    boxes = zip(images.owners.tolist(), images.every_box.numpy(), strict=True)
    return torch.stack([show_alone(images.pixels[owner], box, side) for owner, box in boxes])


def _position_numbers(seen: ProbeFeatures, number: int, data: ProbeData) -> dict[str, Estimate]:
    queries, seed = seen.queries[number], data.seed
    found = {"position_natural": probe_position(seen.gallery[number].cells, queries.cells, queries.grid, seed=seed)}
    if not seen.blank:
        return found
    found |= {f"position_{name}": probe_halves(getattr(seen, name)[number], seed) for name in ("noise", "blank")}
    if seen.moved and data.swaps is not None:
        boxes = data.swaps.moved_boxes
        found["position_regions"] = probe_regions(
            seen.moved[number].regions, (boxes[:, :2] + boxes[:, 2:]) / 2, seed=seed
        )
    return found


def probe_halves(features: StageFeatures, seed: int) -> Estimate:
    """The position probe, learned on the first half of pictures and tested on the second."""
    half = len(features.cells) // 2
    return probe_position(features.cells[:half], features.cells[half:], features.grid, seed=seed)


def _object_numbers(seen: ProbeFeatures, number: int, data: ProbeData, wanted: Sequence[str]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    if seen.placed and data.grid is not None:
        placed = seen.placed[number].regions
        found["content_wins"] = place_or_content(placed.view(*data.grid.pixels.shape[:2], -1), seed=data.seed)
    if seen.surroundings and data.swaps is not None and "context" in wanted:
        regions = seen.queries[number].regions[data.swaps.regions]
        found |= measure_leak(regions, seen.surroundings[number].regions, seen.content[number].regions, seed=data.seed)
    if seen.probed and data.probed is not None:
        found |= _recognition(seen, number, data.probed, wanted, data.seed)
    return found


def _recognition(
    seen: ProbeFeatures, number: int, objects: ObjectProbe, wanted: Sequence[str], seed: int
) -> dict[str, Estimate]:
    """Whether objects are told by their neighbours' class, and whether they find themselves."""
    found: dict[str, Estimate] = {}
    owners, labels, known = objects.queries.owners, objects.queries.labels, objects.gallery.labels
    clean, surroundings = seen.probed[number].regions, seen.probed_surroundings[number].regions
    moved = seen.probed_moved[number].regions
    if "same_object" in wanted:
        found["same_chance"] = Estimate(1 / len(clean), count=len(clean))
        found["same_recontextualised"] = find_itself(clean, surroundings, owners, seed=seed)
        found["same_repositioned"] = find_itself(clean, moved, owners, seed=seed)
        found["same_alone"] = nothing(_ONE_SIZE)
        if seen.probed_alone:
            found["same_alone"] = find_itself(clean, seen.probed_alone[number].regions, owners, seed=seed)
    if "object_knn" not in wanted or labels is None or known is None:
        return found
    found["knn_prior"] = naive_accuracy(known, labels, owners, seed=seed)
    found["knn_prior_class_mean"] = Estimate(1 / len(labels.unique()), count=len(labels))
    gallery = seen.known[number].regions
    versions = {
        "clean": (gallery, clean),
        "recontextualised": (gallery, surroundings),
        "repositioned": (gallery, moved),
        "alone": (seen.known_alone[number].regions, seen.probed_alone[number].regions) if seen.known_alone else None,
    }
    for name, pair in versions.items():
        values = (nothing(_ONE_SIZE),) * 2
        if pair is not None:
            values = object_accuracy(pair[0], known, pair[1], labels, owners, seed=seed)
        found[f"knn_{name}"], found[f"knn_{name}_class_mean"] = values
        if name != "clean":
            found[f"knn_lost_{name}"] = difference(found["knn_clean_class_mean"], values[1])
    return found


def removal_curve(gallery: StageFeatures, subspace: Subspace, data: ProbeData) -> list[RemovalPoint]:
    """Position R² and object k-NN on the gallery alone, one half against the other, after removing directions."""
    half = len(gallery.cells) // 2
    owners = data.gallery.owners
    points = []
    for count in (count for count in COUNTS if count <= len(subspace.directions)):
        cells = subspace.remove(gallery.cells, count)
        position = probe_position(cells[:half], cells[half:], gallery.grid, seed=data.seed, rows=300)
        accuracy = None
        if data.gallery.labels is not None and "object_knn" not in skipped_measures(data):
            regions = subspace.remove(gallery.regions, count)
            regions = regions - regions.mean(0)
            known, labels = owners < half, data.gallery.labels
            if known.any() and (~known).any():
                right = knn_predict(regions[known], labels[known], regions[~known], k=NEIGHBOURS) == labels[~known]
                accuracy = float(right.double().mean())
        points.append(RemovalPoint(count, position.value or 0.0, accuracy))
    return points


def measure_debias(
    seen: ProbeFeatures, number: int, layer: LinearLayer | None, data: ProbeData
) -> dict[str, Estimate]:
    """The numbers of the queries at a stage with a layer behind it, or as it is."""
    stages: dict[str, Any] = {name: found for name, found in vars(seen).items() if name != "gradients" and found}
    behind: dict[str, Any] = {name: [_behind(layer, found[number])] for name, found in stages.items()}
    changed = ProbeFeatures(**behind)
    objects = _object_numbers(changed, 0, data, ("context", "object_knn", "same_object"))
    return {k: value for k, value in (_position_numbers(changed, 0, data) | objects).items() if k in BY_KEY}


def _behind(layer: LinearLayer | None, features: StageFeatures) -> StageFeatures:
    if layer is None:
        return features
    regions, cells = (layer(rows) if rows.numel() else rows for rows in (features.regions, features.cells))
    return StageFeatures(regions, cells, features.grid, features.norms)


def _exchange_padding(model: FeatureModel, data: ProbeData, results: list[StageResult], seen: ProbeFeatures) -> None:
    assert model.module is not None
    own = {layer.padding_mode for layer in padded_convolutions(model.module)}
    blank = blank_pictures(BLANKS, data.size_px, data.seed)
    pictures = data.queries.pixels[:PADDED]
    for mode in PADDING_MODES:
        with padded_with(model.module, mode):
            try:
                if seen.blank and own == {mode}:  # the model as it is: read already
                    blanks, natural = seen.blank, seen.queries
                else:
                    blanks = read_features(model, blank, cells=True)
                    natural = read_features(model, pictures, cells=True)
            except (RuntimeError, ValueError) as error:
                # Reflection and wrapping need maps that are larger than the padding.
                reason = f"this padding is not possible here: {str(error).splitlines()[0]}"
                for result in results:
                    result.padding[mode] = {"position_blank": nothing(reason), "border_contrast": nothing(reason)}
                continue
        for result, empty, shown in zip(results, blanks, natural, strict=True):
            profile = border_profile(shown.cells[:PADDED], shown.grid, seed=data.seed)
            result.padding[mode] = {
                "position_blank": probe_halves(empty, data.seed),
                "border_contrast": _first(profile),
            }


def _first(profile: list[Estimate]) -> Estimate:
    return profile[0] if profile else nothing("the map has no ring around its centre")


def pool_results(repeats: list[list[StageResult]], *, another: bool = False) -> list[StageResult]:
    """Results of several seeds as one: numbers are pooled, curves and paddings are those of the first seed.

    With `another`, intervals are those of one more seed: see `pool_seeds`.
    """
    first = [dataclasses.replace(result) for result in repeats[0]]
    for number, result in enumerate(first):
        others = [results[number] for results in repeats]
        result.numbers = {
            key: pool_seeds([other.numbers[key] for other in others if key in other.numbers], another=another)
            for key in result.numbers
        }
        rings = [other.border for other in others]
        result.border = [pool_seeds(list(ring), another=another) for ring in zip(*rings, strict=True)]
        verdicts = {other.verdict for other in others}
        result.verdict = next(
            (verdict for verdict in ("collapsed", "content-blind", "faded") if verdict in verdicts), "ok"
        )
    return first
