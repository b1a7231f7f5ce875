import copy

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Features, Image, List, Value

from modeling_decodepos.data.schema import COLUMNS, build_features, row_problems, unit_xyxy_to_xywh, xywh_to_unit_xyxy

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def row():
    return {
        "image": {"bytes": b"x", "path": "a.png"},
        "image_id": "a",
        "width": 200,
        "height": 100,
        "objects": {
            "bbox": [[10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 200.0, 100.0]],
            "category": [0, 2],
            "area": [900.0, 20000.0],
            "iscrowd": [False, True],
        },
        "regions": {"bbox": [[1.0, 2.0, 3.0, 4.0]], "score": None, "source": ["grid"]},
        "segmentation": None,
        "license": None,
        "author": None,
        "original_url": None,
        "landing_url": None,
    }


def test_features_are_the_contract():
    features = build_features(NAMES)
    assert tuple(features) == COLUMNS
    assert features["objects"]["bbox"] == List(List(Value("float32"), length=4))
    assert features["objects"]["category"] == List(ClassLabel(names=NAMES))
    assert features["regions"]["score"] == List(Value("float32"))
    assert features["segmentation"] == features["image"] == Image()
    assert Features.from_arrow_schema(features.arrow_schema) == features


def test_a_row_survives_arrow(row):
    table = pa.Table.from_pylist([row], build_features(NAMES).arrow_schema)
    assert table.to_pylist() == [row]


def test_a_box_of_another_length_does_not_fit(row):
    row["objects"]["bbox"][0] = [1.0, 2.0, 3.0]
    with pytest.raises(pa.ArrowInvalid):
        pa.Table.from_pylist([row], build_features(NAMES).arrow_schema)


def test_boxes_convert_by_corner_and_by_their_own_side():
    # A box given by its centre, or a width divided by the height of the image, would give other numbers.
    boxes = xywh_to_unit_xyxy([[10, 20, 30, 40]], width=200, height=100)
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes, [[0.05, 0.2, 0.2, 0.6]])


def test_boxes_come_back():
    boxes = np.random.default_rng(0).uniform(0, 300, (50, 4)).astype(np.float32)
    again = unit_xyxy_to_xywh(xywh_to_unit_xyxy(boxes, 641, 427), 641, 427)
    np.testing.assert_allclose(again, boxes, atol=1e-3)


def test_boxes_beyond_the_image_are_kept_as_they_are():
    np.testing.assert_allclose(xywh_to_unit_xyxy([[-10, 0, 30, 10]], 10, 10), [[-1, 0, 2, 1]])


def test_no_boxes_are_an_empty_array():
    assert xywh_to_unit_xyxy([], 10, 10).shape == (0, 4)
    assert unit_xyxy_to_xywh(np.zeros((0, 4)), 10, 10).shape == (0, 4)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 5\), expected \(N, 4\)"):
        xywh_to_unit_xyxy([[0, 0, 1, 1, 1]], 10, 10)
    with pytest.raises(ValueError, match="0 x 10 px"):
        xywh_to_unit_xyxy([[0, 0, 1, 1]], 0, 10)
    with pytest.raises(ValueError, match="no name twice"):
        build_features(["a", "a"])


def test_a_good_row_has_no_problems(row):
    assert row_problems(row, len(NAMES)) == []
    row["objects"] = {"bbox": [], "category": [], "area": [], "iscrowd": []}
    row["regions"] = {"bbox": [], "score": [], "source": []}
    assert row_problems(row, len(NAMES)) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("image_id",), "", "image_id is empty"),
        (("width",), 0, "two positive numbers"),
        (("objects",), None, "objects is null"),
        (("objects", "category"), [0], "differ in length"),
        (("objects", "category"), [0, 3], "category 3, expected 0 to 2"),
        (("regions", "source"), ["grid", "grid"], "regions differ in length"),
        (("regions", "source"), None, "regions has no source"),
        (("regions", "bbox"), [[1.0, 2.0, 0.0, 4.0]], "has no area"),
        (("regions", "bbox"), [[200.0, 2.0, 5.0, 4.0]], "lies outside the 200 x 100 px image"),
        (("objects", "bbox"), [[1.0, 2.0, float("nan"), 4.0]] * 2, "not finite"),
    ],
)
def test_row_problems_say_what_is_wrong(row, path, value, expected):
    bad = copy.deepcopy(row)
    place = bad
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    problems = row_problems(bad, len(NAMES))
    assert len(problems) == 1
    assert expected in problems[0]
