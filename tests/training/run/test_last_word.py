"""What a launcher says about a program that ended does not stand below what the program said itself."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
LAUNCHERS = {
    "accelerate": ("-m", "accelerate.commands.launch"),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
}


def screen(launcher: str, values: dict[str, Any], *more: str) -> tuple[int, list[str]]:
    """Exit code, and the lines that a terminal would show."""
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, *LAUNCHERS[launcher], "training/pretrain.py", *flags, *more]
    env = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    how: dict[str, Any] = {"cwd": ROOT, "env": env, "text": True, "timeout": 200}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)
    return done.returncode, done.stdout.rstrip().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--no_such", "3"], "training/pretrain.py: error: unknown argument --no_such. Did you mean '--no_cpu'?"),
        (["--data", "/nowhere"], "data: no folder at /nowhere."),
    ],
)
def test_the_message_is_below_the_launchers_traceback(
    launcher: str, more: list[str], said: str, recipe_values: dict[str, Any]
):
    code, lines = screen(launcher, recipe_values, *more)
    assert code != 0 and lines[-1].startswith(said), lines[-5:]
    assert any(line.startswith(said) for line in lines[:-1])  # and where it belongs, above
    assert sum(line.startswith(said) for line in lines) <= 3  # two processes say it once each


@pytest.mark.slow
def test_after_success_the_last_lines_are_ours(recipe_values: dict[str, Any]):
    code, lines = screen("accelerate", recipe_values)
    assert code == 0 and lines[-1].lstrip().startswith("model = AutoModel.from_pretrained("), lines[-5:]


def test_without_a_launcher_it_is_said_once(recipe_values: dict[str, Any]):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "TORCHELASTIC"))}
    command = [sys.executable, "training/pretrain.py", "--no_such", "3"]
    done = subprocess.run(command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("unknown argument") == 1
