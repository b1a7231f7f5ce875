"""The objective as data: which student view is compared with which teacher view, and the loss of one such pair.

A view's name says what was done to it:

    whole           the whole image, resized (x1 in the paper's figure)
    crop            a random crop of it (x2)
    crop_small      the crop at half size
    whole_cut       the whole image, region-augmented (x̂1)
    crop_cut_small  the crop, region-augmented, at half size (x̂2-small)
    repositioned    the crop's regions, moved, over another image (x3)
    plain           the whole image, in its own colours
    alone           each region as a picture of its own: no surroundings, no place
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Pairs = tuple[tuple[str, str], ...]

# (student view, teacher view). The last two are the arrows L_dc and L_dp of the paper's figure.
BYOL_PAIRS: Pairs = (("crop_small", "whole"), ("whole", "crop"))
DECOUPLING_PAIRS: Pairs = (("crop_cut_small", "whole_cut"), ("whole_cut", "crop"))
DEPOSITIONING_PAIRS: Pairs = (("repositioned", "whole_cut"), ("repositioned", "crop"))
# In a scene, and moved before another image, a region has the feature that it has alone.
ISOLATED_PAIRS: Pairs = (("plain", "alone"), ("repositioned", "alone"))


CONTRAST_TEMPERATURE = 0.2
"""MoCo v3's."""


@dataclass(frozen=True)
class LossTerm:
    """A named, weighted sum of pair losses.

    Attributes:
        kind: "attract": a region's prediction goes to the target of the same region. "contrast": it must tell that
            target from those of all other regions of the batch. "repel": it keeps away from those of the other regions
            of its image. "match": its feature, before any head, goes to the teacher's.
    """

    name: str
    pairs: Pairs
    weight: float = 1.0
    kind: Literal["attract", "contrast", "repel", "match"] = "attract"


@dataclass(frozen=True)
class Objective:
    """What a run optimises: its loss terms, and whether features are pooled per region or per image."""

    terms: tuple[LossTerm, ...]
    level: Literal["region", "image"] = "region"

    @property
    def student_views(self) -> tuple[str, ...]:
        """Views the student sees, each once, in the order the terms name them."""
        return tuple(dict.fromkeys(student for term in self.terms for student, _ in term.pairs))

    @property
    def teacher_views(self) -> tuple[str, ...]:
        """Views the teacher sees, each once, in the order the terms name them."""
        return tuple(dict.fromkeys(teacher for term in self.terms for _, teacher in term.pairs))

    @property
    def views(self) -> tuple[str, ...]:
        """All views a sample must have."""
        return tuple(dict.fromkeys(self.student_views + self.teacher_views))

    def of_heads(self) -> Objective:
        """The terms that compare what the heads make of features."""
        return Objective(tuple(term for term in self.terms if term.kind != "match"), self.level)

    def of_features(self) -> Objective:
        """The terms that compare features as they are."""
        return Objective(tuple(term for term in self.terms if term.kind == "match"), self.level)

    def contrasted(self) -> Objective:
        """The same table with contrast where it attracts."""
        terms = (dataclasses.replace(t, kind="contrast") if t.kind == "attract" else t for t in self.terms)
        return Objective(tuple(terms), self.level)

    def weighted(self, weights: Mapping[str, float]) -> Objective:
        """The same objective with other weights for the terms named."""
        unknown = set(weights) - {term.name for term in self.terms}
        if unknown:
            raise ValueError(f"no loss term is called {', '.join(sorted(unknown))}; there are {self.terms}.")
        terms = tuple(dataclasses.replace(t, weight=weights.get(t.name, t.weight)) for t in self.terms)
        return Objective(terms, self.level)


OBJECTIVES: dict[str, Objective] = {
    # Both modules: the paper's figure.
    "both": Objective((LossTerm("decoupling", DECOUPLING_PAIRS), LossTerm("depositioning", DEPOSITIONING_PAIRS))),
    # The arms of the factorial. Each baseline keeps the same views, without the augmentation under test.
    "byol_image": Objective((LossTerm("byol", BYOL_PAIRS),), level="image"),
    "byol_region": Objective((LossTerm("byol", BYOL_PAIRS),)),
    "decoupling": Objective((LossTerm("decoupling", DECOUPLING_PAIRS),)),
    "depositioning": Objective(
        (
            LossTerm("byol", BYOL_PAIRS),
            LossTerm("depositioning", (("repositioned", "whole"), ("repositioned", "crop"))),
        )
    ),
    # Both modules, changed in one place each: ideas to compare with the figure.
    "both_uncut_teacher": Objective(
        (
            LossTerm("decoupling", (("crop_cut_small", "whole"), ("whole_cut", "crop"))),
            LossTerm("depositioning", (("repositioned", "whole"), ("repositioned", "crop"))),
        )
    ),
    "both_alone_teacher": Objective(
        (
            LossTerm("decoupling", (("crop_cut_small", "alone"), ("whole_cut", "alone"))),
            LossTerm("depositioning", (("repositioned", "alone"),)),
        )
    ),
    "both_apart": Objective(
        (
            LossTerm("decoupling", DECOUPLING_PAIRS),
            LossTerm("depositioning", DEPOSITIONING_PAIRS),
            LossTerm("apart", DECOUPLING_PAIRS, kind="repel"),
        )
    ),
    # For weights that know something already: the teacher sees each region by itself. Without moved regions, nothing
    # is pasted.
    "isolated": Objective((LossTerm("isolated", ISOLATED_PAIRS, kind="match"),)),
    "isolated_unmoved": Objective((LossTerm("isolated", ISOLATED_PAIRS[:1], kind="match"),)),
    "isolated_both": Objective(
        (
            LossTerm("isolated", ISOLATED_PAIRS, kind="match"),
            LossTerm("decoupling", DECOUPLING_PAIRS),
            LossTerm("depositioning", DEPOSITIONING_PAIRS),
        )
    ),
}


def region_similarity_loss(
    prediction: Tensor, target: Tensor, valid_regions: Tensor | None = None, num_pairs: Tensor | float | None = None
) -> Tensor:
    """Mean over matched regions of -2 times the cosine; equal directions give -2, opposite ones +2.

    This is BYOL's squared distance up to a constant. No gradient reaches the target.

    Args:
        prediction: (B, R, D) student predictions.
        target: (B, R, D) teacher projections of the same regions, in the same order.
        valid_regions: (B, R), true for the regions to compare; all by default.
        num_pairs: Divide the sum by this instead of the number of regions here. Give the count over all processes and
            accumulation steps, so that splitting a batch changes nothing.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must match, region by region."
        )
    prediction, target = prediction.float(), target.detach().float()
    similarity = (F.normalize(prediction, dim=-1) * F.normalize(target, dim=-1)).sum(-1)
    if valid_regions is None:
        valid_regions = torch.ones_like(similarity, dtype=torch.bool)
    count = valid_regions.sum() if num_pairs is None else num_pairs
    total = torch.where(valid_regions, similarity, 0.0).sum()
    count = torch.as_tensor(count, device=total.device)
    # No matched region at all: a loss of zero that still reaches every weight, never 0 / 0.
    return -2.0 * total / torch.where(count > 0, count, 1)


def region_contrast_loss(
    prediction: Tensor, target: Tensor, valid_regions: Tensor | None = None, num_pairs: Tensor | float | None = None
) -> Tensor:
    """Mean over regions of the cross-entropy of finding their own target among all targets, times twice a temperature.

    InfoNCE in the form of MoCo v3 (arXiv 2104.02057): equal directions are pulled as `region_similarity_loss` pulls
    them, and 0 is the least. The other targets are those of the regions given here, of all images: of one process's
    micro-batch. No gradient reaches the target. Arguments as in `region_similarity_loss`.
    """
    if valid_regions is None:
        valid_regions = torch.ones(prediction.shape[:2], dtype=torch.bool, device=prediction.device)
    rows = F.normalize(prediction[valid_regions].float(), dim=-1)
    targets = F.normalize(target.detach()[valid_regions].float(), dim=-1)
    own = torch.arange(len(rows), device=rows.device)
    total = F.cross_entropy(rows @ targets.T / CONTRAST_TEMPERATURE, own, reduction="sum") if len(rows) else rows.sum()
    count = torch.as_tensor(len(rows) if num_pairs is None else num_pairs, device=rows.device)
    return 2.0 * CONTRAST_TEMPERATURE * total / torch.where(count > 0, count, 1)


def region_repulsion_loss(
    prediction: Tensor, target: Tensor, valid_regions: Tensor | None = None, num_pairs: Tensor | float | None = None
) -> Tensor:
    """Mean over regions of twice the mean cosine with the targets of the other regions of the image, where positive.

    Orthogonal regions give 0, equal ones +2; a region alone in its image gives 0. No gradient reaches the target.
    Arguments as in `region_similarity_loss`.
    """
    prediction, target = F.normalize(prediction.float(), dim=-1), F.normalize(target.detach().float(), dim=-1)
    if valid_regions is None:
        valid_regions = torch.ones(prediction.shape[:2], dtype=torch.bool, device=prediction.device)
    others = valid_regions[:, :, None] & valid_regions[:, None, :]
    others = others & ~torch.eye(others.shape[-1], dtype=torch.bool, device=others.device)
    positive = (prediction @ target.transpose(1, 2)).clamp(min=0)
    total = (torch.where(others, positive, 0.0).sum(-1) / others.sum(-1).clamp(min=1)).sum()
    count = torch.as_tensor(valid_regions.sum() if num_pairs is None else num_pairs, device=total.device)
    return 2.0 * total / torch.where(count > 0, count, 1)


def feature_match_loss(
    feature: Tensor, target: Tensor, valid_regions: Tensor | None = None, num_pairs: Tensor | float | None = None
) -> Tensor:
    """Mean over matched regions of 1 minus the cosine: 0 for equal directions, 2 for opposite ones.

    No gradient reaches the target. Arguments as in `region_similarity_loss`; both sides are (B, R, C) features, less
    what all features share.
    """
    if valid_regions is None:
        valid_regions = torch.ones(feature.shape[:2], dtype=torch.bool, device=feature.device)
    count = torch.as_tensor(valid_regions.sum() if num_pairs is None else num_pairs, device=feature.device)
    constant = valid_regions.sum() / torch.where(count > 0, count, 1)
    return constant + region_similarity_loss(feature, target, valid_regions, num_pairs) / 2


PAIR_LOSSES = {
    "attract": region_similarity_loss,
    "contrast": region_contrast_loss,
    "repel": region_repulsion_loss,
    "match": feature_match_loss,
}
"""The loss of a pair of views by the kind of its term."""


def pair_loss(
    predictions: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    valid_regions: Mapping[str, Tensor],
    objective: Objective,
    num_pairs: Mapping[tuple[str, str], Tensor | float] | None = None,
    features: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = ({}, {}),
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of an objective's terms, and each term by name (unweighted, detached).

    Args:
        predictions: Student predictions (B, R, D) by view name.
        targets: Teacher projections (B, R, D) by view name.
        valid_regions: (B, R) flags by view name; a pair counts where both views have the region.
        objective: The table of pairs.
        num_pairs: Global number of matched regions of each pair; see `region_similarity_loss`.
        features: The student's and the teacher's features (B, R, C) by view name, for terms that match them.
    """
    terms: dict[str, Tensor] = {}
    for term in objective.terms:
        of_student, of_teacher = features if term.kind == "match" else (predictions, targets)
        losses = [
            PAIR_LOSSES[term.kind](
                of_student[student],
                of_teacher[teacher],
                _matched(valid_regions, student, teacher),
                None if num_pairs is None else num_pairs[student, teacher],
            )
            for student, teacher in term.pairs
        ]
        terms[term.name] = torch.stack(losses).sum()
    loss = torch.stack([term.weight * terms[term.name] for term in objective.terms]).sum()
    return loss, {name: value.detach() for name, value in terms.items()}


def _matched(valid_regions: Mapping[str, Tensor], student: str, teacher: str) -> Tensor:
    one, other = valid_regions[student], valid_regions[teacher]
    if one.shape != other.shape:
        raise ValueError(
            f"view {student!r} holds {tuple(one.shape)} (images, regions) and view {teacher!r} {tuple(other.shape)}; "
            "every view must list the same regions of the same images."
        )
    return one & other
