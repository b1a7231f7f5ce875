"""Which annotated boxes are of use, for any that a file may hold."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataset_scripts.pictures.boxes import as_box, box_faults
from modeling_decodepos.data.schema import row_problems
from training.data.sources import usable_boxes

numbers = st.integers() | st.floats() | st.floats(-30, 90) | st.integers(-30, 90) | st.just(10**400)
values = st.none() | st.booleans() | st.text("7a", max_size=2) | st.lists(numbers, max_size=2) | numbers
boxes = st.lists(numbers, min_size=4, max_size=4) | st.lists(values, max_size=5) | values


@given(boxes, st.integers(1, 60), st.integers(1, 60))
def test_any_box_is_of_use_or_has_one_fault(value, width, height):
    box = as_box(value)
    four = isinstance(value, list) and len(value) == 4 and all(type(side) in (int, float) for side in value)
    if not four or not all(abs(side) < 3.4e38 for side in value):
        assert all(map(math.isnan, box))
    else:
        assert box == tuple(map(float, value))
    (fault,) = box_faults([box], width, height)
    objects = {"bbox": [list(np.float32(box))], "category": [0], "area": [1.0], "iscrowd": [False]}
    regions = {"bbox": [], "score": [], "source": []}
    row = {"image_id": "a", "width": width, "height": height, "objects": objects, "regions": regions}
    assert bool(fault) == bool(row_problems(row, 1))  # what a build leaves out, `prepare check` would find
    (usable,) = usable_boxes(np.float32([box]), np.array([height, width]))
    assert not (usable and fault)  # what is trained on, a build keeps
