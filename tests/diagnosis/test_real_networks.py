"""A network trained on ImageNet is told from its random weights on real photos, with classes and without."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.real_backbones.efficientnet_lite import FOLDER_VARIABLE
from modeling_decodepos.diagnosis import diagnose
from modeling_decodepos.diagnosis.statistics.estimates import overlap
from tests.real_data import COCO_MULTIOBJECT

NETWORK = Path(os.environ.get(FOLDER_VARIABLE, "/nowhere")) / "mobilenet-v2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COCO_MULTIOBJECT.is_dir(), reason="no folder with real photos"),
    pytest.mark.skipif(not NETWORK.is_dir(), reason=f"{FOLDER_VARIABLE} names no folder with mobilenet-v2"),
]


def without_classes(folder: Path) -> Path:
    """The same photos, their objects without categories."""
    for file in (COCO_MULTIOBJECT / "data").glob("*.parquet"):
        table = pq.read_table(file, columns=["image", "image_id", "width", "height", "objects"])
        rows = [{k: v for k, v in row.items() if k != "category"} for row in table["objects"].to_pylist()]
        bare = table.replace_schema_metadata(None).drop_columns("objects").append_column("objects", [rows])
        pq.write_table(bare, folder / file.name, row_group_size=100)
    return folder


@pytest.mark.parametrize("has_classes", [True, False])
def test_a_trained_network_is_told_from_random_weights(tmp_path, has_classes):
    data = COCO_MULTIOBJECT if has_classes else without_classes(tmp_path)
    found = diagnose(str(NETWORK), str(data), measures="object_knn,same_object").models[0]
    keys = ("knn_clean", "knn_clean_class_mean", "knn_alone_class_mean") if has_classes else ("same_alone",)
    for key in keys:
        trained, random = found.last.numbers[key], found.random[-1].numbers[key]
        assert trained.low > random.high and not overlap(trained, random), key
