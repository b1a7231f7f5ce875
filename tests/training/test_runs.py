import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, ResNetModel

from tests.training.runs import ENVIRONMENT, ROOT, command_line, run_command
from training.interruption import EXIT_INTERRUPTED


def test_whole_run_then_resume_gives_the_same_weights(recipe_values: dict[str, Any], tmp_path: Path):
    """6 steps equal 3 + stop + 3, bit for bit, and what is exported loads without code of ours."""
    straight = recipe_values | {"output_dir": tmp_path / "straight", "save_steps": 3, "probe_count": 4}
    done = run_command(straight)
    assert done.returncode == 0, done.stderr
    assert 'AutoModel.from_pretrained("' in done.stdout
    halves = recipe_values | {"output_dir": tmp_path / "halves", "save_steps": 3, "probe_count": 4}
    assert run_command(halves).returncode == 0
    # As if the second half had been killed: its checkpoint gone, its log lines still there.
    last = tmp_path / "halves/checkpoints/step_0000006"
    for file in [*last.iterdir()]:
        file.unlink()
    last.rmdir()
    resumed = run_command(halves)
    assert resumed.returncode == 0, resumed.stderr
    assert "at step 3" in resumed.stdout
    for name in ("export/pretraining/model.safetensors", "export/backbone/model.safetensors", "probe.json"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes(), name
    logs = [
        [json.loads(x) for x in (tmp_path / d / "log.jsonl").read_text().splitlines()] for d in ("straight", "halves")
    ]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    assert (tmp_path / "straight/report.html").is_file()

    backbone = tmp_path / "straight/export/backbone"
    model, report = AutoModel.from_pretrained(backbone, output_loading_info=True)
    assert type(model) is ResNetModel
    assert not any(report.values())
    processor = json.loads((backbone / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 64, "width": 64}

    again = run_command(straight)
    assert again.returncode == 0, again.stderr
    assert "this run is complete" in again.stdout
    other = run_command(straight | {"cut_form": "independent"})
    assert other.returncode != 0
    assert "cut_form: 'collaborative' there, 'independent' now" in other.stderr


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGKILL))]
)
def test_a_run_that_was_stopped_continues_as_if_it_had_not(
    recipe_values: dict[str, Any], tmp_path: Path, number: signal.Signals
):
    straight = recipe_values | {
        "output_dir": tmp_path / "straight",
        "max_steps": 30,
        "num_workers": 1,
        "save_steps": 2,
    }
    stopped = straight | {"output_dir": tmp_path / "stopped"}
    with subprocess.Popen(command_line(stopped), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as run:
        log = tmp_path / "stopped/log.jsonl"
        while run.poll() is None and not (log.is_file() and log.read_text().count("\n") >= 5):
            time.sleep(0.01)
        run.send_signal(number)
        said, _ = run.communicate(timeout=120)
    if number == signal.SIGKILL:  # no warning: what was saved on the way is what there is
        assert run.returncode == -signal.SIGKILL, said
    else:
        assert run.returncode == EXIT_INTERRUPTED, said
        assert "the same command continues" in said
    assert run_command(stopped).returncode == run_command(straight).returncode == 0
    weights = [
        (tmp_path / name / "export/pretraining/model.safetensors").read_bytes() for name in ("straight", "stopped")
    ]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_the_launcher_of_the_readme_runs_two_processes(recipe_values: dict[str, Any], tmp_path: Path):
    values = recipe_values | {"output_dir": tmp_path / "two", "max_steps": 2}
    done = run_command(
        values, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", ACCELERATE_USE_CPU="true"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes x 1 micro-batches x 4 images" in done.stdout
    assert len((tmp_path / "two/log.jsonl").read_text().splitlines()) == 2
