"""Sizes beyond the memory, in a real process that may have no more than a few hundred megabytes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_decodepos.commands.memory import is_shortage, named_shortage
from tests.forks import ROOT
from tests.hostile.conftest import SMALL_RUN
from tests.training.runs import ENVIRONMENT

MORE_BYTES = 400 * 2**20

# Each command of a list, after its imports, in one process: how it ended, and what it said.
PROGRAM = """
import json, resource, sys
from pathlib import Path
from tests.hostile.running import run
import torch, transformers, training.pretrain, training.evaluation.measure, training.evaluation.object_knn
import modeling_decodepos.diagnosis.run
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for command, words in json.loads(sys.argv[2]):
    ended = run(command, *words)
    print(json.dumps([ended.code, ended.text, repr(ended.escaped)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_sizes_beyond_the_memory_are_named(scenes: Path, squares: Path, tmp_path: Path) -> None:
    run = [*SMALL_RUN, "--view_size_px", 4096, "--data", scenes, "--output_dir", tmp_path / "run"]
    knn = ["object_knn", "--model", "random:resnet_tiny", "--data", squares, "--output", tmp_path / "r.json"]
    diagnosis = ["random:resnet_tiny", "--data", squares, "--output", tmp_path / "report", "--images", 24]
    cases = (
        ("pretrain", run, r"global_batch_size 4, view_size_px 4096\..* smaller, or accumulation_steps larger\."),
        ("evaluate", [*knn, "--size_px", 8192], r"size_px 8192, batch_size \d+\. Make one of them smaller"),
        ("diagnose", [*diagnosis, "--size", 8192], r"images 24, size_px 8192\. Make one of them smaller"),
    )
    words = json.dumps([[command, list(map(str, typed))] for command, typed, _ in cases])
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(MORE_BYTES), words]
    ended = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for line, (_, _, says) in zip(ended.stdout.splitlines(), cases, strict=True):
        code, said, escaped = json.loads(line)
        assert escaped == "None" and code in (1, 2) and "Traceback" not in said, (escaped, said[-3000:])
        assert re.search(r"out of memory: \d[\d.]* (GiB|MiB) more\. What decides it: " + says, said), said[-3000:]
    assert not (tmp_path / "r.json").exists() and not (tmp_path / "report/report.json").exists()


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        (
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes.",
            "4.00 GiB",
        ),
        ("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.1 GiB", "20.00 GiB"),
        ("(-4:Insufficient memory) Failed to allocate 805306368 bytes in function 'OutOfMemoryError'", "768 MiB"),
        ("alloc of size 1024 failed: out of memory", "0.000977 MiB"),
    ],
)
def test_every_library_says_it_in_its_own_words(text: str, amount: str) -> None:
    says = rf"^out of memory: {amount} more\. What decides it: n 3\. Make"
    with pytest.raises(ValueError, match=says), named_shortage({"n": 3}):
        raise RuntimeError(text)
    assert not is_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
