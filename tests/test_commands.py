"""Every command has one shape: help at once, its own name, one style of flags, both spellings."""

import argparse
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

import dataset_scripts.overlap
import dataset_scripts.prepare
import dataset_scripts.publish
import modeling_decodepos.__main__
import modeling_decodepos.diagnosis.command
import modeling_decodepos.embedding.command
import modeling_decodepos.looking.command
import training.evaluation.__main__
import training.export.__main__
import training.probes.find
import training.publish.__main__
import training.sweep.__main__
import training.views.__main__
from tests.forks import ROOT, python

COMMANDS = [
    *("training.pretrain", "training.evaluation", "training.evaluation object_knn", "training.evaluation ablation"),
    *("training.export", "training.publish", "training.views", "training.run.report", "training.report"),
    *(
        "training.sweep",
        "training.tutorial",
        "training.probes.find",
        "dataset_scripts.prepare",
        "dataset_scripts.prepare openimage-mini",
    ),
    *("dataset_scripts.prepare check", "dataset_scripts.preview", "dataset_scripts.overlap"),
    *("dataset_scripts.publish", "model_cards.render", "modeling_decodepos.diagnosis.command"),
    *("modeling_decodepos", "modeling_decodepos diagnose", "modeling_decodepos embed", "modeling_decodepos look"),
]
NAMES = {
    "training.report": "python -m training.run.report",  # its former name
    "training.pretrain": "accelerate launch training/pretrain.py",
    "modeling_decodepos.diagnosis.command": "decodepos-diagnose",
    "modeling_decodepos": "decodepos",
}
HELP = """
import runpy, sys
heavy = {"torch", "transformers", "datasets"}
sys.argv = ["x", *sys.argv[2:], "--help"]
try:
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
finally:
    print("loaded", sorted(heavy & set(sys.modules)))
"""
BUILD: list[Callable[[], argparse.ArgumentParser]] = [
    dataset_scripts.prepare.build_parser,
    dataset_scripts.overlap.build_parser,
    dataset_scripts.publish.build_parser,
    modeling_decodepos.__main__.build_parser,
    modeling_decodepos.diagnosis.command.build_parser,
    modeling_decodepos.embedding.command.build_parser,
    modeling_decodepos.looking.command.build_parser,
    training.evaluation.__main__.build_parser,
    training.export.__main__.build_parser,
    training.probes.find.build_parser,
    training.publish.__main__.build_parser,
    training.sweep.__main__.build_parser,
    training.views.__main__.build_parser,
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy_and_names_the_command(command: str):
    module, *words = command.split()
    code = HELP.replace("MODULE", repr(module))
    call = [sys.executable, "-W", "ignore", "-c", code, module, *words]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    name = NAMES.get(module, f"python -m {module}")
    assert done.stdout.startswith(f"usage: {' '.join([name, *words])}")
    assert done.stdout.rstrip().endswith("loaded []")
    shown = re.findall(r"^  (--[\w-]+)", done.stdout, re.MULTILINE)
    assert "--help" in shown and not [flag for flag in shown if "-" in flag[2:]]


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    below = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [parser, *(sub for choices in below for name in choices for sub in parsers(choices[name]))]


@pytest.mark.parametrize("build", BUILD, ids=lambda build: build.__module__)
def test_flags_have_one_style_and_help(build: Callable[[], argparse.ArgumentParser]):
    for parser in parsers(build()):
        for action in parser._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), (parser.prog, action.dest)
            for flag in action.option_strings:
                assert re.fullmatch(r"-h|--[a-z][a-z0-9_]*", flag), flag


def test_both_spellings_and_the_nearest_flag(capsys: pytest.CaptureFixture):
    parser = training.publish.__main__.build_parser()
    for tag in (["--revision-tag", "v-1"], ["--revision_tag", "v-1"], ["--revision-tag=v-1"]):
        parsed = parser.parse_args(["run", "--repo", "a/b", "--dry-run", *tag])
        assert parsed.dry_run and parsed.revision_tag == "v-1"
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["run", "--repo", "a/b", "--revision-tags", "v1"])
    assert stop.value.code == 2
    assert "unknown argument --revision-tags. Did you mean '--revision_tag'?" in capsys.readouterr().err


def test_former_spellings_are_taken():
    parsed = modeling_decodepos.diagnosis.command.build_parser().parse_args(["m", "--output", "o", "--size", "64"])
    assert parsed.size_px == 64
    parsed = training.export.__main__.build_parser().parse_args(["m", "--output", "o", "--image_size_px", "64"])
    assert parsed.size_px == 64
    for flag in ("--workers", "--num_workers", "--num-workers"):
        words = ["scenes", "--output", "o", flag, "3", "--size-px", "32"]
        parsed = dataset_scripts.prepare.build_parser().parse_args(words)
        assert (parsed.workers, parsed.size_px) == (3, 32)


def test_the_probe_says_that_it_is_no_command():
    done = python().run(["-m", "training.probe", "--help"])
    assert done.returncode == 1 and "decodepos-diagnose MODEL" in done.stderr and "probe_count" in done.stderr


@pytest.mark.parametrize("name", modeling_decodepos.__main__.IN_A_CHECKOUT)
def test_what_needs_a_checkout_says_so_with_its_command(name: str, capsys: pytest.CaptureFixture):
    line = modeling_decodepos.__main__.IN_A_CHECKOUT[name]
    assert modeling_decodepos.__main__.main([name, "--seed", "a b"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{name} needs a checkout" in said and said.endswith(f"{line} --seed 'a b'")
    place = line.split()[-1]  # which exists there
    assert (ROOT / place).is_file() or importlib.util.find_spec(place)


@pytest.mark.parametrize(("words", "said"), [([], "COMMAND"), (["embde"], "'diagnose', 'embed', ")])
def test_a_command_that_is_none(words: list[str], said: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        modeling_decodepos.__main__.main(words)
    assert stop.value.code == 2 and said in capsys.readouterr().err
