"""`object_knn`: is an object's class what its nearest neighbours among training objects are?

Gallery: objects of the training split. Queries: objects of the validation split, four times:

    as they are            micro_k20, class_mean_k20 …
    re-contextualised      before another image, in their place: what is lost, is what came from the surroundings
    re-positioned          elsewhere in their image, with their surroundings: what is lost, is what came from the place
    alone                  in a picture of their own that they fill, and so is the gallery: neither surroundings nor
                           another place, what a network would reach that looks at nothing else

`…_drop_k20` is the accuracy as they are minus that of the variant, over the same objects (those that cover at most
half of their image). But for `alone`, the gallery stays as it is. An object alone has more pixels than in its image:
`alone` is a ceiling that mixes what the surroundings cost with what the pixels gain. Where it is above "as they are"
(`alone_drop` below 0), context or the few pixels mislead this network; where it is below, they help.

`commonest_class` is what calling every object by the gallery's commonest class reaches; `effective_rank`, how many
directions the queries' features fill. `supercategory_…` (COCO), `shape_…` and `texture_…` (scenes) are about the group
of the class. The follow-up paper (ICLR 2024) reports a pair of re-contextualised and re-positioned; its exact
definition is not public, so these numbers compare with each other and not with its table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from modeling_decodepos.diagnosis import effective_rank
from modeling_decodepos.diagnosis.data.exchange import has_surroundings
from modeling_decodepos.diagnosis.statistics.estimates import bootstrap_interval, jackknife_interval
from modeling_decodepos.diagnosis.statistics.knn import knn_accuracy, knn_neighbours, knn_vote
from training.evaluation.class_groups import class_groups
from training.evaluation.evaluation import Evaluation
from training.evaluation.object_features import (
    Objects,
    Show,
    alone_side,
    embed_shown,
    show_as_they_are,
    show_by_themselves,
    show_recontextualised,
    show_repositioned,
)
from training.evaluation.results import Measured
from training.evaluation.settings import ObjectKnnSettings


def run(evaluation: Evaluation, settings: ObjectKnnSettings) -> Mapping[str, Measured]:
    """Accuracies of one seed."""
    gallery_images, query_images = evaluation.images("train"), evaluation.images("validation")
    shows: dict[str, Show] = {}
    gallery_shows: dict[str, Show] = {}  # where it is not the gallery as it is
    if settings.variants:
        side = alone_side(evaluation)
        gallery_shows["alone"] = show_by_themselves(side, every=True)
        shows = {
            "recontextualised": show_recontextualised(query_images, evaluation.seed),
            "repositioned": show_repositioned(evaluation.seed),
            "alone": show_by_themselves(side),
        }
    gallery, *others = embed_shown(evaluation, gallery_images, "gallery", [show_as_they_are, *gallery_shows.values()])
    galleries = dict(zip(gallery_shows, others, strict=True))
    refuse_one_class(gallery.labels, gallery_images.name)
    ks = _possible(settings.neighbours, len(gallery), evaluation)
    queries, *others = embed_shown(evaluation, query_images, "queries", [show_as_they_are, *shows.values()])
    groups = {name: torch.tensor(of) for name, of in class_groups(gallery_images.class_names).items()}
    right = _right(evaluation, gallery, queries, ks, settings.temperature, groups)
    measures = {
        "commonest_class": mean_over_objects((queries.labels == gallery.labels.mode().values).double(), queries),
        "effective_rank": Measured(float(effective_rank(queries.features.float())), count=len(queries)),
        **_accuracies("", right, queries, groups),
    }
    movable = has_surroundings(queries.boxes)
    if shows and not movable.any():
        evaluation.note("no object covers at most half of its image: none can be re-contextualised or re-positioned.")
        return measures
    for name, varied in zip(shows, others, strict=True):
        assert torch.equal(varied.numbers, queries.numbers[movable])
        found = _right(evaluation, galleries.get(name, gallery), varied, ks, settings.temperature, groups)
        measures |= _accuracies(f"{name}_", found, varied, groups)
        for (group, k), hit in found.items():
            lost = right[group, k][movable].double() - hit.double()
            measures[f"{name}_{_prefix(group)}drop_k{k}"] = mean_over_objects(lost, varied)
    return measures


def refuse_one_class(labels: Tensor, name: str) -> None:
    """With a single class every model is right."""
    classes = labels.unique()
    if len(classes) < 2:
        raise ValueError(
            f"{name} holds objects of one class only (class {int(classes[0])}): every model would be right. Bring "
            "data with at least two classes."
        )


def _possible(neighbours: tuple[int, ...], count: int, evaluation: Evaluation) -> list[int]:
    """The ks that the gallery has enough objects for."""
    if not neighbours or min(neighbours) < 1:
        raise ValueError(f"neighbours is {neighbours}; expected numbers of at least 1, such as 10 20 100 200.")
    ks = [k for k in sorted(set(neighbours)) if k <= count]
    skipped = [k for k in neighbours if k > count]
    if not ks:
        raise ValueError(
            f"the gallery holds {count} objects, fewer than every k of {', '.join(map(str, neighbours))}. Give "
            f"--neighbours {max(1, count // 10)}, or more training images."
        )
    if skipped:
        evaluation.note(f"k = {', '.join(map(str, skipped))} is left out: the gallery holds {count} objects only.")
    return ks


Right = dict[tuple[str, int], Tensor]
"""Which of the queries are classified rightly, by grouping ("" for the classes themselves) and k."""


def _right(
    evaluation: Evaluation,
    gallery: Objects,
    queries: Objects,
    ks: list[int],
    temperature: float,
    groups: Mapping[str, Tensor],
) -> Right:
    processes = evaluation.processes
    own = queries.features[processes.rank :: processes.count]
    cosines, rows = knn_neighbours(gallery.features, own, max(ks), device=processes.device, progress=processes.is_main)
    found: Right = {}
    for group in ("", *groups):
        of = groups.get(group, torch.arange(int(max(gallery.labels.max(), queries.labels.max())) + 1))
        labels = of[gallery.labels][rows]
        own_predictions = torch.stack([knn_vote(cosines[:, :k], labels[:, :k], temperature) for k in ks], 1)
        predictions = torch.cat(processes.collect_rows(list(own_predictions[:, None])))
        found |= {(group, k): predictions[:, column] == of[queries.labels] for column, k in enumerate(ks)}
    return found


def _prefix(group: str) -> str:
    return f"{group}_" if group else ""


def _accuracies(what: str, right: Right, queries: Objects, groups: Mapping[str, Tensor]) -> dict[str, Measured]:
    measures = {}
    for (group, k), hit in right.items():
        labels = groups[group][queries.labels] if group else queries.labels
        measures[f"{what}{_prefix(group)}micro_k{k}"] = mean_over_objects(hit.double(), queries)
        measures[f"{what}{_prefix(group)}class_mean_k{k}"] = class_mean(hit, replace(queries, labels=labels))
    return measures


def class_mean(right: Tensor, queries: Objects) -> Measured:
    """The mean over the classes of the queries, with its interval over images."""
    images, owners = queries.owners.unique(return_inverse=True)

    def score(kept: np.ndarray) -> float:
        chosen = torch.from_numpy(kept)[owners]
        predictions = torch.where(right[chosen], queries.labels[chosen], -1)
        return knn_accuracy(predictions, queries.labels[chosen]).class_mean

    return Measured(score(np.ones(len(images), bool)), jackknife_interval(score, len(images)), len(queries))


def mean_over_objects(scores: Tensor, queries: Objects) -> Measured:
    """The mean over objects, with its interval when images are drawn again."""
    owners = queries.owners.numpy()
    images = owners.max() + 1
    totals = np.bincount(owners, weights=scores.numpy(), minlength=images)
    counts = np.bincount(owners, minlength=images)
    has = counts > 0
    interval = bootstrap_interval(totals[has], counts[has])
    return Measured(float(scores.mean()), interval, len(scores))
