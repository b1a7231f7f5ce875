"""A diagnosis from end to end: what comes out, and what is said when something is missing or wrong."""

import base64
import copy
import dataclasses
import importlib
import io
import json
import math
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from benchmarks.known_cases import own_pixels, place_only, scenes, small_resnet, small_vit, with_place
from modeling_decodepos import DecodePosConfig, DecodePosForPreTraining, DecodePosModel
from modeling_decodepos.batch_norms import batch_norms
from modeling_decodepos.diagnosis import diagnose, load_debias, load_model, save_report
from modeling_decodepos.diagnosis.command import build_parser, main
from modeling_decodepos.diagnosis.data.photos import build_photo_data
from modeling_decodepos.diagnosis.data.probe import ProbeData, RegionImages
from modeling_decodepos.diagnosis.measures.debias import StrengthPoint
from modeling_decodepos.diagnosis.measures.evaluate import StageResult, evaluate
from modeling_decodepos.diagnosis.measures.metrics import MEASURES, METRICS
from modeling_decodepos.diagnosis.measures.padding import PADDING_MODES, padded_with
from modeling_decodepos.diagnosis.measures.position import positional_subspace, probe_position, probe_regions
from modeling_decodepos.diagnosis.models.features import read_features, read_whole
from modeling_decodepos.diagnosis.report.figures import cell_shift, colorize, lay_cells
from modeling_decodepos.diagnosis.report.verdicts import compare, find_rows, is_guessing, summarise
from modeling_decodepos.diagnosis.results import ModelResult, describe_debias
from modeling_decodepos.diagnosis.run import fit_debias
from modeling_decodepos.diagnosis.statistics.estimates import Estimate
from tests.modeling.drawing.test_page import Reader, classes_without_a_style

FEW = 8


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def first_images(pictures: RegionImages, count: int) -> RegionImages:
    rows = sum(map(len, pictures.boxes[:count]))
    labels = None if pictures.labels is None else pictures.labels[:rows]
    return RegionImages(pictures.pixels[:count], pictures.boxes[:count], labels)


def without_classes(data: ProbeData) -> ProbeData:
    return dataclasses.replace(
        data,
        gallery=dataclasses.replace(data.gallery, labels=None),
        queries=dataclasses.replace(data.queries, labels=None),
        groups=None,
    )


class NamedNet(nn.Sequential):
    pass


@pytest.fixture(scope="module")
def diagnosis():
    model = load_model(small_resnet(), size_px=64, name="<script>alert(1)</script>")
    return diagnose([model, own_pixels], scenes(), size_px=64)


def test_the_layer_is_described_by_what_it_does(diagnosis):
    debias = diagnosis.models[0].debias
    none, some = [StrengthPoint(0.0, 0.5, 0.0)], [StrengthPoint(0.0, 0.5, 0.0), StrengthPoint(0.3, 0.6, 0.01)]
    expected = {
        (0, False): "nothing but the mean subtracted: more did not help on the gallery",
        (1, False): "1 positional direction removed",
        (2, True): "2 positional directions removed, changes shrunk with strength 0.3",
    }
    for (count, shrunk), text in expected.items():
        assert describe_debias(dataclasses.replace(debias, count=count, curve=some if shrunk else none)) == text


def test_everything_on_the_page_has_a_style_and_stands_once(diagnosis, tmp_path):
    document = save_report(diagnosis, tmp_path).read_text(encoding="utf-8")
    assert not classes_without_a_style(document)
    assert "asked about" not in document
    headings = re.findall(r'<h2 id="(part\d)">(.*?)</h2>', document)
    themes = ["Place", "Surroundings", "Objects", "Long tokens", "A remedy"]
    assert [name for _, name in headings] == ["Pictures", *themes, "Every number", "How it was measured"]
    assert re.findall(r'<a href="#(part\d)">(.*?)</a>', document) == headings
    assert document.index("What was found") < document.index("<nav>") < document.index("<h2")
    read = " ".join(Reader(document).texts)
    for metric in METRICS:
        chart = f"<figcaption><strong>{metric.title}</strong>"
        assert document.count(chart) == 1 or f"{metric.title}: not measured" in read, metric.key
    for name, text in MEASURES.items():
        assert name == "debias" or text.partition(": ")[2] in read
    for title in ("Drift by distance to the border", "Share of place in the first k directions", "Use this layer"):
        assert title in read
    assert "No random weights beside own_pixels" in read


def test_controls_stand_in_the_chart_of_their_model(diagnosis, tmp_path):
    document = save_report(diagnosis, tmp_path).read_text(encoding="utf-8")
    chart = next(part for part in document.split("<figure ") if "<figcaption><strong>Context leak<" in part)
    model, function = diagnosis.models
    assert len(model.stages) > 1 and len(function.stages) == 1 and function.random is None
    looks = re.findall(r'<path class="line ([^"]*)"', chart)
    assert looks == ["s0 dashed", "s0 dotted", "s0"]  # the function has one stage: dots
    assert set(re.findall(r'<circle class="dot (s1[^"]*)" [^>]*r="3"', chart)) == {"s1 dotted", "s1"}
    shown = [float(y) for y in re.findall(r'<circle class="dot strip s0 dashed"[^>]*><title>[^<]*: ([\d.]+)<', chart)]
    assert shown == pytest.approx([stage.numbers["context_leak"].value for stage in model.random], rel=1e-3)


def rated(value, control, better):
    return compare(Estimate(*value), Estimate(*control), better)


def test_a_verdict_needs_intervals_that_do_not_meet():
    low, high = (0.2, 0.1, 0.3), (0.6, 0.5, 0.7)
    assert rated(low, high, "lower") == rated(high, low, "higher") == ("better than random", "good")
    assert rated(low, high, "higher") == rated(high, low, "lower") == ("worse than random", "bad")
    assert rated(high, low, "neither") == ("higher than random", "plain")
    assert rated((0.45, 0.3, 0.6), high, "lower") == ("like random", "plain")
    assert rated((0.1,), high, "lower") == rated(low, (0.6,), "lower") == ("", "plain")


def answer(diagnosis, title, **numbers):
    """What is said of a model whose last stage has these numbers."""
    model = diagnosis.models[0]
    stage = dataclasses.replace(model.last, numbers=model.last.numbers | numbers)
    model = dataclasses.replace(model, stages=[*model.stages[:-1], stage])
    (row,) = [row for row in find_rows([model]) if row.title == title]
    return row.find(model)


@pytest.mark.parametrize(
    ("lost", "verdict"),
    [
        ((0.3, 0.1, 0.5), "they help"),
        ((-0.3, -0.5, -0.1), "better without"),
        ((0.1, -0.1, 0.3), "no clear difference"),
    ],
)
def test_surroundings_help_or_mislead_where_the_difference_is_clear(diagnosis, lost, verdict):
    told = {"knn_clean_class_mean": Estimate(0.5, 0.4, 0.6), "knn_prior_class_mean": Estimate(0.1)}
    found = answer(diagnosis, "Do surroundings help?", knn_lost_alone=Estimate(*lost), **told)
    assert verdict == found.verdict
    value, low, high = (f"{round(100 * share)}".replace("-", "\N{MINUS SIGN}") for share in lost)
    assert found.beside == f"difference {value} ({low} to {high}) points"
    found = answer(diagnosis, "Do other surroundings mislead?", knn_lost_recontextualised=Estimate(*lost), **told)
    assert ("mislead" in found.verdict) == (lost[1] > 0)
    guessed = told | {"knn_prior_class_mean": Estimate(0.45)}
    found = answer(diagnosis, "Do surroundings help?", knn_lost_alone=Estimate(*lost), **guessed)
    assert found.verdict == ("cannot be told" if lost[1] < 0 < lost[2] else verdict)


def test_place_leaks_where_it_is_read_better_than_from_colours(diagnosis):
    own = answer(diagnosis, "Does place leak?", position_blank=Estimate(0.6, 0.5, 0.7))
    assert own.verdict == "it leaks" and own.tone == "bad"
    assert answer(diagnosis, "Does place leak?", position_blank=Estimate(0.0, 0.0, 0.1)).verdict == "not found"
    assert answer(diagnosis, "Does place leak?", position_blank=Estimate(0.6)).verdict == "not found"  # no interval


def test_stages_of_different_kinds_are_not_put_side_by_side(tmp_path):
    backbone = ResNetConfig(hidden_sizes=[8, 8, 8, 12], depths=[1, 1, 1, 1], embedding_size=8, layer_type="basic")
    ours = DecodePosModel(DecodePosConfig(backbone_config=backbone)).eval()
    found = diagnose([ours, small_resnet()], scenes(), size_px=64, measures="context", random_seeds=1)
    page = save_report(found, tmp_path).read_text(encoding="utf-8")
    assert "not the same kind of thing" in page and "after regions, stage3" in page
    assert page.count("<figcaption><strong>Context leak</strong>") == 2
    alike = dataclasses.replace(found, models=found.models[1:] * 2)
    page = save_report(alike, tmp_path).read_text(encoding="utf-8")
    assert "not the same kind" not in page and page.count("<figcaption><strong>Context leak</strong>") == 1


def test_features_that_say_nothing_get_no_verdict(tmp_path):
    found = diagnose(place_only, scenes(), size_px=64, measures="position,context")
    page = save_report(found, tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'class="verdict (\w+)">([^<]*)<', page) == [("bad", "content-blind")]
    assert "Content-blind" in page and "Content-blind" in summarise(found.models[0])


@pytest.mark.parametrize("reading", ["aligned", "known"])
def test_maps_are_drawn_where_their_cells_lie(reading):
    model = load_model(middle_pixels(3), size_px=64, reading=reading)
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    pixels[..., 32, 32] = 255  # the pixel that cell 4 of a side looks at
    (features,) = read_features(model, pixels, cells=True)
    lit = colorize(features.cells[0].mean(1).view(features.grid))
    result = ModelResult("m", model, [StageResult("map")], None, [], None, None, 0.0)
    bright = (lay_cells(lit, cell_shift(result.model, 0, features), side=64) == lit.max((0, 1))).all(2)
    rows = bright.any(1).nonzero()[0]
    assert len(rows) == 8
    # Cells of strided convolutions lie on the first pixel of their eight: half of what is lit is before it.
    assert rows[0] == (32 if reading == "aligned" else 28) and bright.sum() == 64


def test_the_click_finds_the_cells_that_are_drawn(diagnosis, tmp_path):
    document = save_report(diagnosis, tmp_path).read_text(encoding="utf-8")
    found = re.findall(r'data-grid="([^"]*)" data-cosines="([^"]*)"', document)
    assert len(found) == 2 * len(diagnosis.models)
    for grid, packed in found:
        height, width, right, down = map(float, grid.split())
        cosines = np.frombuffer(base64.b64decode(packed), np.uint8).reshape(int(height * width), -1)
        assert (cosines.diagonal() == 255).all() and (cosines == cosines.T).all() and right == down == 0


def test_the_report_holds_every_number_with_its_protocol(diagnosis, tmp_path):
    page = save_report(diagnosis, tmp_path).read_text(encoding="utf-8")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    model, function = report["models"]
    assert [stage["stage"] for stage in model["stages"]] == ["stage1", "stage2", "stage3"]
    for stage in model["stages"]:
        assert set(stage["numbers"]) <= set(report["protocols"])
        assert all(v["value"] is not None or v["reason"] for v in stage["numbers"].values())
    assert model["controls"]["random_init"] is not None and function["controls"]["random_init"] is None
    assert set(model["stages"][-1]["padding"]) == set(PADDING_MODES) and not function["stages"][-1]["padding"]
    assert report["settings"]["seed"] == 0 and report["settings"]["picture_size_px"] == 64
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page  # whatever a model is called
    assert "http" not in page.replace("http-equiv", "")
    for name in ("blank_pages", "influence", "swaps"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.width > 600


def test_numbers_do_not_depend_on_the_batch():
    model = load_model(small_resnet(), size_px=64)
    data = scenes()
    one = read_features(model, data.queries.pixels[:6], data.queries.boxes[:6], cells=True, batch_size=1)
    other = read_features(model, data.queries.pixels[:6], data.queries.boxes[:6], cells=True, batch_size=4)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.regions, b.regions, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.cells, b.cells, rtol=1e-4, atol=1e-5)


def test_two_runs_give_the_same_report():
    found = [diagnose(own_pixels, scenes(), size_px=64, measures="position,context,object_knn") for _ in range(2)]
    first, second = (item.to_dict()["models"][0]["stages"] for item in found)
    assert first == second


def test_differences_of_models_are_those_of_the_same_pictures():
    models = [dataclasses.replace(with_place(strength), name=f"{strength}") for strength in (0.5, 0.6)]
    found = diagnose(models, scenes(), size_px=64, random_seeds=1, measures="position,context")
    (entry,) = found.to_dict()["differences"]
    assert (entry["model"], entry["from"]) == ("0.6", "0.5")
    before, after = (model.last.numbers for model in found.models)
    assert entry["numbers"].keys() == before.keys()
    change, one, other = entry["numbers"]["context_leak"], before["context_leak"], after["context_leak"]
    assert change["value"] == pytest.approx(other.value - one.value)
    assert change["high"] - change["low"] < min(one.high - one.low, other.high - other.low)
    found.settings["seeds"] = 2
    assert found.to_dict()["differences"] == []


def test_removing_planted_place_costs_nothing_else():
    model = with_place(0.5)
    found = diagnose(model, scenes(), size_px=64, measures="position,subspace,object_knn,debias").models[0]
    before, after = found.debias.changes["position_natural"]
    assert before.value > 0.9 and after.value < 0.1
    clean_before, clean_after = found.debias.changes["knn_clean"]
    assert clean_after.value >= clean_before.value - 0.1
    assert 1 <= found.debias.count <= 16
    cells = found.features.queries[-1].cells
    maps = cells.transpose(1, 2).unflatten(2, found.features.queries[-1].grid)
    behind = found.debias.layer(maps).flatten(2).transpose(1, 2)
    again = probe_position(behind[:12], behind[12:], found.features.queries[-1].grid)
    assert again.value < 0.1


def test_the_report_shows_gain_and_controls(diagnosis, tmp_path):
    debias = diagnosis.models[0].to_dict()["debias"]
    assert {"stage", "directions", "strength", "objects", "curve", "before_after"} <= set(debias)
    assert set(debias["controls"]) == {"projection", "whitening"}
    for key, (before, after) in debias["before_after"].items():
        gain = debias["difference"][key]
        assert gain["value"] == pytest.approx(after["value"] - before["value"])
        assert gain["low"] <= gain["value"] <= gain["high"]
        assert all(key in numbers for numbers in debias["controls"].values())


def test_the_layer_survives_its_file(diagnosis, tmp_path):
    save_report(diagnosis, tmp_path)
    layer = load_debias(tmp_path / "debias_0.safetensors")
    torch.testing.assert_close(layer.weight, diagnosis.models[0].debias.layer.weight)
    torch.testing.assert_close(layer.bias, diagnosis.models[0].debias.layer.bias)


def test_a_subspace_holds_the_planted_directions():
    code = torch.zeros(64, 20)
    code[:, 3], code[:, 7] = torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64).square()
    cells = code + 0.01 * torch.randn(30, 64, 20, generator=torch.Generator().manual_seed(0))
    subspace = positional_subspace(cells)
    assert subspace.size == 2
    planted = torch.zeros(20)
    planted[3] = 1
    assert (subspace.directions[:2] @ planted).norm() > 0.999
    assert subspace.remove(cells, 0).equal(cells)


def test_padding_is_put_back_and_nothing_else_changes():
    model = small_resnet()
    pixels = torch.rand(1, 3, 64, 64)
    before = model(pixels).feature_maps[-1]
    with padded_with(model, "circular"):
        assert not torch.allclose(model(pixels).feature_maps[-1], before)
    assert torch.equal(model(pixels).feature_maps[-1], before)
    with pytest.raises(ValueError, match="expected one of zeros"), padded_with(model, "mirror"):
        pass


def test_the_own_padding_is_not_measured_twice_and_not_differently():
    model = load_model(small_resnet(), size_px=64)
    reused, anew = (evaluate(model, scenes(), names)[0][-1].padding for names in (("position", "border"), ("border",)))
    assert reused == anew and reused["zeros"] != reused["circular"]


# ----------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("position", [0.0, 0.5])
def test_a_vit_is_read_layer_by_layer(position):
    model = load_model(small_vit(position), size_px=64, layers=2)
    assert [tuple(part.shape) for part in model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))] == [(2, 48, 8, 8)] * 4


def test_the_size_is_one_that_a_vit_can_take(tmp_path):
    Dinov2Config(hidden_size=32, num_hidden_layers=8, num_attention_heads=2, patch_size=14).save_pretrained(tmp_path)
    model = load_model(f"random:{tmp_path}", size_px=64, layers=2)
    assert model.size_px == 70 and "70" in model.note
    assert model.stages == ("stage4", "stage8")
    assert model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].shape == (1, 32, 5, 5)


def test_a_folder_gives_the_same_features_as_the_model(tmp_path):
    model = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64)).eval()
    model.save_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for a, b in zip(load_model(model, size_px=64)(pixels), load_model(str(tmp_path), size_px=64)(pixels), strict=True):
        assert torch.equal(a, b)


def test_our_own_checkpoint_gives_the_features_of_its_backbone(tmp_path):
    backbone = ResNetConfig(hidden_sizes=[8, 8, 8, 12], depths=[1, 1, 1, 1], embedding_size=8)
    trained = DecodePosModel(DecodePosConfig(backbone_config=backbone)).eval()
    trained.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), size_px=64)
    assert model.stages == ("stage1", "stage2", "stage3", "stage4", "regions")
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = trained.backbone(model.prepare(pixels)).feature_maps[-1]
        torch.testing.assert_close(model(pixels)[-2], expected)


def test_the_network_that_is_padded_is_the_one_that_gives_the_regions():
    backbone = ResNetConfig(hidden_sizes=[8, 8, 8, 12], depths=[1, 1, 1, 1], embedding_size=8, layer_type="basic")
    trained = DecodePosModel(DecodePosConfig(backbone_config=backbone, zero_init_residual=False)).eval()
    model = load_model(trained, size_px=64)
    assert model.stages[-1] == "regions"
    page = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    with torch.no_grad(), padded_with(model.module, "circular"):
        for part in model(page):  # a torus has no place
            assert (part - part.mean((2, 3), keepdim=True)).abs().max() < 1e-5 * part.abs().max().clamp(min=1)


@pytest.mark.parametrize("wrap", [DecodePosModel, DecodePosForPreTraining])
def test_an_instance_of_ours_is_read_as_its_folder(tmp_path, wrap):
    backbone = ResNetConfig(hidden_sizes=[8, 8, 8, 12], depths=[1, 1, 1, 1], embedding_size=8, layer_type="basic")
    trained = wrap(DecodePosConfig(backbone_config=backbone, projector_hidden_size=8, projection_size=8)).eval()
    trained.save_pretrained(tmp_path)
    numbers = [
        diagnose(spec, scenes(), size_px=64, measures="context,norms").models[0] for spec in (trained, str(tmp_path))
    ]
    assert numbers[0].stages[-1].name == "regions"
    assert [stage.to_dict() for stage in numbers[0].stages] == [stage.to_dict() for stage in numbers[1].stages]


@pytest.mark.parametrize("centre_cells", [False, True])
def test_our_own_checkpoint_is_asked_about_its_region_embeddings(tmp_path, centre_cells):
    backbone = ResNetConfig(hidden_sizes=[8, 8, 8, 12], depths=[1, 1, 1, 1], embedding_size=8, layer_type="basic")
    config = DecodePosConfig(backbone_config=backbone, region_bins=6, centre_cells=centre_cells)
    trained = DecodePosModel(config).eval()
    trained.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), size_px=64)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    boxes = [torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.3, 0.3, 0.5, 0.7]]), torch.tensor([[0.0, 0.0, 0.5, 0.5]])]
    found = read_features(model, pixels, boxes, cells=True)[-1]
    with torch.no_grad():
        output = trained(model.prepare(pixels), regions=boxes)
    torch.testing.assert_close(found.regions, output.region_embeddings[output.valid_regions])
    assert found.cells.shape == (2, 16, 12)  # a cell per cell of the map that regions are pooled from
    assert load_model(f"random:{tmp_path}", size_px=64).stages == model.stages == model.fresh(3).stages
    asked = load_model(str(tmp_path), size_px=64, centre_cells=True)
    again = read_features(asked, pixels, boxes)[-1].regions
    assert torch.allclose(again, found.regions, atol=1e-6) is centre_cells


def middle_pixels(depth: int) -> nn.Sequential:
    """Padded, strided convolutions that hand on the pixel in the middle of their kernels."""
    layers = [nn.Conv2d(3, 3, 3, stride=2, padding=1, groups=3, bias=False) for _ in range(depth)]
    for layer in layers:
        layer.weight.data = torch.zeros(3, 1, 3, 3).index_fill_(2, torch.tensor(1), 1.0)
        layer.weight.data[..., [0, 2]] = 0
    return nn.Sequential(*layers)


def test_centred_cells_take_misplaced_influence_away():
    network, data = middle_pixels(4), scenes()
    plain, centred = (
        diagnose(network, data, measures="influence,context", centre_cells=flag).models[0].stages[-1].numbers
        for flag in (False, True)
    )
    # What the network answers to lies half a stride up and left of what it is asked about, and only for that reason.
    assert centred["influence_outside"].value < 0.5 * plain["influence_outside"].value
    assert centred["context_leak"].value < plain["context_leak"].value


def test_a_checkpoint_is_read_as_it_was_trained(tmp_path, capsys):
    config = small_resnet().config
    for flag in (False, True):
        DecodePosModel(DecodePosConfig(backbone_config=config, centre_cells=flag)).save_pretrained(
            tmp_path / str(flag)
        )
        assert load_model(str(tmp_path / str(flag)), size_px=64).reading == ("known" if flag else "aligned")
    assert load_model(str(tmp_path / "True"), size_px=64, reading="aligned").reading == "aligned"
    assert load_model(small_resnet(), size_px=64, centre_cells=True).reading == "known"


def test_random_weights_follow_from_their_seed():
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    whole = ResNetModel(ResNetConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], embedding_size=8))
    for spec in (small_resnet(), whole, small_vit(0.5), NamedNet(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())):
        model = load_model(spec, size_px=64)
        first, same, other = (model.fresh(seed)(pixels)[-1] for seed in (3, 3, 4))
        assert torch.equal(first, same) and not torch.equal(first, other)
        own = model(pixels)[-1]
        assert model.fresh(3).stages == model.stages and own.shape == first.shape and not torch.equal(own, first)


class OneSize(ViTModel):
    """A ViT that takes pictures of its own size only."""

    def forward(self, pixel_values, output_hidden_states=None):
        return super().forward(pixel_values, output_hidden_states=output_hidden_states)


def test_a_vit_that_takes_one_size_gets_it_or_says_so():
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=48)
    model = load_model(OneSize(config), size_px=64)
    assert model.size_px == 48 and model.note == "pictures are resized from 64 to 48 pixels, which this model takes"
    assert model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].shape == (1, 16, 3, 3)
    broken = OneSize(config)
    broken.config.image_size = 32  # neither the wanted size nor the one that it names
    with pytest.raises(ValueError, match=r"no feature maps at 64 or 32 pixels. Give a --size .* patch size 16"):
        load_model(broken, size_px=64)


@pytest.mark.parametrize("name", ["mobilevit", "convnext", "resnet_tiny", "vit_tiny"])
def test_model_types_and_short_names_need_no_download(name):
    model = load_model(f"random:{name}", size_px=64)
    kinds = {"resnet_tiny": "resnet", "vit_tiny": "dinov2"}
    assert model.name == f"random:{name}" and model.module.config.model_type == kinds.get(name, name)


def breaks(pixels):
    raise RuntimeError("out of order")


def test_a_model_that_fails_does_not_take_the_others_along(tmp_path, capsys):
    found = diagnose([gives_nan, own_pixels, breaks], scenes(), size_px=64, measures="norms")
    assert [model.name for model in found.models] == ["own_pixels"]
    assert "NaN" in found.failed["gives_nan"] and "out of order" in found.failed["breaks"]
    assert found.to_dict()["failed"] == found.failed and len(found.settings["reading"]) == 1
    with pytest.raises(ValueError, match="(?s)out of order.*gives_nan"):
        diagnose([gives_nan, breaks], scenes(), size_px=64, measures="norms")
    options = ["--images", "6", "--size", "64", "--measures", "norms", "--output", str(tmp_path)]
    names = [f"{__name__}:breaks", "benchmarks.known_cases:own_pixels"]
    assert main([*names, *options]) == 1
    said = capsys.readouterr()
    assert "out of order" in said.err and "own_pixels" in said.out
    assert len(json.loads((tmp_path / "report.json").read_text())["models"]) == 1
    assert main([names[0], *options]) == 2


def test_finite_features_whose_sum_is_not_are_no_nan():
    model = load_model(lambda pixels: torch.full_like(pixels, 1e38))
    (found,) = model(torch.zeros(1, 3, 160, 160, dtype=torch.uint8))
    assert not torch.isfinite(found.sum()) and torch.isfinite(found).all()


@pytest.mark.parametrize("scale", [1e-6, 1e10])
def test_the_scale_of_features_changes_nothing(scale):
    def scaled(network, factor):
        return lambda pixels: [factor * part for part in network(pixels).feature_maps]

    network, data = small_resnet(), scenes()
    one, other = (evaluate(load_model(scaled(network, f), size_px=64), data, tuple(MEASURES))[0] for f in (1.0, scale))
    for a, b in zip(one, other, strict=True):
        assert a.verdict == b.verdict
        for key, value in a.numbers.items():
            assert b.numbers[key].value == pytest.approx(value.value, abs=2e-3), (a.name, key)


def not_a_map(pixels):
    return pixels.mean((2, 3))


def gives_nan(pixels):
    found = own_pixels(pixels)
    return torch.where(pixels.mean((1, 2, 3), keepdim=True) == 0, found, math.nan)


def test_bad_models_are_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' is neither a folder nor"):
        load_model("nobody/nothing")
    with pytest.raises(ValueError, match=r"not_a_map gives no feature maps: it returned \(1, 3\)"):
        load_model(not_a_map)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm:resnet50 needs timm"):
        load_model("timm:resnet50")
    with pytest.raises(ValueError, match="cannot import 'there'"):
        load_model("json:there")
    with pytest.raises(ValueError, match="NaN"):
        diagnose(gives_nan, scenes(), measures="norms")
    words = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ValueError, match="a BertModel takes input_ids, not pixel_values"):
        load_model(BertModel(words))
    ResNetConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], embedding_size=8).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="random:"):
        load_model(str(tmp_path))


def test_the_command_says_what_is_wrong_and_ends_with_2(tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    assert main(["nobody/nothing", *output]) == 2
    assert "nobody/nothing" in capsys.readouterr().err
    assert main(["json:loads", "--measures", "posture", *output]) == 2
    assert "posture" in capsys.readouterr().err


def test_the_installed_command_and_the_documented_lines_are_real(capsys):
    root = Path(__file__).parents[2]
    script = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = script["decodepos-diagnose"].partition(":")
    assert getattr(importlib.import_module(module), function) is main
    text = (root / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("decodepos-diagnose ")]
    assert len(lines) >= 3
    for line in lines:
        assert build_parser().parse_args(shlex.split(line, comments=True)[1:]).models
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and all(name in shown for name in (*MEASURES, "random:", "timm:", "scenes"))


def test_the_command_writes_a_report(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_network.py").write_text("from benchmarks.known_cases import own_pixels as features\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    function = "my_network:features"
    options = ["--images", "6", "--size", "64", "--measures", "position,context", "--output", str(tmp_path)]
    assert main([function, *options]) == 0
    assert "wrote" in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file() and (tmp_path / "report.json").is_file()


# ------------------------------------------------------------------------------------------------------------- data


def test_a_place_only_network_is_not_called_unbiased():
    found = diagnose(place_only, scenes(), size_px=64, measures="position,subspace,context,object_knn,debias")
    assert found.models[0].last.verdict == "content-blind"
    assert found.models[0].last.numbers["position_natural"].value > 0.9
    assert found.models[0].debias is None


def test_without_classes_the_rest_is_measured_and_the_gap_is_named():
    found = diagnose(own_pixels, without_classes(scenes()), size_px=64)
    assert set(found.skipped) == {"object_knn", "neighbour", "debias"}
    assert "no classes" in found.skipped["object_knn"]
    numbers = found.models[0].last.numbers
    assert "context_leak" in numbers and "knn_clean" not in numbers


def test_object_knn_that_guesses_is_said_to_guess():
    data = scenes()
    numbers = {"knn_prior_class_mean": Estimate(0.2), "knn_clean_class_mean": Estimate(0.4, 0.3, 0.5)}
    stage = StageResult("last", numbers=numbers)
    assert not is_guessing(stage)
    stage.numbers["knn_clean_class_mean"] = Estimate(0.25, 0.15, 0.35)
    assert is_guessing(stage)
    found = diagnose(own_pixels, data, size_px=64, measures="object_knn").models[0].last
    most = data.gallery.labels.bincount().argmax()
    expected = (data.queries.labels[data.swaps.regions] == most).double().mean()
    assert found.numbers["knn_prior"].value == pytest.approx(float(expected))


def one_size(pixels):
    if pixels.shape[-1] != 64:
        raise RuntimeError("64 pixels only")
    return own_pixels(pixels)


@pytest.mark.parametrize("model", ["function", "vit"])
def test_a_network_for_pictures_of_one_size_is_not_asked_about_objects_alone(model):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64)
    network = {"function": one_size, "vit": OneSize(config)}[model]
    numbers = diagnose(network, scenes(), size_px=64, measures="object_knn,same_object").models[0].last.numbers
    assert numbers["knn_clean"].value is not None
    for key in ("knn_alone", "knn_alone_class_mean", "same_alone"):
        assert numbers[key].value is None and "one size only" in numbers[key].reason


def test_an_object_alone_is_read_as_a_whole():
    model = load_model(small_resnet(), size_px=64)
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    small = model.at(32)
    for part, feature_map in zip(read_whole(small, pixels, batch_size=2), small(pixels), strict=True):
        torch.testing.assert_close(part.regions, feature_map.mean((2, 3)), rtol=1e-4, atol=1e-6)
    config = DecodePosConfig(
        backbone_config=ResNetConfig(hidden_sizes=[8, 8, 8, 12], depths=[1, 1, 1, 1], embedding_size=8)
    )
    trained = DecodePosModel(config).eval()
    ours = load_model(trained, size_px=64).at(32)
    with torch.no_grad():
        whole = trained(ours.prepare(pixels), regions=[torch.tensor([[0.0, 0.0, 1.0, 1.0]])] * 5)
    torch.testing.assert_close(read_whole(ours, pixels)[-1].regions, whole.region_embeddings[:, 0])


@pytest.mark.parametrize(("seeds", "random_seeds", "weights"), [(1, 3, 3), (1, 1, 1), (2, 3, 4), (3, 3, 3)])
def test_random_weights_are_as_many_as_asked_for(monkeypatch, seeds, random_seeds, weights):
    drawn = []
    network = load_model(small_resnet(), size_px=64)
    counted = dataclasses.replace(network, fresh=lambda seed: drawn.append(seed) or network.fresh(seed))
    found = diagnose(counted, images=4, size_px=64, measures="norms", seeds=seeds, random_seeds=random_seeds)
    assert len(set(drawn)) == len(drawn) == weights == found.settings["random_seeds"]
    assert 1000 in drawn  # the weights of former versions are still among them


def test_checkpoints_of_one_network_share_their_random_weights():
    data, other = scenes(), small_resnet(seed=1)
    deeper = copy.deepcopy(other.config)  # with the same stages of the same widths
    deeper.depths = [1, 1, 2, 1]
    specs = [small_resnet(), other, type(other)(deeper).eval(), small_resnet(seed=2)]
    models = [load_model(spec, size_px=64, name=str(k)) for k, spec in enumerate(specs)]
    models[3] = dataclasses.replace(models[3], mean=(0.1, 0.2, 0.3))
    drawn = []
    counted = [
        dataclasses.replace(model, fresh=lambda seed, model=model: drawn.append(model.name) or model.fresh(seed))
        for model in models
    ]
    how = {"size_px": 64, "measures": "norms,context", "random_seeds": 2}
    together = diagnose(counted, data, **how)
    assert drawn == ["0", "0", "2", "2", "3", "3"]  # other depths, or other pixels, are another network
    for model, result in zip(models, together.models, strict=True):
        alone = diagnose(model, data, **how).models[0].to_dict()
        assert {**result.to_dict(), "seconds": 0} == {**alone, "seconds": 0}


def norm_means(model):
    return torch.cat([norm.running_mean for norm in batch_norms(model.module)])


def test_the_norms_of_random_weights_have_seen_the_gallery(tmp_path):
    seen = []
    network, data = load_model(small_resnet(), size_px=64), scenes()
    before, seeds = norm_means(network), []

    def fresh(seed):
        seeds.append(seed)
        seen.append(network.fresh(seed))
        return seen[-1]

    diagnose(dataclasses.replace(network, fresh=fresh), data, size_px=64, measures="norms", random_seeds=2)
    assert torch.equal(norm_means(network), before)  # a network of somebody else is measured as it is
    for seed, model in zip(seeds, seen, strict=True):
        first = batch_norms(model.module)[0]
        shown: list[torch.Tensor] = []
        handle = first.register_forward_pre_hook(lambda _, inputs, shown=shown: shown.append(inputs[0]))
        with torch.no_grad():
            model(data.gallery.pixels[:64])
        handle.remove()
        # What it sees of the gallery has the mean and variance that it takes it to have.
        torch.testing.assert_close(shown[0].mean((0, 2, 3)), first.running_mean, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(shown[0].var((0, 2, 3)), first.running_var, atol=1e-3, rtol=2e-2)
        weights = (dict(one.module.named_parameters()) for one in (model, network.fresh(seed)))
        torch.testing.assert_close(*weights, atol=0, rtol=0)
    small_resnet().save_pretrained(tmp_path)
    named = diagnose(f"random:{tmp_path}", data, size_px=64, measures="norms", random_seeds=1).models[0].model
    assert norm_means(named).abs().max() > 0 == norm_means(load_model(f"random:{tmp_path}", size_px=64)).abs().max()


def test_random_weights_that_differ_have_a_wide_interval():
    network = load_model(small_resnet(), size_px=64)
    one, three = (
        diagnose(network, scenes(), size_px=64, measures="context", random_seeds=count).models[0].random[-1].numbers
        for count in (1, 3)
    )
    width = {n: found["context_leak"].high - found["context_leak"].low for n, found in ((1, one), (3, three))}
    assert width[3] > width[1] > 0
    with pytest.raises(ValueError, match="random_seeds 0"):
        diagnose(network, scenes(), size_px=64, random_seeds=0)


def test_a_headline_has_its_interval(diagnosis):
    text = summarise(diagnosis.models[0])
    assert 5 <= len(text.splitlines()) <= 9 and text.splitlines()[1].startswith("  Do surroundings help? ")
    leak = diagnosis.models[0].last.numbers["context_leak"]
    ends = f"({round(100 * leak.low)} to {round(100 * leak.high)}\N{NO-BREAK SPACE}%)"
    # A network of random weights beside random weights.
    assert f"Context leak: like random; {round(100 * leak.value)}\N{NO-BREAK SPACE}% {ends}; random" in text


def test_the_summary_says_whatever_was_measured():
    found = diagnose(small_resnet(), scenes(), size_px=64, measures="norms")
    first, *lines = summarise(found.models[0]).splitlines()
    assert first.endswith("last stage stage3") and len(lines) == 2
    assert all("random" in line and " to " in line for line in lines) and "Outlier tokens" in lines[0]


def test_the_command_is_quiet_about_weights_that_it_does_not_need(tmp_path):
    config = ResNetConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], embedding_size=8)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "network")
    options = ["--images", "4", "--size", "64", "--measures", "norms", "--output", str(tmp_path / "out")]
    # In a process of its own: what transformers says goes past pytest's capture.
    command = [sys.executable, "-m", "modeling_decodepos.diagnosis.command", str(tmp_path / "network"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert said and all("networks shown" in line for line in said)
    assert "5 of 5 networks shown" in said[-1] and "Outlier tokens" in done.stdout


def test_one_class_and_a_small_gallery_are_named():
    data = scenes()
    same = dataclasses.replace(data.gallery, labels=torch.zeros_like(data.gallery.labels))
    one_class = dataclasses.replace(data, gallery=same)
    assert "one class" in diagnose(own_pixels, one_class, measures="norms").skipped["object_knn"]
    small = dataclasses.replace(data, gallery=first_images(data.gallery, 2))
    assert "fewer than the k = 20" in diagnose(own_pixels, small, measures="norms").skipped["object_knn"]


def write_rows(folder, name, rows, kept=None):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows).slice(0, kept), folder / f"{name}-00000-of-00001.parquet")


def row(number, objects=None):
    pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    values = {"image": {"bytes": buffer.getvalue(), "path": None}, "image_id": str(number), "width": 60, "height": 40}
    return values | ({} if objects is None else {"objects": objects})


def objects(*boxes, categories=None):
    labels = list(range(len(boxes))) if categories is None else categories
    return {"bbox": [list(map(float, box)) for box in boxes], "category": labels, "iscrowd": [False] * len(boxes)}


def test_parquet_boxes_and_classes_arrive_as_they_are(tmp_path):
    annotated = objects((6, 4, 30, 20), (30, 10, 12, 16), (1, 1, 2, 2), categories=[3, 5, 1])
    write_rows(tmp_path / "data", "train", [row(k, annotated) for k in range(6)])
    write_rows(tmp_path / "data", "validation", [row(10 + k, annotated) for k in range(5)])
    data = build_photo_data(str(tmp_path), 8, 64, 0)
    assert len(data.gallery) == 6 and len(data.queries) == 5
    torch.testing.assert_close(data.queries.boxes[0], torch.tensor([[0.1, 0.1, 0.6, 0.6], [0.5, 0.25, 0.7, 0.65]]))
    assert data.queries.labels[:2].tolist() == [3, 5]  # the third is a few pixels
    assert len(data.swaps.regions) == 5 and data.grid.pixels.shape[:2] == (5, 9)
    found = diagnose(own_pixels, data, size_px=64)
    assert "fewer than the k" in found.skipped["object_knn"]
    assert found.models[0].last.numbers["context_leak"].value is not None


def photo_rows(first, count, categories):
    """Two objects of each picture: one of class 0, one of the classes in turn."""
    boxes = (2, 4, 20, 20), (30, 10, 24, 24)
    labels = ([0, categories[k % len(categories)]] for k in range(count))
    return [row(first + k, objects(*boxes, categories=own)) for k, own in enumerate(labels)]


@pytest.mark.parametrize("split", [True, False])
def test_photos_give_objects_of_every_class_alike(tmp_path, split):
    write_rows(tmp_path, "train", photo_rows(0, 80, range(1, 6)))
    if split:
        write_rows(tmp_path, "validation", photo_rows(100, 40, range(1, 6)))
    data = build_photo_data(str(tmp_path), 12, 64, 0)
    known, asked = data.objects.gallery, data.objects.queries
    assert known.labels.bincount(minlength=6).tolist() == [4] * 6
    assert asked.labels.bincount(minlength=6).tolist() == [3] * 6
    assert len(asked) < len(asked.labels) == len(data.objects.moved) == len(data.objects.other_surroundings)
    shown = {bytes(pixels.numpy()) for pixels in known.pixels}
    assert not shown & {bytes(pixels.numpy()) for pixels in asked.pixels}  # no picture is on both sides
    again = build_photo_data(str(tmp_path), 12, 64, 0).objects
    assert torch.equal(again.moved, data.objects.moved)
    found = diagnose(own_pixels, data, size_px=64, measures="object_knn,same_object").models[0].last.numbers
    assert found["knn_prior_class_mean"].value == pytest.approx(1 / 6)
    assert found["same_chance"].value == pytest.approx(1 / 18)
    for name in ("clean", "recontextualised", "repositioned", "alone"):
        assert found[f"knn_{name}_class_mean"].value == pytest.approx(found[f"knn_{name}"].value)
        assert found[f"knn_{name}"].low is not None


def test_what_surrounds_a_probed_object_is_of_another_picture(tmp_path):
    write_rows(tmp_path, "train", photo_rows(0, 40, range(1, 6)))
    objects = build_photo_data(str(tmp_path), 12, 64, 0).objects
    queries = objects.queries
    for number, (owner, box) in enumerate(zip(queries.owners.tolist(), queries.every_box, strict=True)):
        x1, y1, x2, y2 = (64 * box).round().int().tolist()
        own, changed = queries.pixels[owner], objects.other_surroundings[number]
        assert torch.equal(changed[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1], own[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1])
        outside = torch.ones(64, 64, dtype=torch.bool)
        outside[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        lenders = [(changed == pixels)[:, outside].float().mean() for pixels in queries.pixels]
        assert max(lenders) == 1 and lenders[owner] < 0.5


def test_boxes_without_classes_are_found_again(tmp_path):
    plain = [dict(item, objects={k: v for k, v in item["objects"].items() if k != "category"})
             for item in photo_rows(0, 40, [1])]  # fmt: skip
    write_rows(tmp_path, "train", plain)
    found = diagnose([own_pixels, place_only], str(tmp_path), images=12, size_px=64)
    assert set(found.skipped) == {"object_knn", "neighbour", "debias"}
    pixels, place = (model.last.numbers for model in found.models)
    assert pixels["same_recontextualised"].count > 1 and found.settings["probed_objects"] == 15
    assert pixels["same_recontextualised"].value > 3 * place["same_recontextualised"].value
    page = save_report(found, tmp_path / "out").read_text(encoding="utf-8")
    assert "Finds itself alone" in page and "Do surroundings help?" not in page
    assert re.search(r"Not measured: [^<]*Neighbour read-out[^<]*, because the data has no classes", page)


def test_pictures_without_boxes_are_asked_about_place_only(tmp_path):
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "torn.png").write_bytes(b"no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    found = diagnose(own_pixels, str(tmp_path), images=8, size_px=64)
    assert "the data has no boxes" in found.skipped["context"]
    assert any(
        "2 pictures could not be read" in note and ("torn.png" in note or "empty.png" in note)
        for note in found.settings["notes"]
    )
    numbers = found.models[0].last.numbers
    assert numbers["position_blank"].value is not None and not {"context_leak", "position_regions"} & set(numbers)
    page = save_report(found, tmp_path / "out").read_text(encoding="utf-8")
    assert re.search(r"Not measured: [^<]*Context swap[^<]*, because the data has no boxes", page)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert headings == ["Pictures", "Place", "Long tokens", "Every number", "How it was measured"]


def test_a_photo_is_turned_upright_as_its_boxes_are(tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    turned, upright = io.BytesIO(), io.BytesIO()
    Image.fromarray(stored).save(turned, format="PNG", exif=orientation)
    Image.fromarray(np.rot90(stored, -1)).save(upright, format="PNG")
    found = []
    for name, buffer in (("turned", turned), ("upright", upright)):
        rows = [row(k, objects((30, 10, 12, 16))) | {"image": {"bytes": buffer.getvalue()}} for k in range(4)]
        write_rows(tmp_path / name, "train", rows)
        found.append(build_photo_data(str(tmp_path / name), 2, 64, 0).queries)
    assert torch.equal(found[0].pixels, found[1].pixels)
    torch.testing.assert_close(found[0].boxes[0], torch.tensor([[0.5, 0.25, 0.7, 0.65]]))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for number in range(4):
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    pixels = build_photo_data(str(tmp_path), 2, 64, 0).queries.pixels
    assert torch.equal(pixels[0, 0], torch.from_numpy((values >> 8).astype(np.uint8)))


def test_bad_data_names_file_and_image(tmp_path):
    ragged = objects((6, 4, 30, 20), (1, 1, 20, 20), categories=[1])
    write_rows(tmp_path / "ragged", "train", [row(k, ragged) for k in range(4)])
    with pytest.raises(ValueError, match=r"train-00000.*image \d: 2 boxes with 1 categories"):
        build_photo_data(str(tmp_path / "ragged"), 4, 64, 0)
    write_rows(tmp_path / "short", "train", [row(0, {"bbox": [[1.0, 2.0, 3.0]], "category": [0], "iscrowd": [False]})])
    with pytest.raises(ValueError, match="four finite numbers"):
        build_photo_data(str(tmp_path / "short"), 4, 64, 0)
    write_rows(tmp_path / "empty", "train", [row(0, objects((1, 1, 20, 20)))])
    with pytest.raises(ValueError, match="at least 2"):
        build_photo_data(str(tmp_path / "empty"), 4, 64, 0)
    write_rows(tmp_path / "unasked", "train", [row(k, objects((1, 1, 20, 20))) for k in range(4)])
    write_rows(tmp_path / "unasked", "validation", [row(0)], kept=0)
    with pytest.raises(ValueError, match="4 pictures for the gallery and 0 queries.*Is the split empty"):
        build_photo_data(str(tmp_path / "unasked"), 4, 64, 0)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="neither .parquet files nor pictures"):
        build_photo_data(str(tmp_path / "nothing"), 4, 64, 0)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        build_photo_data("nobody/nothing", 4, 64, 0)


def test_the_place_of_a_region_is_not_read_by_what_it_taught():
    places = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, 200, generator=torch.Generator().manual_seed(1))
    # With more features than regions a read-out that saw all of them would find every place.
    assert probe_regions(noise, places).value < 0.05
    found = probe_regions(noise + 20 * torch.cat([places] * 100, 1), places)
    assert found.value > 0.9 and found.low < found.value < found.high
    assert "16 needed" in probe_regions(noise[:15], places[:15]).reason
    assert probe_regions(torch.ones(64, 3), places).value == 0


def test_the_layer_never_sees_the_queries():
    data, model = scenes(), with_place(0.5)
    layers = []
    for probe in (data, dataclasses.replace(data, queries=data.gallery, swaps=None)):
        results, seen = evaluate(model, probe, ("subspace",))
        layers.append(fit_debias(model, results[-1], seen.gallery[-1], data.gallery, seed=0).layer)
    assert torch.equal(layers[0].weight, layers[1].weight) and torch.equal(layers[0].mean, layers[1].mean)


@pytest.mark.parametrize(
    ("name", "wanted", "side"), [("resnet18", 96, 96), ("vit_small", 100, 96), ("resnet18", 90, 96)]
)
def test_a_network_takes_pictures_of_another_side(name, wanted, side):
    model = load_model(f"random:{name}", size_px=160)
    other = model.at(wanted)
    assert other.size_px == side
    assert model.size_px == 160
    assert (
        other(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[-1].shape[-1]
        < model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[-1].shape[-1]
    )
