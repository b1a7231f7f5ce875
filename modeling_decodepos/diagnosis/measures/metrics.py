"""Every number of a diagnosis: what it is called, which protocol it follows, and how to read it in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number per stage."""

    key: str  # its name in report.json
    measure: str  # as `--measures` names it
    title: str
    protocol: str  # changes whenever the definition does; numbers of different protocols cannot be compared
    chance: float | None  # the value that says "nothing found", where there is one
    better: str  # lower, higher or neither
    reading: str  # what it means, in one or two sentences
    percent: bool = True  # whether it reads best as a percentage


MEASURES = {
    "position": "Position probe: can the place of a patch, or of a region, be read from its feature?",
    "retrieval": "Position against content: which is nearer, the same object elsewhere or another object here?",
    "border": "Border profile: how far do features drift towards the border, and what does the padding do?",
    "subspace": "Positional subspace: in how many directions does the place lie, and what if they are removed?",
    "context": "Context swap: how much of a region's feature comes from around the region?",
    "neighbour": "Neighbour read-out: does a region's feature tell what stands beside it?",
    "influence": "Gradient influence: which pixels does a region's feature answer to?",
    "object_knn": "Object k-NN: is the object still recognised in other surroundings, in another place, or alone?",
    "same_object": "Same object: does an object find itself again in other surroundings, in another place, or alone?",
    "norms": "Norm outliers: tokens that store something else than their patch.",
    "debias": "Training-free debias: what a linear layer against place and surroundings gains, and what it costs.",
}
"""Measures by the name that `--measures` takes."""

_READ_OUT = (
    "R² of a linear read-out of the patch's x and y on held-out pictures. 0: the place cannot be read; 1: exactly."
)

METRICS = (
    Metric(
        "position_natural", "position", "Position, on pictures", "position-probe-natural/1", 0.0, "neither",
        _READ_OUT + " Place is not always a fault: on photos, sky is above. Compare with the two controls.",
    ),
    Metric(
        "position_noise", "position", "Position, on noise", "position-probe-noise/1", 0.0, "lower",
        _READ_OUT + " Noise looks the same everywhere, so whatever is read comes from the network.",
    ),
    Metric(
        "position_blank", "position", "Position, on blank pages", "position-probe-blank/1", 0.0, "lower",
        _READ_OUT + " A blank page has nothing to see: this is the network's own coordinate system, such as the trace "
        "of zero padding or a position embedding.",
    ),
    Metric(
        "position_regions", "position", "Position, of regions", "position-probe-regions/1", 0.0, "lower",
        "R² of a linear read-out of a region's centre from its feature, for objects put somewhere at random: what is "
        "in the region tells nothing of the place.",
    ),
    Metric(
        "position_share", "subspace", "Variance that place explains", "position-variance/1", 0.0, "lower",
        "Of all variance of patch features, the share that is the same in every picture and follows the place alone.",
    ),
    Metric(
        "subspace_size", "subspace", "Positional directions", "positional-subspace/1", None, "neither",
        "Directions that hold 95 % of what the place alone explains. Few directions are easily removed.",
        percent=False,
    ),
    Metric(
        "content_wins", "retrieval", "Same object elsewhere is nearer", "place-or-content/2", 0.5, "higher",
        "An object on a plain canvas, in nine places: how often is it closer to itself elsewhere than to another "
        "object in its own place? 50 % is a coin toss.",
    ),
    Metric(
        "border_contrast", "border", "Drift at the border", "border-profile/1", 0.0, "lower",
        "How far the mean feature of the outermost cells is from the centre's, squared, in units of how much pictures "
        "differ at one place. 1: the border changes a feature as much as another picture does.", percent=False,
    ),
    Metric(
        "context_leak", "context", "Context leak", "context-swap/1", 0.0, "lower",
        "Surroundings exchanged, or content exchanged: what does the region's feature follow? 0: its content alone; "
        "50 %: both alike; 100 %: its surroundings alone.",
    ),
    Metric(
        "neighbour_advantage", "neighbour", "Neighbour named from the region", "neighbour-read-out/1", 0.0, "lower",
        "What a linear read-out of a region's feature says of the region beside it. 0: no better than the most "
        "frequent answer; 100 %: always right.",
    ),
    Metric(
        "influence_outside", "influence", "Gradient outside the box", "gradient-influence/1", None, "lower",
        "Share of the input gradient's energy that falls on pixels outside the region's box.",
    ),
    Metric(
        "knn_clean", "object_knn", "Object k-NN", "object-knn-probe/2", None, "higher",
        "Share of probed objects whose class their 20 nearest neighbours among other pictures' objects tell.",
    ),
    Metric(
        "knn_recontextualised", "object_knn", "Object k-NN, in other surroundings",
        "object-knn-recontextualised/2", None, "higher",
        "The same objects, in the same place, everything outside their boxes from another picture.",
    ),
    Metric(
        "knn_repositioned", "object_knn", "Object k-NN, in another place", "object-knn-repositioned/2", None, "higher",
        "The same objects somewhere else.",
    ),
    Metric(
        "knn_alone", "object_knn", "Object k-NN, alone", "object-knn-alone/1", None, "higher",
        "The same objects and the gallery's, each cut out before the network sees it. Lower than with surroundings: "
        "they helped; higher: they misled.",
    ),
    Metric(
        "knn_clean_class_mean", "object_knn", "Object k-NN, class mean", "object-knn-probe/2", None, "higher",
        "The same share in each class, and the mean of those: rare classes count as frequent ones.",
    ),
    Metric(
        "knn_recontextualised_class_mean", "object_knn", "Class mean, in other surroundings",
        "object-knn-recontextualised/2", None, "higher", "As above, in other surroundings.",
    ),
    Metric(
        "knn_repositioned_class_mean", "object_knn", "Class mean, in another place",
        "object-knn-repositioned/2", None, "higher", "As above, in another place.",
    ),
    Metric(
        "knn_alone_class_mean", "object_knn", "Class mean, alone", "object-knn-alone/1", None, "higher",
        "As above, cut out.",
    ),
    Metric(
        "same_recontextualised", "same_object", "Finds itself in other surroundings", "same-object-recontextualised/1",
        None, "higher",
        "Share of objects that in other surroundings are nearer to themselves as they were than to any other object.",
    ),
    Metric(
        "same_repositioned", "same_object", "Finds itself in another place", "same-object-repositioned/1", None,
        "higher",
        "Share of objects that in another place are nearer to themselves as they were than to any other object.",
    ),
    Metric(
        "same_alone", "same_object", "Finds itself alone", "same-object-alone/1", None, "higher",
        "The same cut out before the network sees it, larger: what the object is must then count, for neither its "
        "surroundings nor its size in cells are left.",
    ),
    Metric(
        "norm_outliers", "norms", "Outlier tokens", "norm-outliers/1", 0.0, "lower",
        "Share of cells whose feature is more than four times as long as the median of its picture.",
    ),
    Metric(
        "norm_ratio", "norms", "Longest token, times the median", "norm-outliers/1", 1.0, "lower",
        "How many times as long as the median the longest feature of a picture is.", percent=False,
    ),
)  # fmt: skip

BY_KEY = {metric.key: metric for metric in METRICS}

BENCHMARK_TASKS = ("context_leak", "position_regions", "same_repositioned")
"""What a data set of exact pairs scores: ids of tasks in its `eval.yaml`, and of entries in `.eval_results`.

Numbers whose rank of networks is the same with other objects (benchmarks/rank.py); that of `same_recontextualised` is
not.
"""

EXTRA_PROTOCOLS = {
    "border_profile": "border-profile/1",
    "padding": "padding-exchange/1",
    "subspace_energy": "positional-subspace/1",
    "removal": "removal-curve/1",
    "debias": "debias-within-object/1",
    "context_content": "context-swap/1",
    "context_context": "context-swap/1",
    "knn_prior": "object-knn-probe/2",
    "knn_prior_class_mean": "object-knn-probe/2",
    "knn_lost_recontextualised": "object-knn-recontextualised/2",
    "knn_lost_repositioned": "object-knn-repositioned/2",
    "knn_lost_alone": "object-knn-alone/1",
    "same_chance": "same-object-recontextualised/1",
    "neighbour_accuracy": "neighbour-read-out/1",
    "neighbour_prior": "neighbour-read-out/1",
}


def choose_measures(names: str | None) -> tuple[str, ...]:
    """The measures that a comma-separated list names; all for None."""
    if not names:
        return tuple(MEASURES)
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    unknown = [name for name in chosen if name not in MEASURES]
    if unknown or not chosen:
        raise ValueError(f"unknown measure {', '.join(unknown) or names!r}; expected some of {', '.join(MEASURES)}.")
    return chosen
