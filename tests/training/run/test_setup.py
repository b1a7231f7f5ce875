import math
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from dataset_scripts.files import write_json
from tests.training.runs import Make, small_run
from training.pretrain import prepare_views, training_step
from training.run import batch_norms
from training.run.model import compile_stages
from training.run.setup import build_accelerator, build_run
from training.views.normalise import normalise, statistics_of


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixed_share": 0.0}, ["mixed_share is 0", "'both'", "--objective decoupling"]),
        ({"backbone": "/no/such/folder"}, ["backbone", "/no/such/folder", "resnet18"]),
        (
            {"objective": "isolated", "pair_loss": "contrast"},
            ["pair_loss is contrast", "'isolated'", "attracts nothing", "isolated (match)"],
        ),
        ({"global_batch_size": 25}, ["global_batch_size is 25", "24 images", "at most 24"]),
        ({"backbone": "vit_tiny"}, ["view_size_px 64", "64 and, with small_view_scale, 32 pixels", "multiples of 12"]),
        (
            {"backbone": "vit_tiny", "view_size_px": 96, "cut_grid_px": 12, "measure_size_px": 100},
            ["measure_size_px 100", "multiples of 12"],
        ),
        ({"accumulation_steps": 3}, ["8 is not divisible by 3", "take 6"]),
        ({"data": "/no/such/photos"}, ["data", "/no/such/photos"]),
    ],
)
def test_what_a_user_can_get_wrong_is_one_message(make_recipe: Make, tmp_path: Path, changes: dict, words: list[str]):
    with pytest.raises((ValueError, OSError)) as error:
        build_run(Accelerator(cpu=True), make_recipe(**changes), tmp_path)
    for word in words:
        assert word in str(error.value)


def test_a_run_contrasts_where_its_recipe_says_so(make_recipe: Make, tmp_path: Path):
    run, data, _ = build_run(Accelerator(cpu=True), make_recipe(pair_loss="contrast"), tmp_path)
    assert {term.kind for term in run.objective.terms} == {"contrast"}
    loss = training_step(run, [data.__getitems__([(0, i) for i in range(6)])])["loss"]
    regions, pairs = 6 * run.recipe.views.num_regions, len(run.pairs)
    assert 0.5 < loss / (pairs * 0.4 * math.log(regions)) < 1.5  # about chance; cosines would be near 0 or below


VIT = {"backbone": "vit_tiny", "view_size_px": 96, "cut_grid_px": 12, "measure_size_px": 96, "centre_cells": False}


@pytest.mark.parametrize(("precision", "attention"), [("bf16", "eager"), ("no", "sdpa")])
def test_a_cpu_writes_attention_out_in_bf16_only(make_recipe: Make, tmp_path: Path, precision: str, attention: str):
    run, data, _ = build_run(Accelerator(cpu=True, mixed_precision=precision), make_recipe(**VIT), tmp_path)
    backbones = [run.net.decodepos.backbone, run.net.teacher["decodepos"].backbone]
    assert {backbone.config._attn_implementation for backbone in backbones} == {attention}
    batch = data.__getitems__([(0, i) for i in range(4)])
    views = prepare_views(batch, run.accelerator.device, statistics_of(run.net))
    maps = []
    with torch.no_grad(), run.accelerator.autocast():
        for each in ("eager", "sdpa"):
            backbones[0].set_attn_implementation(each)
            maps.append(run.net.decodepos.feature_map(views["crop"].pixel_values).float())
    apart = float((maps[0] - maps[1]).abs().max() / maps[1].abs().max())
    assert apart < (0.02 if precision == "bf16" else 1e-5)  # rounding


@pytest.mark.parametrize("starts_as_identity", [True, False])
def test_blocks_start_as_the_recipe_says(make_recipe: Make, starts_as_identity: bool):
    net = small_run(make_recipe(zero_init_residual=starts_as_identity))[0].net
    for part in (net.decodepos, net.teacher["decodepos"]):
        (weight,) = {
            float(layer.layer[-1].normalization.weight.detach().abs().max())
            for stage in part.backbone.encoder.stages
            for layer in stage.layers
        }
        assert weight == (0.0 if starts_as_identity else 1.0)


def test_processes_wait_for_what_only_the_main_one_does(make_recipe: Make, monkeypatch: pytest.MonkeyPatch):
    given: dict[str, Any] = {}

    def build(**arguments: Any) -> Accelerator:
        given.update(arguments)
        return Accelerator(cpu=True)

    monkeypatch.setattr("training.run.setup.Accelerator", build)
    build_accelerator(make_recipe())
    (wait,) = (h.timeout for h in given["kwargs_handlers"] if isinstance(h, InitProcessGroupKwargs))
    assert wait >= timedelta(hours=1)


@pytest.mark.parametrize(
    ("environment", "cores", "workers", "threads"),
    [
        ({}, 16, 4, 15),
        ({}, 16, 0, 16),
        ({}, 2, 1, 1),
        ({}, 1, 1, 1),
        ({"OMP_NUM_THREADS": "1"}, 16, 4, None),  # as a sweep gives each of its rows
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 16, 4, 15),
        ({"OMP_NUM_THREADS": "3", "ACCELERATE_MIXED_PRECISION": "no"}, 16, 4, None),
    ],
)
def test_a_process_alone_on_a_cpu_takes_the_cores_that_are_free(
    make_recipe: Make,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    cores: int,
    workers: int,
    threads: int | None,
):
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    build_accelerator(make_recipe(num_workers=workers))
    assert chosen == ([] if threads is None else [threads])


def test_processes_beside_each_other_keep_their_threads(make_recipe: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    both = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    monkeypatch.setattr("training.run.setup.Accelerator", lambda **_: both)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: pytest.fail(f"it took {threads} threads"))
    assert build_accelerator(make_recipe()) is both


@pytest.mark.filterwarnings("ignore")  # what torch warns of when it compiles is not ours
def test_every_stage_is_compiled(make_recipe: Make, monkeypatch: pytest.MonkeyPatch):
    """Student and teacher, full and small views: torch gives up silently on a function with too many versions."""
    compile_part = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda part: compile_part(part, backend="eager"))
    torch._dynamo.reset()
    run, data = small_run(make_recipe())
    compile_stages(run.net)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for size in (4, 5, 6):
            training_step(run, [data.__getitems__([(0, i) for i in range(size)])])
    torch._dynamo.reset()


def test_a_folder_belongs_to_one_recipe_once_it_holds_a_checkpoint(make_recipe: Make, tmp_path: Path):
    write_json(tmp_path / "run.json", {"recipe": make_recipe().values()})
    other = make_recipe(cut_ratio_max=0.5)
    build_run(Accelerator(cpu=True), other, tmp_path)
    (tmp_path / "checkpoints/step_0000003").mkdir(parents=True)
    (tmp_path / "checkpoints/step_0000003/state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cut_ratio_max: 0.4 there, 0.5 now"):
        build_run(Accelerator(cpu=True), other, tmp_path)
    (tmp_path / "run.json").write_bytes(b"")
    with pytest.raises(ValueError, match=r"run.json is damaged .*Delete that file"):
        build_run(Accelerator(cpu=True), other, tmp_path)


@pytest.mark.parametrize(
    ("total", "share", "least", "expected"),
    [(1800, 0.025, 45, 45), (400, 0.025, 45, 45), (40, 0.025, 45, 20), (100, 0.3, 0, 30)],
)
def test_short_runs_warm_up_too(make_recipe: Make, total: int, share: float, least: int, expected: int):
    run, _ = small_run(make_recipe(warmup_share=share, warmup_steps=least), total)
    assert run.warmup_steps == expected


def test_fresh_weights_are_measured_with_batch_norms_that_fit(make_recipe: Make, tmp_path: Path):
    run, data, _ = build_run(Accelerator(cpu=True), make_recipe(), tmp_path)
    model = run.net.decodepos
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = torch.cat(list(batch_norms.clean_pictures(data)))

    def spread() -> float:
        """Mean variance of the normalised stem, 1 where its batch norm fits these pictures."""
        with torch.no_grad():
            stem = model.backbone.embedder.embedder
            return float(stem.normalization(stem.convolution(normalise(pixels))).var((0, 2, 3)).mean())

    model.eval()
    assert abs(spread() - 1) > 0.1
    with run.as_it_starts():
        assert spread() == pytest.approx(1, abs=0.05)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    held, _, _ = build_run(Accelerator(cpu=True), make_recipe(batch_norm="frozen"), tmp_path / "held")
    assert held.start_pictures is None
