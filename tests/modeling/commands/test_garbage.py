"""A command searches for garbage less; a library that is imported, or called with words, changes nothing."""

import subprocess
import sys

import pytest

CODE = """
import gc, sys
import modeling_decodepos
from modeling_decodepos.commands.settings import CommandParser

class AtTheEnd:
    def __del__(self):
        print("searched to the end")

circle = [AtTheEnd()]
circle.append(circle)
before = gc.get_threshold()
{call}
print(gc.get_threshold() == before)
del circle
"""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("CommandParser().parse_args()", ["False"]),
        ("from modeling_decodepos.__main__ import main; sys.argv[1:] = ['pretrain']; main()", ["False"]),
        ("CommandParser().parse_args([])", ["True", "searched to the end"]),
        ("", ["True", "searched to the end"]),
    ],
)
def test_only_a_process_that_is_a_command_searches_less(call: str, said: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(call=call)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == said


def test_what_a_command_throws_away_is_still_found() -> None:
    call = "CommandParser().parse_args(); thrown = AtTheEnd(); thrown.itself = thrown; del thrown"
    call += "; kept = [[] for _ in range(10_001)]"
    done = subprocess.run([sys.executable, "-c", CODE.format(call=call)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["searched to the end", "False"]
