"""The local modules of `evaluate` load offline and compute what the functions compute."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
METRICS = ROOT / "training" / "evaluation" / "metrics"

# In a process of its own: `evaluate` imports what it finds, and its warnings are not ours.
SCRIPT = """
import evaluate, torch
from modeling_decodepos.diagnosis import context_leak, knn_accuracy, knn_predict, position_r2

torch.manual_seed(0)
a, b, c, d = torch.randn(4, 30, 5)
labels, others = torch.randint(0, 3, (2, 30))
load = lambda name: evaluate.load("./training/evaluation/metrics/" + name)
found = load("object_knn").compute(predictions=a, references=labels, gallery=b, gallery_labels=others, k=7)
expected = knn_accuracy(knn_predict(b, others, a, k=7), labels)
assert found == {"micro": expected.micro, "class_mean": expected.class_mean}, found
found = load("coupling").compute(predictions=a, references=a + b, other_content=b + c)
expected = context_leak(a, a + b, b + c)
assert found == {"leak": expected.leak, "content": expected.content, "context": expected.context}, found
found = load("position").compute(
    predictions=a, references=b[:, :2], train_features=c, train_centres=(c + 0.1 * d)[:, :2]
)
assert found == {"position_r2": position_r2(c, (c + 0.1 * d)[:, :2], a, b[:, :2])}, found
metric = load("object_knn")
for start in range(0, 30, 8):
    metric.add_batch(predictions=a[start : start + 8], references=labels[start : start + 8])
expected = knn_accuracy(knn_predict(b, others, a, k=20), labels)
assert metric.compute(gallery=b, gallery_labels=others)["micro"] == expected.micro
print("as it should be")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("evaluate") is None, reason="needs evaluate")
def test_modules_load_offline_and_equal_the_functions(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("as it should be")


@pytest.mark.parametrize("path", sorted(METRICS.glob("*/*.py")), ids=lambda path: path.stem)
def test_modules_import_one_thing_per_line(path: Path):
    """`evaluate` reads import statements with a pattern that knows no commas."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.startswith("import ") and "," in line]
