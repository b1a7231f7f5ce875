"""The weights that come along: whole, small, loadable without our code, and better than none."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from dataset_scripts.hub.release import card_problems
from modeling_decodepos.diagnosis.measures.metrics import BENCHMARK_TASKS
from training.probes.search import load, search_objects, share_found, untrained
from training.publish import checks

WEIGHTS = sorted((Path(__file__).parents[2] / "model_cards" / "weights").iterdir())
LOAD = """
import sys, torch
from transformers import AutoImageProcessor, AutoModel
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
model, report = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
assert not any(name.startswith("modeling_decodepos") for name in sys.modules)
with torch.no_grad():
    output = model(**processor(torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8), return_tensors="pt"))
assert torch.isfinite(output.pooler_output).all() and output.pooler_output.std() > 0
"""


@pytest.fixture(params=WEIGHTS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


def test_every_file_is_the_one_that_was_released(folder):
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert set(sums) == set(files) - {"SHA256SUMS"}
    assert all(
        hashlib.sha256(path.read_bytes()).hexdigest() == sums[name] for name, path in files.items() if name in sums
    )
    assert sum(path.stat().st_size for path in files.values()) < 12 * 2**20


def test_it_loads_without_our_code(folder):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_it_may_be_pushed_as_it_lies(folder):
    """`hf upload` sends what is there: what `training.publish` asks of a release holds of it too."""
    here = str(Path(__file__).parents[2])
    assert list(checks._file_problems(folder, [here, str(Path.home())])) == []
    assert list(checks._weight_problems(folder / "model.safetensors")) == []
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card_problems(card, ModelCard) == [] and "nothing was published" not in card
    named = re.findall(r"\]\(((?!https?:)[^)]+)\)", card)
    assert named and all((folder / name).is_file() for name in named)


def test_the_lines_of_its_card_run_as_they_are_printed(folder, monkeypatch):
    monkeypatch.chdir(folder.parents[2])
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["embeddings"].isfinite().all() and names["model"].config.centre_cells


def test_it_finds_more_objects_again_than_its_untrained_twin(folder):
    model = load(str(folder), centre_cells=True)
    own, twin = (share_found(search_objects(net, count=60)) for net in (model, untrained(model, 0)))
    assert own.value > twin.value + 0.1 and own.low > 0.6


def test_it_is_on_the_leaderboard_of_the_exact_pairs(folder):
    listed = yaml.safe_load((folder / ".eval_results" / "exact-pairs.yaml").read_text(encoding="utf-8"))
    scores = {one["dataset"]["task_id"]: one["value"] for one in listed}
    assert set(scores) == set(BENCHMARK_TASKS) and scores["context_leak"] < 0.1
