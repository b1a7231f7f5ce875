"""Features in files: those of the diagnosis, where the cells look, whole or not at all, with what they are of."""

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor, nn

from modeling_decodepos.diagnosis.data.exchange import resize
from modeling_decodepos.diagnosis.models.features import read_features, read_whole
from modeling_decodepos.diagnosis.models.load import load_model
from modeling_decodepos.embedding import embed, load_features
from modeling_decodepos.embedding.run import _map_ahead
from modeling_decodepos.imagenet import IMAGE_MEAN, IMAGE_STD
from tests.embedding.conftest import write_table
from tests.forks import ROOT, python
from tests.hub_server import HubServer, run_python

OURS = str(ROOT / "model_cards" / "weights" / "decodepos-scenes-mini")
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def colours(pixels: Tensor) -> Tensor:
    """A network that averages colours in cells of 8 pixels, in [0, 1]."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return F.avg_pool2d(pixels * std + mean, 8)


# -------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("reading", ["own", "known"])
@pytest.mark.parametrize("model", ["random:resnet_tiny", "random:vit_tiny", OURS])
def test_they_are_the_features_of_the_diagnosis(model: str, reading: str, scenes: Path, tmp_path: Path):
    how: dict[str, Any] = {"split": "validation", "size_px": 96, "reading": reading}
    path = embed(model, scenes, tmp_path / "f.parquet", **how).path
    found = load_features(path, "regions")
    import pyarrow.parquet as parquet

    (file,) = (scenes / "data").glob("validation*")
    rows = parquet.read_table(file).to_pylist()
    pixels, boxes = [], []
    for row in rows:
        picture = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        pixels.append(resize(torch.from_numpy(picture.copy()).permute(2, 0, 1), 96, 96))
        x, y, w, h = np.array(row["objects"]["bbox"], np.float64).T / 64
        boxes.append(torch.from_numpy(np.stack([x, y, x + w, y + h], 1)).float().clamp(0, 1))
    network = load_model(model, size_px=96, reading=reading)
    stage = read_features(network, torch.stack(pixels), boxes, batch_size=4)[-1]
    assert torch.allclose(torch.from_numpy(found.feature.copy()), stage.regions, atol=1e-5)
    assert np.allclose(found.box, torch.cat(boxes), atol=1e-6)
    assert found.image_id == [row["image_id"] for row in rows for _ in row["objects"]["bbox"]]
    whole = read_whole(network, torch.stack(pixels), batch_size=4)[-1].regions
    assert torch.allclose(torch.from_numpy(load_features(path, "image").feature.copy()), whole, atol=1e-5)


def test_labels_are_names_of_classes(scenes: Path, tmp_path: Path):
    import pyarrow.parquet as parquet

    found = load_features(embed(colours, scenes, tmp_path / "f.parquet", split="train").path, "regions")
    (file,) = (scenes / "data").glob("train*")
    table = parquet.read_table(file)
    about = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["objects"]["category"]
    names = about["feature"]["names"]
    categories = [k for row in table["objects"].to_pylist() for k in row["category"]]
    assert found.label == [names[k] for k in categories]


@pytest.mark.parametrize(("reading", "is_exact"), [("known", True), ("aligned", False)])
def test_patches_lie_where_their_cells_look(reading: str, is_exact: bool, tmp_path: Path):
    """A cell of a padded, strided convolution sees the pixel that it is centred on, and not the middle of a patch."""
    network = nn.Conv2d(3, 1, 3, stride=8, padding=1, bias=False)
    network.weight.data.zero_()
    network.weight.data[0, 0, 1, 1] = IMAGE_STD[0]
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3)).copy()
    folder = write_table(tmp_path / "data", [{"image": ramp}], ["thing"])
    file = embed(network, folder, tmp_path / "f.parquet", features="patches", size_px=64, reading=reading).path
    found = load_features(file)
    seen = (found.feature[:, 0] + IMAGE_MEAN[0]) * 255  # the column that each cell sees
    centres = (found.box[:, 0] + found.box[:, 2]) / 2 * 64 - 0.5
    assert len(seen) == 64 and np.allclose(seen, centres, atol=0.01) == is_exact


def test_a_mask_counts_its_own_pixels_only(tmp_path: Path):
    pixels, labels = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    pixels[:, 32:] = 200  # half of what the second box sees
    labels[8:24, 8:24], labels[8:56, 32:56], labels[60:, 60:] = 1, 3, 255
    rows = [{"image": pixels, "segmentation": labels}, {"image": pixels}]
    folder = write_table(tmp_path / "data", rows, ["cup", "dog", "kite"])
    file = embed(colours, folder, tmp_path / "f.safetensors", regions="masks", size_px=64).path
    found = load_features(file, "regions")
    assert found.label == ["cup", "kite"] and found.image_id == ["p0", "p0"]
    assert found.box.tolist() == [[0.125, 0.125, 0.375, 0.375], [0.5, 0.125, 0.875, 0.875]]
    assert np.allclose(found.feature, [[0.0] * 3, [200 / 255] * 3], atol=1e-5)


def test_proposals_and_a_grid(tmp_path: Path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    row = {"image": pixels, "bbox": [[0, 0, 32, 32]], "proposals": [[32, 0, 32, 64], [0, 0, 64, 64]]}
    folder = write_table(tmp_path / "data", [row], ["cup"])
    boxes = {}
    for regions in ("auto", "proposals", "grid"):
        how: dict[str, Any] = {"features": "regions", "regions": regions, "grid": 2, "size_px": 64}
        file = embed(colours, folder, tmp_path / f"{regions}.parquet", **how).path
        boxes[regions] = load_features(file).box.tolist()
    assert boxes["auto"] == [[0, 0, 0.5, 0.5]]
    assert boxes["proposals"] == [[0.5, 0, 1, 1], [0, 0, 1, 1]]
    assert boxes["grid"] == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]


def test_boxes_fit_large_pictures_that_tell_no_size(tmp_path: Path):
    """A large JPEG is decoded smaller where nothing refers to its pixels."""
    pixels = np.zeros((640, 640, 3), np.uint8)
    pixels[:, 320:] = 200
    row = {"image": pixels, "format": "JPEG", "bbox": [[320, 0, 320, 640]]}
    folder = write_table(tmp_path / "data", [row], ["cup"], without=("width", "height"))
    found = load_features(embed(colours, folder, tmp_path / "f.parquet", size_px=32).path, "regions")
    assert found.box.tolist() == [[0.5, 0, 1, 1]] and found.feature.min() > 0.7


def test_maps_and_half_precision(scenes: Path, tmp_path: Path):
    how: dict[str, Any] = {"features": "maps,patches", "split": "validation", "size_px": 64}
    full = load_features(embed("random:resnet_tiny", scenes, tmp_path / "a.safetensors", **how).path)
    half = load_features(embed("random:resnet_tiny", scenes, tmp_path / "b.safetensors", fp16=True, **how).path)
    assert full.maps is not None and full.maps.shape == (4, 256, 2, 2) and full.feature.shape == (16, 256)
    assert np.array_equal(full.maps.reshape(4, 256, 4).transpose(0, 2, 1).reshape(16, 256), full.feature)
    assert half.maps is not None and half.maps.dtype == half.feature.dtype == np.float16
    assert np.allclose(half.maps, full.maps, rtol=1e-3, atol=1e-3)
    assert load_file(tmp_path / "a.safetensors").keys() >= {"maps", "feature", "box"}  # the format's own reader


def test_a_stage_by_name(scenes: Path, tmp_path: Path):
    how: dict[str, Any] = {"features": "image", "split": "validation", "size_px": 64}
    found = load_features(embed("random:resnet_tiny", scenes, tmp_path / "a.parquet", stage="stage2", **how).path)
    assert found.feature.shape == (4, 64) and found.settings["stage"] == "stage2"
    with pytest.raises(ValueError, match="no stage 'stage9'; it has stage1, stage2, stage3, stage4"):
        embed("random:resnet_tiny", scenes, tmp_path / "b.parquet", stage="stage9", **how)


# ----------------------------------------------------------------------------------------------------------- the file

SLOW = """
import time
import torch.nn.functional as F

pictures = []

def network(pixels):
    pictures.append(len(pixels))
    time.sleep(0.05)
    return F.avg_pool2d(pixels, 8)
"""


@pytest.mark.parametrize("name", ["f.parquet", "f.safetensors"])
def test_killed_and_run_again_it_ends_in_the_same_file(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow", raising=False)
    kinds = "image,regions,patches" + (",maps" if name.endswith("safetensors") else "")
    words = ["slow:network", "--data", photos, "--size_px", "32", "--features", kinds, "--output", f"cut/{name}"]
    process = python().start(["-m", "modeling_decodepos", "embed", *words], tmp_path, ENV)
    parts = tmp_path / "cut" / f".{name}.parts"
    deadline = time.monotonic() + 60
    while not list(parts.glob("0*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(list(parts.glob("0*.safetensors"))) < 3 and not (tmp_path / "cut" / name).exists()

    (parts / ".000002.safetensors.1.part").write_bytes(b"what a process leaves that is killed while it writes")
    how: dict[str, Any] = {"features": kinds, "size_px": 32}
    again = embed("slow:network", photos, tmp_path / "cut" / name, **how)
    slow = importlib.import_module("slow")
    assert again.is_new and sum(slow.pictures) <= 1 + 150 - 63  # the one that it was tried with, and what was missing
    whole = embed("slow:network", photos, tmp_path / "whole" / name, **how)
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [name]
    parts.mkdir()  # as after a kill between the two last steps
    assert not embed("slow:network", photos, again.path, **how).is_new and not parts.exists()


def test_other_settings_are_refused(scenes: Path, tmp_path: Path):
    how: dict[str, Any] = {"features": "image", "split": "validation"}
    embed("random:resnet_tiny", scenes, tmp_path / "f.parquet", size_px=64, **how)
    with pytest.raises(ValueError, match=r"f.parquet was made with size_px 64, but now size_px is 96. Give another"):
        embed("random:resnet_tiny", scenes, tmp_path / "f.parquet", size_px=96, **how)
    other = load_model("random:resnet_tiny", size_px=64)
    next(other.module.parameters()).data.mul_(2)  # type: ignore[union-attr]
    other.name = "resnet_tiny"
    with pytest.raises(ValueError, match="f.parquet was made with (model|weights)"):
        embed(other, scenes, tmp_path / "f.parquet", size_px=64, **how)


def test_pictures_that_cannot_be_read_are_named_and_ids_stay(photos: Path, tmp_path: Path):
    found = embed(colours, photos, tmp_path / "f.parquet", features="image", size_px=32)
    assert found.about["pictures"] == 150 and "070.jpg" in found.about["broken"][0]
    table = load_features(found.path)
    assert "a/070.jpg" not in table.image_id and len(set(table.image_id)) == 150
    for image_id, feature in list(zip(table.image_id, table.feature, strict=True))[60:90]:
        pixels = np.asarray(Image.open(photos / image_id)) / 255
        assert np.allclose(feature, pixels.mean((0, 1)), atol=1e-4)


def test_few_pictures_wait_to_be_embedded():
    """The memory that a run takes does not grow with its pictures."""
    from concurrent.futures import ThreadPoolExecutor

    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield taken

    with ThreadPoolExecutor(2) as pool:
        results = _map_ahead(pool, lambda item: 2 * item, endless(), 16)
        assert [next(results) for _ in range(100)] == list(range(2, 202, 2))
    assert taken <= 117


def test_safetensors_need_no_pyarrow(photos: Path, tmp_path: Path):
    code = """
import sys
sys.modules["pyarrow"] = sys.modules["datasets"] = None
from modeling_decodepos.__main__ import main
call = ["embed", "random:resnet_tiny", "--data", "photos", "--size_px", "32", "--features", "image,maps"]
assert main([*call, "--output", "f.safetensors"]) == 0
assert main(["embed", "random:resnet_tiny", "--data", "photos", "--output", "f.parquet"]) == 2
assert main(["embed", "random:resnet_tiny", "--data", "org/name", "--output", "g.safetensors"]) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'decodepos[data]', or give an --output that ends in .safetensors" in done.stderr
    assert "org/name is no folder, and data sets of the Hub need datasets" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--features", "image,maps"], "maps do not go into f.parquet"),
        (["--features", "boxes"], "features is boxes; expected some of image, regions, patches, maps"),
        (["--regions", "masks"], "regions is 'masks', but the data has only the columns image"),
        (["--split", "test"], "has no split 'test'; it has train"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    words: list[str], said: str, photos: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
):
    from modeling_decodepos.embedding.command import main

    monkeypatch.chdir(tmp_path)
    assert main(["random:resnet_tiny", "--data", str(photos), "--output", "f.parquet", "--size", "32", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*f.parquet*"))


@pytest.mark.parametrize("name", ["f.parquet", "f.safetensors"])
def test_half_precision_comes_back_and_so_does_nothing(name: str, scenes: Path, tmp_path: Path):
    how: dict[str, Any] = {"features": "image", "split": "validation", "size_px": 64, "fp16": True}
    path = embed("random:resnet_tiny", scenes, tmp_path / name, **how).path
    found, none = load_features(path, "image"), load_features(path, "patches")
    assert found.feature.dtype == np.float16 and found.feature.shape == (4, 256) and found.box.shape == (4, 4)
    assert none.feature.shape == (0, 256) and none.box.shape == (0, 4) and none.kind == none.label == []


@pytest.mark.slow
def test_a_data_set_of_the_hub_gives_what_its_files_give(hub: HubServer, scenes: Path, tmp_path: Path):
    hub.add_repo("org/scenes", scenes, "dataset")
    env = hub.env(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
    code = """
from modeling_decodepos.__main__ import main
call = ["embed", "random:resnet_tiny", "--size_px", "64", "--split", "validation", "--output", "there.parquet"]
assert main([*call, "--data", "org/nothing"]) == 2
assert main([*call, "--data", "org/scenes"]) == 0
"""
    said = run_python(f"import sys\nsys.stderr = sys.stdout\n{code}", env, cwd=tmp_path)
    assert "org/nothing: no such folder, and it cannot be had from the Hub" in said
    here = embed("random:resnet_tiny", scenes, tmp_path / "here.parquet", size_px=64, split="validation")
    ours, theirs = load_features(here.path), load_features(tmp_path / "there.parquet")
    assert np.array_equal(ours.feature, theirs.feature) and ours.label == theirs.label
    assert np.array_equal(ours.box, theirs.box) and ours.image_id == theirs.image_id
