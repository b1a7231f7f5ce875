"""Commands that are killed at a chosen place, each in a process of its own: forks of one that has imported everything.

A place is a step of the command on its files (a file opened for writing, a rename, a folder made, a removal), told by
Python's audit events. There it dies by SIGKILL. Or the first file that grows beyond `CUT_BYTES` from there on is cut
at that length, and the kernel kills the process with SIGXFSZ.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forks import ROOT, Forks

STEPS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate")
CUT_BYTES = 100
KILLS = (-signal.SIGKILL, -signal.SIGXFSZ)


@dataclass(frozen=True)
class Kill:
    """Where a command dies: before its step of this number, or in the writing that follows it."""

    step: int
    within: bool = False


@dataclass(frozen=True)
class End:
    """How a command ended: its exit code (a negative one is the signal), what it printed, and its steps."""

    code: int
    text: str
    steps: list[tuple[str, str]]  # what, and the path in the watched folder


class Killing:
    """Starts commands of `modules`, one after the other."""

    def __init__(self, modules: list[str], scratch: Path, **environment: str):
        self.steps = scratch / "steps.jsonl"
        self.outputs = (scratch / "output.txt", scratch / "errors.txt")
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
        self.forks = Forks([__name__, *modules], **environment)
        self.environment = os.environ | environment

    def __enter__(self) -> Killing:
        return self

    def __exit__(self, *_: Any) -> None:
        self.forks.close()

    def start(self, main: str, words: tuple[object, ...], watched: Path, kill: Kill | None = None) -> int:
        """Starts MODULE.main with these words; its process id."""
        order = {
            "main": main,
            "words": [str(word) for word in words],
            "watched": str(watched),
            "kill": None if kill is None else [kill.step, kill.within],
            "steps": str(self.steps),
        }
        code = "import json, sys; from tests.killing import watched; sys.exit(watched(json.loads(sys.argv[1])))"
        self.started = self.forks.start(["-c", code, json.dumps(order)], ROOT, self.environment, self.outputs)
        return self.started.pid

    def end(self) -> End:
        """Waits for what was started last."""
        code, text = self.started.wait(), "".join(path.read_text(errors="replace") for path in self.outputs)
        assert code is not None
        return End(code, text, [tuple(json.loads(line)) for line in self.steps.read_text().splitlines()])

    def run(self, main: str, words: tuple[object, ...], watched: Path, kill: Kill | None = None) -> End:
        """Both."""
        self.start(main, words, watched, kill)
        return self.end()


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def facts(name: str, content: bytes) -> Mapping[str, Any]:
    """What a file says, in parts: JSON by its leaves, a page without its times, the rest as a whole."""
    if name.endswith((".html", ".md")):
        return {"": re.sub(rb"\b\d[\d.:]*( |&nbsp;)?(s|seconds|min|minutes|h)\b", b"", content)}
    if not name.endswith((".json", ".jsonl")):
        return {"": content}
    lines = content.splitlines() if name.endswith(".jsonl") else [content]
    found: dict[str, Any] = {}

    def walk(value: Any, place: str) -> None:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if inner is None:
            found[place] = value
        for key, item in inner or ():
            walk(item, f"{place}/{key}")

    for number, line in enumerate(lines):
        walk(json.loads(line), str(number))
    return found


def differences(one: dict[str, bytes | None], two: dict[str, bytes | None]) -> set[tuple[str, str]]:
    """File and part of what is not the same in two trees, parts that only the second has left out."""
    found = {(name, "is not there in one of them") for name in one.keys() ^ two.keys()}
    for name in one.keys() & two.keys():
        first, second = one[name], two[name]
        if first != second and first is not None and second is not None:
            parts, others = facts(name, first), facts(name, second)
            found |= {(name, part) for part, value in parts.items() if part not in others or others[part] != value}
    return found


def _watch(order: dict[str, Any]) -> None:
    """Notes every step on files of the watched folder, and dies where it should."""
    watched, seen = order["watched"], 0
    at, within = order["kill"] or (-1, False)
    notes = os.open(order["steps"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in STEPS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(watched + "/"):
            return
        os.write(notes, (json.dumps([event, path[len(watched) + 1 :]]) + "\n").encode())
        if seen == at and within:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (CUT_BYTES, CUT_BYTES))
            os.close(notes)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the output of the command is none of its files
            os.dup2(1, 2)
        elif seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    sys.addaudithook(look)


def watched(order: dict[str, Any]) -> object:
    """The command of an order, in the process that it may kill."""
    _watch(order)
    return importlib.import_module(order["main"]).main(order["words"])
