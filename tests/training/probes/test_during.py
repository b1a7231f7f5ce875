import dataclasses
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from modeling_decodepos.diagnosis import knn_predict
from modeling_decodepos.diagnosis.data.exchange import largest_regions
from modeling_decodepos.modeling_decodepos import DecodePosModel
from training.data.sources import load_split
from training.probes.during import NearestRegions, build_online, embed
from training.probes.in_words import changes_in_words, in_words
from training.probes.neighbours import draw_neighbours
from training.run.model import build_model

LABELLED = {"object_knn", "object_knn_class_mean", "object_knn_class_mean_low", "object_knn_class_mean_high"}
LABELLED |= {"object_knn_same_regions", "object_knn_surroundings", "object_knn_moved"}
WITHOUT_LABELS = {"position_r2", "context_leak", "region_retrieval", "measured_regions", "exchanged_regions"}


@pytest.fixture
def build(make_recipe):
    def build(**changes):
        recipe = make_recipe(**{"measure_steps": 3, "measure_images": 16} | changes)
        return build_online(recipe.data, recipe.run, recipe.views.view_size_px)

    return build


@pytest.fixture
def model(make_recipe) -> DecodePosModel:
    return build_model(make_recipe().model, 0).decodepos


@pytest.fixture
def write_data(scenes, tmp_path):
    """The scenes with changed rows, as a data set of their own; with a validation split or not."""

    def write(change, validation=True):
        for split in ("train", "validation")[: 1 + validation]:
            rows = load_split(scenes, split)
            folder = tmp_path / "changed" / "data"
            folder.mkdir(parents=True, exist_ok=True)
            change(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return str(tmp_path / "changed")

    return write


class Oracle(nn.Module):
    """A model whose features are what a function makes of a picture and a box in pixels."""

    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.function = function

    def forward(self, pixel_values, regions):
        rows = []
        for picture, boxes in zip(pixel_values, regions, strict=True):
            side = picture.shape[-1]
            corners = [[int(v) for v in (box * side).round()] for box in boxes.clamp(0, 1)]
            rows.append([self.function(picture, box) for box in corners])
        most = max(map(len, rows))
        valid = torch.tensor([[k < len(row) for k in range(most)] for row in rows])
        features = torch.zeros(len(rows), most, len(rows[0][0]))
        for image, row in enumerate(rows):
            features[image, : len(row)] = torch.stack(row)
        return SimpleNamespace(region_embeddings=features, valid_regions=valid)


def content(picture, box):
    x1, y1, x2, y2 = box
    return nn.functional.interpolate(picture[None, :, y1:y2, x1:x2], size=(4, 4), mode="area").flatten()


def surroundings(picture, box):
    x1, y1, x2, y2 = box
    rest = picture.clone()
    rest[:, y1:y2, x1:x2] = 0
    return nn.functional.adaptive_avg_pool2d(rest, 4).flatten()


def place(picture, box):
    x1, y1, x2, y2 = box
    return torch.tensor([x1 + x2, y1 + y2, 1.0]) / 128


def constant(picture, box):
    return torch.ones(5)


def test_without_measure_steps_there_is_nothing(build):
    assert build(measure_steps=0) is None


def test_all_measures_are_there_and_the_description_says_where_from(build, model):
    online = build()
    measures = online.measure(model)
    assert set(measures) == LABELLED | WITHOUT_LABELS
    unlimited = {"position_r2", "measured_regions", "exchanged_regions"}
    unlimited |= {"object_knn_class_mean_low", "object_knn_class_mean_high"}
    assert all(0 <= value <= 1 for name, value in measures.items() if name not in unlimited)
    about = online.describe()
    assert about["gallery"].startswith("train: 8 images, ")
    assert about["queries"].startswith("validation: 4 images, ")  # all there are
    labels = online.queries.labels.tolist()
    assert about["classes"] == len(set(labels))
    assert about["chance"]["object_knn"] == pytest.approx(max(map(labels.count, labels)) / len(labels))
    assert len(labels) == sum(map(len, online.queries.boxes)) == len(online.queries.owners)


def test_the_same_seed_measures_the_same_and_another_other_images(build, model):
    first, second = build(), build()
    assert first.measure(model) == second.measure(model)
    assert torch.equal(first.exchanges.moved, second.exchanges.moved)
    assert first.gallery.indices == second.gallery.indices
    assert build(seed=1).gallery.indices != first.gallery.indices


def test_measuring_leaves_model_and_randomness_as_they_were(build, model):
    online = build()
    model.train()
    model.backbone.embedder.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()
    online.measure(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert (np.random.get_state()[1] == numpy_random).all()


def test_features_are_those_of_a_region_alone(build, model):
    """Batching images with different numbers of regions mixes nothing up."""
    side = build().gallery
    model.eval()
    with torch.no_grad():
        every = embed(model, side.pixels, side.boxes)
        owner = int(side.owners[-1])
        alone = embed(model, side.pixels[owner : owner + 1], [side.boxes[owner][-1:]])
    torch.testing.assert_close(every[-1:], alone, atol=1e-5, rtol=1e-4)


def test_measures_tell_content_from_surroundings_and_place(build):
    online = build(measure_images=48)
    of_content, of_surroundings, of_place = (
        online.measure(Oracle(function)) for function in (content, surroundings, place)
    )
    assert of_content["context_leak"] < 0.1
    assert of_surroundings["context_leak"] > 0.9
    assert of_content["region_retrieval"] >= 0.75
    assert of_surroundings["region_retrieval"] == 0
    assert of_place["position_r2"] > 0.95
    assert of_place["region_retrieval"] <= 0.25
    assert of_content["position_r2"] < 0.5


def test_the_three_situations_are_of_the_same_regions_and_compare(build):
    """What follows the content alone names an object in any surroundings."""
    online = build(measure_images=48)
    online = dataclasses.replace(online, gallery=online.queries)  # each object is there to be found
    of_content, of_surroundings = (online.measure(Oracle(function)) for function in (content, surroundings))
    three = [f"object_knn_{name}" for name in ("same_regions", "surroundings", "moved")]
    assert [of_content[name] for name in three] == [1, 1, 1]
    assert of_surroundings[three[0]] == 1 and max(of_surroundings[name] for name in three[1:]) <= 0.5
    # By hand: predictions for the exchanged regions only, mean over their classes.
    model = Oracle(surroundings)
    gallery = embed(model, online.gallery.pixels, online.gallery.boxes)
    swaps, labels = online.exchanges, online.queries.labels[online.exchanges.regions]
    for name, pixels, boxes in (
        ("object_knn_surroundings", swaps.other_surroundings, swaps.boxes),
        ("object_knn_moved", swaps.moved, swaps.moved_boxes),
        ("object_knn_same_regions", online.queries.pixels[swaps.images], swaps.boxes),
    ):
        named = knn_predict(gallery, online.gallery.labels, embed(model, pixels, list(boxes[:, None])), k=20)
        right = [float((named == labels)[labels == kind].double().mean()) for kind in labels.unique()]
        assert of_surroundings[name] == pytest.approx(sum(right) / len(right)), name


def test_the_interval_of_the_class_mean_is_over_images(build):
    online = build(measure_images=48)
    measures = online.measure(Oracle(content))
    low, high = (measures[f"object_knn_class_mean_{end}"] for end in ("low", "high"))
    assert low < measures["object_knn_class_mean"] < high
    # With the regions of each image shown twice there is not more to know.
    queries = online.queries
    labels = torch.cat([part.repeat(2) for part in queries.labels.split([len(rows) for rows in queries.boxes])])
    twice = dataclasses.replace(queries, boxes=[rows.repeat(2, 1) for rows in queries.boxes], labels=labels)
    again = dataclasses.replace(online, queries=twice, exchanges=None).measure(Oracle(content))
    assert again["object_knn_class_mean_high"] - again["object_knn_class_mean_low"] == pytest.approx(high - low)


def test_measures_in_words():
    before = {"object_knn_class_mean": 0.23, "object_knn_class_mean_low": 0.2, "object_knn_class_mean_high": 0.26}
    before |= {"object_knn_moved": 0.191, "region_retrieval": 0.3, "position_r2": -0.02, "context_leak": 0.51}
    assert in_words(before) == (
        "object k-NN (mean over classes) 0.230 (0.20 to 0.26); moved 0.191; place R² -0.020; context leak 0.510"
    )
    after = before | {"object_knn_class_mean": 0.22, "object_knn_moved": 0.2231, "position_r2": -0.2}
    assert "moved 0.223, was 0.191; place R² -0.200, was -0.020" in in_words(after, before)
    assert changes_in_words(after, before) == "gained: moved +0.032\nlost: object k-NN (mean over classes) -0.010"
    assert changes_in_words(before | {"context_leak": 0.2}, before) == "gained: context leak -0.310\nlost: nothing"
    assert in_words({"region_retrieval": 0.3}) == "regions found again before another picture 0.300"
    assert in_words({}) == "nothing could be measured"


def test_a_collapsed_model_measures_nothing(build):
    measures = build().measure(Oracle(constant))
    assert "context_leak" not in measures
    assert measures["position_r2"] <= 0


def test_without_a_validation_split_queries_are_other_training_images(build, model, write_data):
    online = build(data=write_data(lambda rows: rows, validation=False))
    assert online.describe()["queries"].startswith("other images of train, which training sees: 8 images")
    assert not set(online.gallery.indices) & set(online.queries.indices)
    assert set(online.measure(model)) == LABELLED | WITHOUT_LABELS


def test_a_validation_split_that_is_there_is_used_or_refused(build, write_data):
    def spoil(rows):
        objects = {"bbox": [[9.0, 9.0, -5.0, -5.0]], "category": [1], "area": [1.0], "iscrowd": [False]}
        features = rows.features
        wrong = rows.remove_columns("objects").add_column("objects", [objects] * len(rows)).cast(features)
        return wrong if len(rows) < 20 else rows

    with pytest.raises(ValueError, match=r"\[validation\]: 4 of 4 boxes in column objects are no regions"):
        build(data=write_data(spoil))
    proposals = write_data(lambda rows: rows.remove_columns("regions") if len(rows) < 20 else rows)
    assert build(data=proposals, region_source="regions").describe()["queries"].startswith("validation: 4 images")


@pytest.mark.parametrize("drop", ["category", "objects"])
def test_without_classes_the_rest_is_measured(build, model, write_data, drop):
    def strip(rows):
        if drop == "objects":
            return rows.remove_columns("objects")  # proposals are left
        boxes = [{"bbox": row["bbox"]} for row in rows["objects"]]
        return rows.remove_columns("objects").add_column("objects", boxes)

    online = build(data=write_data(strip))
    assert set(online.measure(model)) == WITHOUT_LABELS
    assert online.describe()["classes"] == 0
    found = online.neighbours(model)
    assert draw_neighbours(online, found, found).size[0] > 0


def test_small_regions_and_crowds_are_left_out(build, write_data):
    boxes = [[0.0, 0.0, 30.0, 6.0], [0.0, 0.0, 32.0, 32.0], [10.0, 10.0, 40.0, 40.0], [20.0, 4.0, 6.5, 6.5]]

    def change(rows):
        count = len(rows)
        objects = {"bbox": boxes, "category": [1, 2, 3, 4], "area": [1.0] * 4, "iscrowd": [False, True, False, False]}
        features = rows.features
        rows = rows.remove_columns("objects").add_column("objects", [objects] * count)
        return rows.cast(datasets.Features(features))

    online = build(data=write_data(change))
    assert online.gallery.labels.unique().tolist() == [3, 4]  # sides of 64 pixels: 6 are too few, 6.5 are enough
    assert {len(boxes) for boxes in online.gallery.boxes} == {2}
    torch.testing.assert_close(online.gallery.boxes[0][0] * 64, torch.tensor([10.0, 10.0, 50.0, 50.0]))


def test_images_that_cannot_be_read_are_passed_over(build, write_data):
    def spoil(rows):
        images = [
            {"bytes": b"no image" if number % 2 else image["bytes"], "path": None}
            for number, image in enumerate(rows["image"])
        ]
        return rows.remove_columns("image").add_column("image", images)

    online = build(data=write_data(spoil))
    assert len(online.gallery.indices) == 8
    assert all(index % 2 == 0 for index in [*online.gallery.indices, *online.queries.indices])


def test_too_little_to_measure_on_is_told(build, write_data):
    def strip(rows):
        empty = {"bbox": [[0.0, 0.0, 1.0, 1.0]], "category": [0], "area": [1.0], "iscrowd": [False]}
        return rows.remove_columns("objects").add_column("objects", [empty] * len(rows))

    with pytest.raises(ValueError, match="measure_steps: train has 0 readable images .* Set measure_steps to 0"):
        build(data=write_data(strip))


def test_neighbours_are_the_nearest_and_are_drawn_with_their_crops(build, model):
    online = build(measure_images=48)
    found = online.neighbours(model, queries=3, count=4)
    assert NearestRegions.from_dict(found.to_dict()) == found
    assert len(found.queries) == len(found.nearest) == 3
    assert set(found.queries) <= set(largest_regions(online.queries))
    assert len({int(online.queries.labels[query]) for query in found.queries}) == 3
    # A query that is in the gallery is its own neighbour, and the picture shows it twice.
    twin = type(online)(online.queries, online.queries, online.exchanges, online.class_names)
    itself = twin.neighbours(model, queries=3, count=4)
    assert [row[0] for row in itself.nearest] == list(itself.queries)
    picture = np.asarray(draw_neighbours(twin, None, itself))
    tile, first = picture[60:200, 40:180], picture[60:200, 340:480]
    assert (tile[10:-10, 10:-10] == first[10:-10, 10:-10]).all()
    assert tile.std() > 5
    assert (first[0, 0] == [0x15, 0x80, 0x3D]).all()  # framed in green: of the query's class


def test_before_and_after_are_drawn_side_by_side_and_must_match(build, model):
    online = build(measure_images=48)
    found = online.neighbours(model, queries=3)
    assert draw_neighbours(online, found, found).width > draw_neighbours(online, None, found).width
    with pytest.raises(ValueError, match="same query regions"):
        draw_neighbours(online, online.neighbours(model, queries=2), found)
    with pytest.raises(ValueError, match="before or after"):
        draw_neighbours(online, None, None)
    assert isinstance(draw_neighbours(online, found, None), Image.Image)
