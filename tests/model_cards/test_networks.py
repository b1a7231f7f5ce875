"""The page of networks shows what its results say, and its bench measures what it says."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.networks import READINGS, Bench, EveryReading, Row, save, table_rows
from model_cards.networks import TABLES, draw, index_rows, value, with_tables
from tests.real_data import COCO_MULTIOBJECT
from training.evaluation.models import load_model
from training.evaluation.results import load_results
from training.evaluation.settings import Common

NUMBERS = {
    "class mean, as is": 0.2,
    "class mean, other surroundings": 0.05,
    "leak": 0.5,
    "offset x": 0.25,
    "offset y": -0.5,
}


def row(network: str, weights: str, reading: str, metric: str, number: float, std: float | None = None) -> dict:
    spread = {"std_over_seeds": std, "interval_95_over_images": [number - 0.1, number + 0.1]}
    return {"model": network, "arm": f"{weights}, {reading}", "metric": metric, "value": number, "spread": spread}


def rows() -> list[dict]:
    found = [row("net|1", w, r, m, n) for w in ("trained", "random") for r in READINGS for m, n in NUMBERS.items()]
    return [*found, row("net|1", "trained", "aligned", "class mean, moved", 0.125, 0.03)]


def test_tables_and_figure_say_what_the_results_say():
    page = with_tables("a\n<!-- networks situations -->\nold\n<!-- end of situations -->\nb", rows())
    assert page.startswith("a\n<!-- networks situations -->\n| network") and page.endswith(
        "<!-- end of situations -->\nb"
    )
    assert "old" not in page and "net&#124;1 | trained | 0.200 (0.100 to 0.300) |" in page and "0.125 ± 0.030" in page
    numbers = index_rows(rows())
    assert "+0.25, -0.50" in TABLES["offsets"](numbers)
    assert value(numbers, "net|1", "random", "known", "place") is None
    protocol = TABLES["protocols"](
        index_rows([*rows(), row("net|1", "random", "protocols", "object_linear, class_mean", 0.3)])
    )
    assert "net|1, random |" in protocol and "| `object_linear` | class mean | 0.300 (0.200 to 0.400) |" in protocol
    svg = ElementTree.fromstring(draw(rows()))
    dots = svg.findall(".//{http://www.w3.org/2000/svg}circle[{http://www.w3.org/2000/svg}title]")
    said = [dot[0].text for dot in dots if "net|1" in dot[0].text]
    assert len(said) == 3 + 2 * 2  # three situations of the trained one, two axes of either weights
    assert "net|1, other surroundings: 0.050" in said


def test_every_network_has_its_random_twin(tmp_path: Path):
    (tmp_path / "mobilenet-v2").mkdir()
    found = table_rows(tmp_path)
    trained, random = ([r.name for r in found if r.arm == arm] for arm in ("trained", "random"))
    assert trained == ["mobilenet-v2", "decodepos-scenes-mini"] and set(trained) < set(random)


@pytest.mark.skipif(not COCO_MULTIOBJECT.is_dir(), reason="the photos are not there")
def test_a_network_is_measured_under_every_reading(tmp_path: Path):
    wanted = Row("tiny", "random:resnet_tiny", "random", seeds=2)
    common = Common(model=wanted.spec, data=str(COCO_MULTIOBJECT), size_px=64, validation_images=24, train_images=12)
    save(tmp_path / "networks.json", wanted, Bench(common, wanted, 24), common)
    numbers = index_rows(load_results(tmp_path / "networks.json"))
    assert {key[2] for key in numbers} == set(READINGS)
    assert [value(numbers, "tiny", "random", r, "offset x") for r in READINGS[:3]] == [
        0.0,
        0.5,
        pytest.approx(31 / 64),
    ]
    alone = {value(numbers, "tiny", "random", r, "class mean, alone") for r in READINGS}
    assert len(alone) == 1  # a whole picture is read in one way
    assert 0 < value(numbers, "tiny", "random", "aligned", "leak") < 1
    assert numbers["tiny", "random", "aligned", "micro, moved"]["seeds"] == [0, 1]


def test_each_reading_gives_what_a_model_with_it_gives():
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    boxes = [torch.tensor([[0.1, 0.2, 0.7, 0.8]])] * 3
    model = EveryReading(Row("tiny", "random:resnet_tiny", "random"))
    for reading, features in model.columns(model.embed(pixels, boxes)).items():
        expected = load_model("random:resnet_tiny", 1000, reading=reading, stage="map").embed(pixels, boxes)
        assert torch.allclose(features, expected, atol=1e-5), reading
