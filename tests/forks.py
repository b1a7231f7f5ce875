"""Python processes that start in a moment: forks of one that has imported the libraries already, and nothing of ours.

They are processes as any other: with a number, a session, an environment and outputs of their own, and killed as any.
Only what a library reads of the environment when it is imported is what it was when the first one started.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch._dynamo", "transformers.models.auto.processing_auto", "transformers.models.resnet.modeling_resnet")
LIBRARIES += ("accelerate", "datasets", "scipy.optimize", "cv2")


class Fork:
    """One such process, with what `subprocess.Popen` has of one that writes into files."""

    def __init__(self, line: socket.socket, outputs: tuple[Path, Path]):
        self.line, self.outputs = line, outputs
        self.returncode: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        told = self.line.recv(4)
        if not told:  # read as a number, it would be the exit code of a success
            self.line.close()
            raise RuntimeError("what started this process, or waited for it, has ended itself.")
        return int.from_bytes(told, "big", signed=True)

    def poll(self) -> int | None:
        """The exit code, a negative one for a signal, once it has ended."""
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        """The same, with some time for it."""
        if self.returncode is None and select.select([self.line], [], [], timeout)[0]:
            self.returncode = self._number()
            self.line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing, if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Both outputs, of one that has ended in time."""
        if self.wait(timeout) is None:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        output, errors = (path.read_text(errors="replace") for path in self.outputs)
        return output, errors


class Forks:
    """A process that forks; `modules` are what it imports first."""

    def __init__(self, modules: Sequence[str], **environment: str):
        self.folder = tempfile.TemporaryDirectory(prefix="forks-")
        self.orders, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(theirs.fileno()), *modules],
                cwd=ROOT,
                env=os.environ | environment,
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """It ends; what it started goes on."""
        self.orders.close()
        self.process.wait(60)
        self.folder.cleanup()

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(
        self,
        command: Sequence[str | Path],
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        outputs: tuple[Path, Path] | None = None,
    ) -> Fork:
        """Starts what `python WORDS` would; the outputs go into files."""
        if outputs is None:
            made = [tempfile.mkstemp(dir=self.folder.name) for _ in range(2)]
            for number, _ in made:
                os.close(number)
            outputs = (Path(made[0][1]), Path(made[1][1]))
        order = {"words": [str(word) for word in command], "cwd": str(cwd), "env": env or dict(os.environ)}
        order["outputs"] = [str(path) for path in outputs]
        line, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self.orders, [b"."], [theirs.fileno()])
            line.sendall(json.dumps(order).encode() + b"\n")
            return Fork(line, outputs)
        except BaseException:
            line.close()
            raise

    def run(
        self, command: Sequence[str | Path], cwd: Path = ROOT, env: dict[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """The same, once it has ended."""
        fork = self.start(command, cwd, env)
        output, errors = fork.communicate(timeout)
        assert fork.returncode is not None
        return subprocess.CompletedProcess(command, fork.returncode, output, errors)


@functools.cache
def python() -> Forks:
    """The one that tests of this process share."""
    forks = Forks(LIBRARIES, OMP_NUM_THREADS="1")
    atexit.register(forks.close)
    return forks


def call_in_two(function: Callable[..., object], *arguments: object) -> None:
    """FUNCTION(RANK, ...) in two processes at a time, as `torch.multiprocessing.spawn` does it."""
    code = "import pickle, sys; call, words = pickle.loads(bytes.fromhex(sys.argv[2])); call(int(sys.argv[1]), *words)"
    call = pickle.dumps((function, arguments)).hex()
    both = [python().start(["-c", code, str(rank), call]) for rank in range(2)]
    try:
        for fork in both:
            _, errors = fork.communicate(120)
            assert fork.returncode == 0, errors
    finally:
        for fork in both:
            fork.send_signal(signal.SIGKILL)


def _serve(orders: socket.socket, modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # a fork that ends would look through all of them, and copy their memory with that
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        _, received, *_ = socket.recv_fds(orders, 1, 1)
        if not received:
            return
        if os.fork() == 0:
            orders.close()
            return _stand_by(socket.socket(fileno=received[0]))
        os.close(received[0])


def _stand_by(line: socket.socket) -> None:
    """Starts one, and tells its number and its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with line.makefile("r") as stream:
        order = json.loads(stream.readline())
    if child := os.fork():
        line.sendall(child.to_bytes(4, "big", signed=True))
        _, status = os.waitpid(child, 0)
        line.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        os._exit(0)
    line.close()
    os.setsid()
    for number, path in ((0, os.devnull), *enumerate(order["outputs"], start=1)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    tempfile.tempdir = None  # of the environment before
    _be_python(order["words"])


def _be_python(words: list[str]) -> None:
    sys.path[0] = ""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).absolute().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
