"""The objective's tables and the loss of one pair."""

import numpy as np
import pytest
import torch

from modeling_decodepos.losses import (
    DECOUPLING_PAIRS,
    DEPOSITIONING_PAIRS,
    OBJECTIVES,
    LossTerm,
    Objective,
    feature_match_loss,
    pair_loss,
    region_contrast_loss,
    region_repulsion_loss,
    region_similarity_loss,
)


def reference(prediction: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> float:
    """-2 cos, averaged over the valid regions, one by one in double precision."""
    a, b = prediction.double().numpy(), target.double().numpy()
    values = [
        -2 * np.dot(a[i], b[i]) / (np.linalg.norm(a[i]) * np.linalg.norm(b[i]))
        for i in np.ndindex(valid.shape)
        if valid[i]
    ]
    return float(np.mean(values))


def test_values_by_hand() -> None:
    one = torch.tensor([[[3.0, 4.0]]])
    assert region_similarity_loss(one, one * 7).item() == pytest.approx(-2)
    assert region_similarity_loss(one, -one / 9).item() == pytest.approx(2)
    assert region_similarity_loss(one, torch.tensor([[[-4.0, 3.0]]])).item() == pytest.approx(0, abs=1e-6)
    # cos((3, 4), (4, 3)) = 24 / 25; averaged with an equal pair.
    both = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    other = torch.tensor([[[4.0, 3.0], [2.0, 0.0]]])
    assert region_similarity_loss(both, other).item() == pytest.approx(-2 * (0.96 + 1) / 2)


def test_equal_to_a_reference_in_double_precision() -> None:
    prediction, target = torch.randn(2, 4, 5, 32) * torch.tensor([1e-3, 50.0])[:, None, None, None]
    valid = torch.rand(4, 5) < 0.6
    assert region_similarity_loss(prediction, target, valid).item() == pytest.approx(
        reference(prediction, target, valid), rel=1e-5
    )


def test_equal_to_byols_squared_distance_up_to_a_constant() -> None:
    prediction, target = torch.randn(2, 3, 4, 16)
    distance = (torch.nn.functional.normalize(prediction, dim=-1) - torch.nn.functional.normalize(target, dim=-1)) ** 2
    assert region_similarity_loss(prediction, target).item() == pytest.approx(
        distance.sum(-1).mean().item() - 2, abs=1e-5
    )


def test_half_precision_features_are_compared_in_full_precision() -> None:
    prediction, target = torch.randn(2, 3, 4, 64).bfloat16()
    loss = region_similarity_loss(prediction, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(prediction, target, torch.ones(3, 4)), abs=1e-4)


def test_no_gradient_reaches_the_target_and_the_right_one_reaches_the_prediction() -> None:
    prediction, target = torch.randn(1, 2, 6).requires_grad_(), torch.randn(1, 2, 6).requires_grad_()
    region_similarity_loss(prediction, target).backward()
    assert target.grad is None
    # d(-2 cos)/da = -2 (b̂ - cos â) / |a|, and half of it since there are two regions.
    a, b = prediction.detach().double(), target.detach().double()
    unit_a, unit_b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    cosine = (unit_a * unit_b).sum(-1, keepdim=True)
    expected = -(unit_b - cosine * unit_a) / a.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(prediction.grad.double(), expected, atol=1e-6, rtol=1e-5)


def test_regions_that_are_not_valid_do_not_count() -> None:
    prediction, target = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    valid = torch.tensor([[True, False, True], [False, False, True]])
    expected = reference(prediction, target, valid)
    for garbage in (0.0, 1e4, float("nan")):
        spoiled = prediction.masked_fill(~valid[..., None], garbage).requires_grad_()
        loss = region_similarity_loss(spoiled, target.masked_fill(~valid[..., None], garbage), valid)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        if garbage == garbage:
            loss.backward()
            assert (spoiled.grad[~valid] == 0).all()


def test_split_batches_add_up_to_the_whole() -> None:
    prediction, target = torch.randn(2, 6, 3, 16)
    valid = torch.rand(6, 3) < 0.5
    valid[4:] = False  # one part has no pair at all
    whole = region_similarity_loss(prediction, target, valid)
    for count in (valid.sum(), int(valid.sum()), float(valid.sum())):
        parts = [
            region_similarity_loss(prediction[s], target[s], valid[s], count)
            for s in (slice(0, 1), slice(1, 4), slice(4, 6))
        ]
        torch.testing.assert_close(sum(parts), whole)
    # Averaging the parts' own means, the plausible mistake, weighs regions by how crowded their image is.
    means = [
        region_similarity_loss(prediction[s], target[s], valid[s]) for s in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert not torch.isclose(sum(means) / 3, whole)


def test_a_count_per_process_may_be_a_fraction() -> None:
    # Distributed training averages gradients: with 1 pair over 4 processes each divides by 1 / 4.
    one = torch.ones(1, 1, 4)
    assert region_similarity_loss(one, one, num_pairs=0.25).item() == pytest.approx(-8)
    assert region_similarity_loss(one, one, num_pairs=torch.tensor(0.25)).item() == pytest.approx(-8)


def test_no_valid_pair_gives_zero_and_keeps_the_graph() -> None:
    prediction, target = torch.randn(2, 3, 8).requires_grad_(), torch.randn(2, 3, 8)
    for count in (None, 0, torch.tensor(0), torch.tensor(0.0)):
        loss = region_similarity_loss(prediction, target, torch.zeros(2, 3, dtype=torch.bool), count)
        assert loss.item() == 0
        prediction.grad = None
        loss.backward()
        assert (prediction.grad == 0).all()
    empty = torch.zeros(2, 0, 8, requires_grad=True)
    assert region_similarity_loss(empty, torch.zeros(2, 0, 8)).item() == 0


def test_a_vector_of_zeros_gives_no_nan() -> None:
    zeros = torch.zeros(1, 1, 8, requires_grad=True)
    loss = region_similarity_loss(zeros, torch.randn(1, 1, 8))
    loss.backward()
    assert loss.item() == 0
    assert zeros.grad.isfinite().all()


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match=r"prediction \(2, 3, 8\) and target \(2, 4, 8\) must match"):
        region_similarity_loss(torch.rand(2, 3, 8), torch.rand(2, 4, 8))


# --- keeping regions of an image apart


def repulsion_reference(prediction: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> float:
    """2 max(0, cos) with the other valid regions of the same image, one by one in double precision."""
    a = torch.nn.functional.normalize(prediction.double(), dim=-1)
    b = torch.nn.functional.normalize(target.double(), dim=-1)
    rows = []
    for image, region in zip(*np.nonzero(valid.numpy()), strict=True):
        others = [k for k in np.flatnonzero(valid[image].numpy()) if k != region]
        rows.append(np.mean([2 * max(0.0, float(a[image, region] @ b[image, k])) for k in others]) if others else 0.0)
    return float(np.mean(rows))


def test_repulsion_equals_a_reference_in_double_precision() -> None:
    prediction, target = torch.randn(2, 6, 5, 8)
    valid = torch.rand(6, 5) < 0.6
    valid[0] = torch.tensor([True, False, False, False, False])  # alone in its image
    found = region_repulsion_loss(prediction, target, valid).item()
    assert found == pytest.approx(repulsion_reference(prediction, target, valid), rel=1e-5)
    halves = [region_repulsion_loss(prediction[s], target[s], valid[s], valid.sum()) for s in (slice(3), slice(3, 6))]
    assert sum(halves).item() == pytest.approx(found, rel=1e-5)


def contrast_reference(prediction: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> float:
    """0.4 times the cross-entropy at temperature 0.2, region by region in double precision."""
    a = torch.nn.functional.normalize(prediction.double(), dim=-1)[valid].numpy()
    b = torch.nn.functional.normalize(target.double(), dim=-1)[valid].numpy()
    losses = []
    for own, row in enumerate(a):
        chances = [np.exp(np.dot(row, other) / 0.2) for other in b]
        losses.append(-np.log(chances[own] / sum(chances)))
    return 0.4 * float(np.mean(losses))


def test_contrast_equals_a_reference_in_double_precision() -> None:
    prediction, target = torch.randn(2, 6, 5, 32)
    valid = torch.rand(6, 5) < 0.6
    found = region_contrast_loss(prediction, target, valid)
    assert found.item() == pytest.approx(contrast_reference(prediction, target, valid), rel=1e-5)
    assert region_contrast_loss(prediction, target, valid, num_pairs=7).item() == pytest.approx(
        found.item() * valid.sum().item() / 7, rel=1e-5
    )


def test_contrast_is_with_the_regions_of_all_images_and_with_no_padding() -> None:
    prediction = torch.eye(4).reshape(2, 2, 4)
    assert region_contrast_loss(prediction, prediction).item() == pytest.approx(0.4 * np.log(1 + 3 * np.exp(-5)))
    valid = torch.tensor([[True, False], [True, False]])
    assert region_contrast_loss(prediction, prediction, valid).item() == pytest.approx(0.4 * np.log(1 + np.exp(-5)))
    # Other regions alike: of four that cannot be told apart, each is found by chance.
    assert region_contrast_loss(torch.ones(2, 2, 4), torch.ones(2, 2, 4)).item() == pytest.approx(0.4 * np.log(4))


def test_contrast_gives_no_gradient_to_targets_and_zero_without_any_region() -> None:
    prediction, target = torch.randn(2, 2, 6, requires_grad=True), torch.randn(2, 2, 6, requires_grad=True)
    region_contrast_loss(prediction, target).backward()
    assert target.grad is None and prediction.grad is not None and prediction.grad.abs().sum() > 0
    nothing = region_contrast_loss(prediction, target, torch.zeros(2, 2, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0


def test_a_table_that_contrasts_has_the_same_pairs() -> None:
    for objective in OBJECTIVES.values():
        changed = objective.contrasted()
        assert [term.pairs for term in changed.terms] == [term.pairs for term in objective.terms]
        kinds = {"attract": "contrast"}
        assert [t.kind for t in changed.terms] == [kinds.get(t.kind, t.kind) for t in objective.terms]
    views = {name: torch.randn(3, 2, 8) for name in OBJECTIVES["both"].views}
    valid = {name: torch.ones(3, 2, dtype=torch.bool) for name in views}
    loss, terms = pair_loss(views, views, valid, OBJECTIVES["both"].contrasted())
    expected = sum(region_contrast_loss(views[s], views[t]) for s, t in (*DECOUPLING_PAIRS, *DEPOSITIONING_PAIRS))
    torch.testing.assert_close(loss, expected)
    assert set(terms) == {"decoupling", "depositioning"}


def test_repulsion_is_between_regions_of_one_image_and_not_with_itself() -> None:
    apart = torch.eye(4).view(1, 4, 4)
    assert region_repulsion_loss(apart, apart).item() == 0  # equal to itself, orthogonal to the others
    alike = torch.ones(1, 4, 4)
    assert region_repulsion_loss(alike, alike).item() == pytest.approx(2)
    assert region_repulsion_loss(alike, -alike).item() == 0
    images = torch.eye(2).view(2, 1, 2)[[0, 0]]  # the same region in two images
    assert region_repulsion_loss(images, images).item() == 0
    nothing = region_repulsion_loss(alike.requires_grad_(), alike, torch.zeros(1, 4, dtype=torch.bool))
    assert nothing.item() == 0
    nothing.backward()


def test_a_term_that_repels_uses_the_repulsion() -> None:
    pairs = (("crop_cut_small", "whole_cut"),)
    objective = Objective((LossTerm("apart", pairs, 0.5, kind="repel"),))
    predictions, targets = {"crop_cut_small": torch.randn(3, 4, 8)}, {"whole_cut": torch.randn(3, 4, 8)}
    valid = {name: torch.rand(3, 4) < 0.8 for name in objective.views}
    total, terms = pair_loss(predictions, targets, valid, objective)
    both = valid["crop_cut_small"] & valid["whole_cut"]
    wanted = repulsion_reference(predictions["crop_cut_small"], targets["whole_cut"], both)
    assert terms["apart"].item() == pytest.approx(wanted, rel=1e-5)
    assert total.item() == pytest.approx(0.5 * wanted, rel=1e-5)
    assert objective.weighted({"apart": 2.0}).terms[0].kind == "repel"


# --- the tables


def test_the_arrows_of_the_papers_figure() -> None:
    # L_dc: z_s,2 -> z_t,1 and z_s,1 -> z_t,2. L_dp: z_s,3 -> z_t,2 and z_s,3 -> z_t,1. Students: x̂2-small, x3, x̂1.
    x2, x1_cut, x2_cut_small, x3 = "crop", "whole_cut", "crop_cut_small", "repositioned"
    assert set(DECOUPLING_PAIRS) == {(x2_cut_small, x1_cut), (x1_cut, x2)}
    assert set(DEPOSITIONING_PAIRS) == {(x3, x2), (x3, x1_cut)}
    both = OBJECTIVES["both"]
    assert set(both.student_views) == {x2_cut_small, x3, x1_cut}
    assert set(both.teacher_views) == {x2, x1_cut}
    assert {term.name: (term.pairs, term.weight) for term in both.terms} == {
        "decoupling": (DECOUPLING_PAIRS, 1.0),
        "depositioning": (DEPOSITIONING_PAIRS, 1.0),
    }


def test_the_arms_differ_in_one_thing_at_a_time() -> None:
    arms = {name: objective for name, objective in OBJECTIVES.items() if "alone" not in objective.views}
    uses = {
        name: (
            objective.level,
            any("cut" in view for view in objective.views),
            any("repositioned" in view for view in objective.views),
        )
        for name, objective in arms.items()
    }
    assert uses == {
        "byol_image": ("image", False, False),
        "byol_region": ("region", False, False),
        "decoupling": ("region", True, False),
        "depositioning": ("region", False, True),
        "both": ("region", True, True),
        "both_uncut_teacher": ("region", True, True),
        "both_apart": ("region", True, True),
    }
    assert not any("cut" in view for view in OBJECTIVES["both_uncut_teacher"].teacher_views)
    assert OBJECTIVES["both_uncut_teacher"].student_views == OBJECTIVES["both"].student_views
    assert OBJECTIVES["both_apart"].terms[:2] == OBJECTIVES["both"].terms
    for objective in arms.values():
        # The same shape everywhere: a half-size crop and a whole image for the student, the crop for the teacher.
        assert "crop" in objective.teacher_views
        assert any(view.endswith("small") for view in objective.student_views)
        assert not any(view.endswith("small") or view == "repositioned" for view in objective.teacher_views)
        assert len(objective.views) == len(set(objective.views))


def test_isolated_arms_compare_scenes_with_regions_alone() -> None:
    isolated, unmoved, both = (OBJECTIVES[name] for name in ("isolated", "isolated_unmoved", "isolated_both"))
    assert isolated.teacher_views == unmoved.teacher_views == ("alone",)
    assert isolated.student_views == ("plain", "repositioned") and unmoved.student_views == ("plain",)
    scratch = OBJECTIVES["both_alone_teacher"]
    assert scratch.teacher_views == ("alone",) and scratch.student_views == OBJECTIVES["both"].student_views
    assert not scratch.of_features().terms
    assert not isolated.of_heads().terms and isolated.of_features() == isolated
    # Beside the paper's terms, which stay what they are.
    assert both.of_features() == isolated
    assert both.of_heads().terms == OBJECTIVES["both"].terms
    assert "alone" not in both.of_heads().teacher_views


def test_matched_features_start_at_one_and_end_at_zero() -> None:
    one = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
    other = torch.tensor([[[4.0, 3.0], [-2.0, 0.0], [float("nan"), 0.0]]])
    valid = torch.tensor([[True, True, False]])
    assert feature_match_loss(one, one * 7).item() == pytest.approx(0, abs=1e-6)
    assert feature_match_loss(one, other, valid).item() == pytest.approx((1 - 0.96 + 2) / 2)
    # Over the regions of all processes: parts add up.
    assert feature_match_loss(one, other, valid, 8.0).item() == pytest.approx((1 - 0.96 + 2) / 8)
    assert feature_match_loss(one, other, torch.zeros(1, 3, dtype=torch.bool)).item() == 0


def test_a_term_that_matches_compares_features_and_no_predictions() -> None:
    objective = Objective((LossTerm("one", (("plain", "alone"),), kind="match"),))
    student, teacher = {"plain": torch.randn(2, 3, 8)}, {"alone": torch.randn(2, 3, 8)}
    valid = dict.fromkeys(("plain", "alone"), torch.rand(2, 3) < 0.8)
    total, terms = pair_loss({}, {}, valid, objective, features=(student, teacher))
    expected = 1 + reference(student["plain"], teacher["alone"], valid["plain"]) / 2
    assert total.item() == terms["one"].item() == pytest.approx(expected, rel=1e-5)


def test_weights_can_be_replaced_by_name() -> None:
    weighted = OBJECTIVES["both"].weighted({"depositioning": 0.3})
    assert [(term.name, term.weight) for term in weighted.terms] == [("decoupling", 1.0), ("depositioning", 0.3)]
    assert OBJECTIVES["both"].terms[1].weight == 1.0
    with pytest.raises(ValueError, match="no loss term is called byol"):
        OBJECTIVES["both"].weighted({"byol": 1.0})


def test_the_loss_is_the_weighted_sum_of_the_terms_pairs() -> None:
    objective = OBJECTIVES["both"].weighted({"decoupling": 2.0, "depositioning": 0.3})
    predictions = {name: torch.randn(2, 3, 8, requires_grad=True) for name in objective.student_views}
    targets = {name: torch.randn(2, 3, 8) for name in objective.teacher_views}
    valid = {name: torch.rand(2, 3) < 0.8 for name in objective.views}
    total, terms = pair_loss(predictions, targets, valid, objective)

    def sum_of(pairs: tuple[tuple[str, str], ...]) -> float:
        return sum(reference(predictions[s].detach(), targets[t], valid[s] & valid[t]) for s, t in pairs)

    assert terms["decoupling"].item() == pytest.approx(sum_of(DECOUPLING_PAIRS), rel=1e-5)
    assert terms["depositioning"].item() == pytest.approx(sum_of(DEPOSITIONING_PAIRS), rel=1e-5)
    assert not any(term.requires_grad for term in terms.values())
    assert total.item() == pytest.approx(
        2 * terms["decoupling"].item() + 0.3 * terms["depositioning"].item(), rel=1e-5
    )
    # A custom table works as well as a named one.
    name = ("crop_cut_small", "crop")
    single, _ = pair_loss(predictions, targets, valid, Objective((LossTerm("one", (name,)),)), {name: 12})
    matched = (valid[name[0]] & valid[name[1]]).sum().item()
    value = reference(predictions[name[0]].detach(), targets[name[1]], valid[name[0]] & valid[name[1]])
    assert single.item() == pytest.approx(value * matched / 12, rel=1e-5)
