"""`Embedder` as a function for `datasets.map`."""

import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets.fingerprint import Hasher

from modeling_decodepos.diagnosis.models.load import load_model
from modeling_decodepos.embedding import Embedder, embed, load_features


@pytest.mark.parametrize("workers", [None, 2])
def test_it_maps_a_data_set(workers: int | None, scenes: Path, tmp_path: Path):
    rows = datasets.load_dataset(str(scenes), split="validation", cache_dir=str(tmp_path / "cache"))
    embedder = Embedder("random:resnet_tiny", features="image,regions,patches", size_px=64)
    found = rows.map(embedder, batched=True, batch_size=2, num_proc=workers).with_format("numpy")
    how = {"features": "image,regions,patches", "size_px": 64, "split": "validation"}
    file = embed("random:resnet_tiny", scenes, tmp_path / "f.parquet", **how).path
    image, regions, patches = (load_features(file, kind) for kind in ("image", "regions", "patches"))
    assert np.allclose(np.stack(list(found["image_feature"])), image.feature, atol=1e-5)
    assert np.allclose(np.concatenate(list(found["region_features"])), regions.feature, atol=1e-5)
    assert np.allclose(np.concatenate(list(found["region_boxes"])), regions.box, atol=1e-6)
    assert np.allclose(np.concatenate(list(found["patch_features"])), patches.feature, atol=1e-5)


def test_it_is_known_by_its_weights():
    """What `datasets` keeps of a map is found again with the same weights, and not with others."""
    first, second = Embedder("random:resnet_tiny", size_px=64), Embedder("random:resnet_tiny", size_px=64)
    assert Hasher.hash(first) == Hasher.hash(second)
    assert Hasher.hash(first) != Hasher.hash(Embedder("random:resnet_tiny", size_px=96))
    assert len(pickle.dumps(first)) < 2000  # a worker loads the network by its name
    second.weights = "others"
    assert Hasher.hash(first) != Hasher.hash(second)
    assert pickle.loads(pickle.dumps(first)).model.size_px == 64


def test_another_networks_weights_are_others():
    other = load_model("random:resnet_tiny", size_px=64)
    assert Embedder(other, size_px=64).weights == Embedder("random:resnet_tiny", size_px=64).weights
    other.module.state_dict()["embedder.embedder.normalization.running_mean"][0] += 1  # type: ignore[union-attr]
    assert Embedder(other, size_px=64).weights != Embedder("random:resnet_tiny", size_px=64).weights
