"""Two processes in a real group measure what one measures: each item once, in one order, one result."""

import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import ConvNextConfig

from modeling_decodepos import DecodePosConfig, DecodePosModel
from tests.forks import call_in_two
from tests.training.evaluation.conftest import SIDE, FakeModel, inside, write_squares
from training.evaluation import (
    detection,
    linear_segmentation,
    object_knn,
    object_linear,
    patch_retrieval,
    segmentation,
)
from training.evaluation.detection import DetectionSettings
from training.evaluation.evaluation import Common, Evaluation
from training.evaluation.linear_segmentation import LinearSegmentationSettings
from training.evaluation.models import EvaluatedModel
from training.evaluation.object_knn import ObjectKnnSettings
from training.evaluation.object_linear import ObjectLinearSettings
from training.evaluation.patch_retrieval import PatchRetrievalSettings
from training.evaluation.processes import Processes, start_processes
from training.evaluation.segmentation import UperNetSettings


def dull(pixels: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Colours in so much noise of the image that some objects are mistaken."""
    return inside(pixels, box) + 60 * torch.sin(pixels.mean((1, 2)) * 97)


def coarse(pixels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 8) - 128


def fake(data: str, processes: Processes) -> Evaluation:
    built = Evaluation(Common("fake", data, size_px=SIDE, batch_size=5), processes)
    built.__dict__["model"] = FakeModel(dull, coarse)
    return built


def network(data: str, processes: Processes) -> Evaluation:
    """A network without batch norms: their statistics are the one thing that splitting a batch must change."""
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1])
    built = Evaluation(Common("small", data, size_px=SIDE, batch_size=5), processes)
    built.__dict__["model"] = EvaluatedModel("small", DecodePosModel(DecodePosConfig(backbone_config=config)).eval())
    return built


def measure_frozen(data: str, processes: Processes) -> dict[str, Any]:
    """What the protocols that train no backbone measure."""
    numbers: dict[str, Any] = {}
    runs = {
        "object_knn": (object_knn, ObjectKnnSettings(neighbours=(1, 5))),
        "object_linear": (object_linear, ObjectLinearSettings(learning_rates=(0.1,), epochs=3, objects_per_update=16)),
        "patch_retrieval": (patch_retrieval, PatchRetrievalSettings(5, 0.02, 25 * 20)),
        "linear_segmentation": (linear_segmentation, LinearSegmentationSettings(steps=12, learning_rate=0.1)),
    }
    for name, (module, settings) in runs.items():
        evaluation = fake(data, processes)
        numbers[name] = {key: (m.value, m.count, m.interval) for key, m in module.run(evaluation, settings).items()}
        numbers[f"{name} notes"] = evaluation.notes
    return numbers


def measure_fine_tuned(data: str, processes: Processes) -> dict[str, Any]:
    """A detector's weights and detections, and a segmenter's score."""
    numbers: dict[str, Any] = {}
    built = network(data, processes)
    settings = DetectionSettings(steps=3, images_per_update=5, width=32, layers=2, queries=5, learning_rate=1e-3)
    net = detection.build_detector(built, 3, settings)
    for module in net.modules():  # what is dropped differs between parts of a batch
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    numbers["start"] = {name: value.clone() for name, value in net.state_dict().items()}
    detection.train_detector(built, net, built.images("train"), settings)
    numbers["detector"] = {name: value.clone() for name, value in net.state_dict().items()}
    truth, found = detection.detect(built, net, built.images("validation"))
    numbers["truth"] = [vars(image) for image in truth]
    numbers["scores"] = [image.scores for image in found]
    small = UperNetSettings(steps=2, images_per_update=5, head_width=8)
    numbers["segmentation"] = segmentation.run(network(data, processes), small)["miou"]
    return numbers


Measure = Callable[[str, Processes], dict[str, Any]]


def _one_of_two(rank: int, measure: Measure, data: str, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = start_processes("cpu")
    assert (processes.rank, processes.count, dist.get_backend()) == (rank, 2, "gloo")
    assert processes.collect(processes.own(list("abcde"))) == list("abcde")
    rows = [torch.full((number % 3, 2), float(number)) for number in range(5)]
    assert torch.equal(torch.cat(processes.collect_rows(processes.own(rows))), torch.cat(rows))
    assert torch.equal(torch.cat(processes.collect_rows(processes.own(rows[1:2]))), rows[1])
    assert processes.collect_rows([]) == [] == processes.collect([])
    assert processes.total(torch.tensor([1.0 + rank])).tolist() == [3.0]
    (folder / f"{rank}.pkl").write_bytes(pickle.dumps(measure(data, processes)))
    dist.destroy_process_group()


def on_one_and_on_two(measure: Measure, folder: Path) -> list[dict[str, Any]]:
    """Of one process, and of either of two. Odd numbers of images, one of which nobody can read."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[4]["image"] = {"bytes": b"no picture", "path": None}
        rows[7]["objects"] = {"bbox": [], "category": [], "area": [], "iscrowd": []}
        return rows

    data = str(write_squares(folder / "odd", change, train=25, validation=13))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call_in_two(_one_of_two, measure, data, folder, port)
    return [measure(data, Processes())] + [pickle.loads((folder / f"{n}.pkl").read_bytes()) for n in range(2)]


def test_frozen_protocols_measure_the_same(tmp_path: Path):
    one, first, second = on_one_and_on_two(measure_frozen, tmp_path)
    for protocol in ("object_knn", "object_linear", "patch_retrieval", "linear_segmentation"):
        assert first[protocol] == second[protocol]
        assert list(one[protocol]) == list(first[protocol])
        for name, (value, count, interval) in one[protocol].items():
            found = first[protocol][name]
            assert found[0] == pytest.approx(value, abs=1e-6), name
            assert found[1] == count, name
            assert found[2] == (None if interval is None else pytest.approx(interval, abs=1e-6)), name
        assert any(0.05 < value < 0.98 for value, _, _ in one[protocol].values())  # numbers that could differ
    for result in (one, first):  # every image counts once
        assert result["object_knn"]["micro_k5"][1] == 2 * (13 - 2)
        assert result["patch_retrieval"]["miou"][1] == 12
        assert "-004" in str(result["object_knn notes"])


@pytest.mark.slow
def test_fine_tuned_networks_learn_the_same(tmp_path: Path):
    one, first, second = on_one_and_on_two(measure_fine_tuned, tmp_path)
    for name, value in first["detector"].items():
        assert torch.equal(second["detector"][name], value), name
    start, whole, split = (
        torch.cat([value.flatten().float() for value in weights.values()])
        for weights in (one["start"], one["detector"], first["detector"])
    )
    assert ((whole - start).abs() > 1e-5).float().mean() > 0.5
    # AdamW turns gradients that are zero but for rounding into whole steps.
    assert ((whole - split).abs() > 2e-5).float().mean() < 0.02
    assert first["truth"] == second["truth"] == one["truth"]
    assert len(first["truth"]) == len(first["scores"]) == 12
    for ours, theirs in zip(first["scores"], one["scores"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    # The segmenter's head has batch norms, so one process and two differ; the two must not.
    assert first["segmentation"] == second["segmentation"]
    assert first["segmentation"].count == 12


def test_a_launcher_that_did_not_join_its_processes_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("training.evaluation.processes.PartialState", lambda cpu: Processes())
    monkeypatch.setattr(Processes, "num_processes", 1, raising=False)
    with pytest.raises(ValueError, match="asked for 3 processes but 1 work together"):
        start_processes("cpu")
