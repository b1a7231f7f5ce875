"""A fork is a Python process as any other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forks import Forks, python

CODE = """
import os, sys
print(sys.argv[1:], __name__, sys.path[0] in ("", os.getcwd()), os.getcwd())
print(os.environ.get("OF_MINE"), os.getsid(0) == os.getpid())
print("error", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(3)", 3), ("sys.exit('why')", 1), ("1 / 0", 1), ("os.abort()", -signal.SIGABRT)],
)
def test_it_ends_as_the_same_in_a_new_interpreter(end: str, code: int, tmp_path: Path) -> None:
    environment = os.environ | {"OF_MINE": "here"}
    words = ["-c", CODE + end, "a b", "--c"]
    new = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, start_new_session=True
    )
    fork = python().run(words, tmp_path, environment)
    assert (fork.returncode, new.returncode) == (code, code)
    if code >= 0:
        assert fork.stdout == new.stdout and "'a b'" in fork.stdout
        assert fork.stderr.splitlines()[-1] == new.stderr.splitlines()[-1]


def test_a_module_and_a_file_are_run_as_such(tmp_path: Path) -> None:
    text = "import sys, beside; print(__name__, sys.argv[1:], beside.__file__)"
    (tmp_path / "named.py").write_text(text)
    (tmp_path / "beside.py").write_text("")
    for words in (["-m", "named", "x"], [tmp_path / "named.py", "x"]):
        done = python().run(words, tmp_path)
        assert done.stdout.startswith("__main__ ['x'] ") and "beside.py" in done.stdout, done.stderr


def test_it_is_waited_for_and_killed() -> None:
    fork = python().start(["-c", "import time; print('begun', flush=True); time.sleep(60)"])
    while fork.poll() is None and not fork.outputs[0].read_text():
        time.sleep(0.01)
    assert fork.poll() is None and os.getpgid(fork.pid) == fork.pid
    with pytest.raises(subprocess.TimeoutExpired):
        fork.communicate(0.1)
    assert fork.wait(20) == -signal.SIGKILL == fork.returncode
    assert fork.communicate() == ("begun\n", "")
    fork.send_signal(signal.SIGTERM)  # too late, and no error


def test_an_end_that_nobody_tells_is_no_success() -> None:
    fork = python().start(["-c", "import time; time.sleep(60)"])
    parent = int(Path(f"/proc/{fork.pid}/stat").read_text().split()[3])
    os.kill(parent, signal.SIGKILL)  # it waits for the fork, and would tell
    with pytest.raises(RuntimeError, match="has ended itself"):
        fork.wait(20)
    os.kill(fork.pid, signal.SIGKILL)


def test_what_cannot_start_is_no_success() -> None:
    with Forks(["no_such_module"]) as forks, pytest.raises((RuntimeError, OSError)):
        forks.run(["-c", ""])
