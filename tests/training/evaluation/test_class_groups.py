"""Groups of classes are those of the lists that they belong to."""

import json

import pytest

from modeling_decodepos.data.scenes import CLASS_NAMES
from tests.real_data import COCO_SAMPLE
from training.evaluation.class_groups import class_groups

COCO = COCO_SAMPLE / "annotations" / "instances_val2017.json"


def test_scenes_have_shapes_and_textures():
    groups = class_groups(CLASS_NAMES)
    for word, kind in ((0, "texture"), (1, "shape")):
        words = [name.split()[word] for name in CLASS_NAMES]
        assert len(set(zip(words, groups[kind], strict=True))) == len(set(words)) == len(set(groups[kind]))


def test_lists_that_are_not_known_have_no_groups():
    assert class_groups(None) == {}
    assert class_groups(("person", "car")) == {}


@pytest.mark.skipif(not COCO.is_file(), reason="no annotations of COCO")
def test_supercategories_are_those_of_the_annotations():
    categories = json.loads(COCO.read_text())["categories"]
    groups = class_groups([category["name"] for category in categories])["supercategory"]
    pairs = {(category["supercategory"], group) for category, group in zip(categories, groups, strict=True)}
    assert len(pairs) == len(set(groups)) == 12
