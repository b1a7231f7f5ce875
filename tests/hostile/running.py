"""Commands as people type them, run in this process: how they ended, and whether that is how a command should end."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

COMMANDS = {
    "pretrain": "training.pretrain",
    "evaluate": "training.evaluation.__main__",
    "export": "training.export.__main__",
    "publish run": "training.publish.__main__",
    "report": "training.run.report",
    "sweep": "training.sweep.__main__",
    "views": "training.views.__main__",
    "cache": "training.data.cache",
    "find": "training.probes.find",
    "diagnose": "modeling_decodepos.diagnosis.command",
    "prepare": "dataset_scripts.prepare",
    "preview": "dataset_scripts.preview",
    "overlap": "dataset_scripts.overlap",
    "publish data": "dataset_scripts.publish",
}


@dataclass(frozen=True)
class Ended:
    """How a command ended; `escaped` is what a user would have seen as a traceback."""

    code: int
    text: str  # of both outputs
    escaped: BaseException | None = None


def run(command: str, *words: object) -> Ended:
    """The command with these words."""
    main = importlib.import_module(COMMANDS[command]).main
    shown = io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library says beside the error is no matter here
            code: object = main([str(word) for word in words]) or 0
    except SystemExit as end:
        code = end.code
    except Exception as error:
        return Ended(1, shown.getvalue(), error)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if isinstance(code, str):
        shown.write(code)
    return Ended(code if isinstance(code, int) else 1, shown.getvalue())


def refused(command: str, words: Sequence[object], *says: str, codes: Sequence[int] = (1, 2)) -> str:
    """What a command that must refuse these words says; every pattern of `says` is to be found in it."""
    return judge(run(command, *words), says, codes)


def judge(ended: Ended, says: Sequence[str], codes: Sequence[int] = (1, 2)) -> str:
    """What was printed; the test fails with the kind of failure as its first word."""
    if ended.escaped is not None or "Traceback (most recent call last)" in ended.text:
        pytest.fail(f"traceback: {type(ended.escaped).__name__}: {ended.escaped}\n{ended.text[-2000:]}")
    if ended.code == 0:
        pytest.fail(f"silent: exit code 0\n{ended.text[-2000:]}")
    if missing := [pattern for pattern in says if not re.search(pattern, ended.text, re.DOTALL)]:
        pytest.fail(f"cryptic: nothing of {missing} in\n{ended.text[-2000:]}")
    assert ended.code in codes
    return ended.text
