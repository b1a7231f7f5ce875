"""object_knn and object_linear: models whose features are known give the numbers that they must."""

import pytest
import torch

from tests.training.evaluation.conftest import SIDE, FakeModel, inside, write_squares
from training.evaluation import object_knn, object_linear
from training.evaluation.annotated_images import AnnotatedImages
from training.evaluation.object_knn import ObjectKnnSettings
from training.evaluation.object_linear import ObjectLinearSettings, fit_linear, hold_out

KNN = ObjectKnnSettings(neighbours=(1, 5))


def outside(pixels, box):
    """The colours of the squares that are not in a box."""
    x1, y1, x2, y2 = (box * pixels.shape[-1]).round().int().tolist()
    rest = (pixels - 160).clip(min=0)  # the noise around the squares is darker
    rest[:, y1:y2, x1:x2] = 0
    return rest.mean((1, 2))


def place(pixels, box):
    """Where a box is, and a little of its colour: enough to classify it in its place."""
    x, y = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
    return torch.tensor([x - 0.5, y - 0.5, 1.0])


def test_a_model_of_content_loses_nothing(evaluation):
    measures = object_knn.run(evaluation(FakeModel(inside)), KNN)
    for variant in ("", "recontextualised_", "repositioned_", "alone_"):
        assert measures[f"{variant}micro_k5"].value == 1
        assert measures[f"{variant}class_mean_k5"].value == 1
    assert measures["recontextualised_drop_k5"].value == measures["repositioned_drop_k1"].value == 0
    assert measures["alone_drop_k5"].value == 0
    assert measures["micro_k5"].count == measures["alone_micro_k5"].count == 24
    assert 0.2 < measures["commonest_class"].value < 0.6


def test_groups_of_classes_are_asked_for_too(evaluation, monkeypatch):
    """Red and green are one group: a model that cannot tell them apart knows the group, and half of its classes."""
    monkeypatch.setattr(object_knn, "class_groups", lambda names: {"kind": [0, 0, 1]} if names else {})

    def only_blue(pixels, box):
        red, green, blue = inside(pixels, box)
        return torch.stack([blue > (red + green) / 2, torch.tensor(True)]).float()

    measures = object_knn.run(evaluation(FakeModel(only_blue)), KNN)
    assert measures["kind_micro_k5"].value == measures["kind_class_mean_k5"].value == 1
    assert measures["class_mean_k5"].value < 0.9
    assert measures["repositioned_kind_micro_k5"].value == 1 and measures["repositioned_kind_drop_k5"].value == 0


def swap(rows):
    """Each square gets the class of the other one in its image: only the surroundings tell."""
    for row in rows:
        row["objects"]["category"] = row["objects"]["category"][::-1]
    return rows


def test_a_model_of_surroundings_loses_with_them_and_not_with_the_place(tmp_path, evaluation):
    measures = object_knn.run(evaluation(FakeModel(outside), write_squares(tmp_path / "swapped", swap)), KNN)
    assert measures["micro_k5"].value == 1
    assert measures["recontextualised_drop_k5"].value > 0.3
    assert measures["repositioned_drop_k5"].value == 0
    assert measures["alone_drop_k5"].value > 0.3
    content = object_knn.run(evaluation(FakeModel(inside), tmp_path / "swapped"), KNN)
    assert content["micro_k5"].value < 0.8


def test_a_model_of_places_loses_when_the_place_changes(tmp_path, evaluation):
    def change(rows):
        for row in rows:  # what is on top is red, below is blue: the place tells the class
            row["objects"]["category"] = [0, 2]
        return rows

    measures = object_knn.run(evaluation(FakeModel(place), write_squares(tmp_path / "placed", change)), KNN)
    assert measures["micro_k5"].value > 0.9
    assert abs(measures["recontextualised_drop_k5"].value) < 1e-9
    assert measures["repositioned_drop_k5"].value > 0.2
    assert measures["alone_drop_k5"].value > 0.2


def test_alone_tells_that_surroundings_mislead(evaluation):
    """Who looks at the other square, where there is one, takes an object for one of two."""

    def distracted(pixels, box):
        others = outside(pixels, box)
        return others if others.any() else inside(pixels, box)

    misled = FakeModel(distracted)
    measures = object_knn.run(evaluation(misled), KNN)
    assert measures["alone_micro_k5"].value == 1
    assert measures["micro_k5"].value < 0.9
    assert measures["alone_drop_k5"].value == pytest.approx(measures["micro_k5"].value - 1)


def test_alone_the_object_fills_a_smaller_picture_and_meets_a_gallery_of_such(evaluation):
    shown = []

    def negative_in_small_pictures(pixels, box):
        shown.append((pixels.shape[-1], box.tolist()))
        return inside(pixels, box) * (1 if pixels.shape[-1] == SIDE else -1)

    measures = object_knn.run(evaluation(FakeModel(negative_in_small_pictures)), KNN)
    assert measures["micro_k5"].value == measures["alone_micro_k5"].value == 1  # 0 with the gallery as it is
    alone = [box for side, box in shown if side == round(0.6 * SIDE)]
    assert len(alone) == 2 * (24 + 12) and all(box == [0, 0, 1, 1] for box in alone)
    assert {side for side, _ in shown} == {SIDE, round(0.6 * SIDE)}


def test_an_object_that_fills_its_image_is_in_the_gallery_alone_and_not_among_the_queries(tmp_path, evaluation):
    def change(rows):
        for row in rows[:2]:
            row["objects"]["bbox"][0] = [0.0, 0.0, 60.0, 60.0]
        return rows

    data, shown = write_squares(tmp_path / "large", change), []

    def seen(pixels, box):
        shown.append(pixels.shape[-1])
        return inside(pixels, box)

    measures = object_knn.run(evaluation(FakeModel(seen), data), KNN)
    assert shown.count(round(0.6 * SIDE)) == 2 * 24 + 2 * 12 - 2
    counts = {name: measures[f"{name}micro_k5"].count for name in ("", "recontextualised_", "alone_")}
    assert counts == {"": 24, "recontextualised_": 22, "alone_": 22}


def test_each_image_is_read_once_for_all_variants_and_once_as_a_donor(evaluation, monkeypatch):
    read, decoded = [], []
    pixels = AnnotatedImages.pixels
    monkeypatch.setattr(AnnotatedImages, "pixels", lambda self, place: decoded.append(place) or pixels(self, place))
    picture = AnnotatedImages.picture
    monkeypatch.setattr(AnnotatedImages, "picture", lambda self, *at: read.append(at) or picture(self, *at))
    object_knn.run(evaluation(FakeModel(inside)), KNN)
    assert len(read) == 24 + 12
    assert len(decoded) < len(read) + 24  # objects, of which several share one of 12 donors


def test_neither_batch_size_nor_the_order_of_rows_changes_a_number(tmp_path, evaluation):
    backwards = write_squares(tmp_path / "backwards", lambda rows: rows[::-1])
    first, *others = (
        object_knn.run(evaluation(FakeModel(outside), **changes), KNN)
        for changes in ({}, {"batch_size": 1, "num_workers": 1}, {"batch_size": 64, "data": backwards})
    )
    assert all(first == other for other in others)


def test_ks_beyond_the_gallery_are_left_out_and_said(evaluation):
    found = evaluation(FakeModel(inside))
    measures = object_knn.run(found, ObjectKnnSettings(neighbours=(10, 48, 49, 200), variants=False))
    others = {"commonest_class", "effective_rank"}
    assert set(measures) - others == {"micro_k10", "class_mean_k10", "micro_k48", "class_mean_k48"}
    assert "k = 49, 200 is left out: the gallery holds 48 objects only" in found.notes[0]
    with pytest.raises(ValueError, match="the gallery holds 48 objects, fewer than every k of 100"):
        object_knn.run(found, ObjectKnnSettings(neighbours=(100,)))


def test_one_class_only_is_refused(tmp_path, evaluation):
    def change(rows):
        for row in rows:
            row["objects"]["category"] = [1, 1]
        return rows

    found = evaluation(FakeModel(inside), write_squares(tmp_path / "one", change))
    for run, settings in ((object_knn.run, KNN), (object_linear.run, ObjectLinearSettings())):
        with pytest.raises(ValueError, match="objects of one class only"):
            run(found, settings)


def test_the_linear_probe_finds_content_and_not_more(evaluation):
    settings = ObjectLinearSettings(epochs=40, objects_per_update=16)
    measures = object_linear.run(evaluation(FakeModel(inside)), settings)
    assert measures["micro"].value == measures["class_mean"].value == 1
    noise = object_linear.run(evaluation(FakeModel(lambda pixels, box: torch.ones(3))), settings)
    assert noise["micro"].value <= measures["commonest_class"].value + 1e-9


def test_the_linear_probe_reaches_the_optimum_of_a_second_order_solver():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0, 3.0]) + 4
    labels = ((features - features.mean(0)) / features.std(0) @ torch.randn(5, 3, generator=generator)).argmax(1)
    labels[::7] = 1
    settings = ObjectLinearSettings(epochs=200, objects_per_update=300, weight_decay=1e-2)
    ours = fit_linear(features, labels, 3, 1.0, settings, 0)
    rows = (features - features.mean(0)) / features.std(0, correction=0)
    weight, bias = torch.zeros(5, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(rows @ weight + bias, labels)
        value = value + 0.5e-2 * (weight.square().sum() + bias.square().sum())
        value.backward()
        return value

    solver.step(loss)
    assert torch.allclose(ours.weight, weight, atol=2e-3)
    assert torch.allclose(ours.bias, bias, atol=2e-3)
    assert torch.equal(ours.predict(features), (rows @ weight + bias).argmax(1))


def test_the_learning_rate_is_chosen_on_whole_training_images():
    owners = torch.arange(50).repeat_interleave(4)
    held_out = hold_out(owners, 0).view(50, 4)
    assert held_out.all(1).sum() == 5
    assert not (held_out.any(1) & ~held_out.all(1)).any()
    assert not torch.equal(held_out, hold_out(owners, 1).view(50, 4))
