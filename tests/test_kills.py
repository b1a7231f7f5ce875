"""A hundred SIGKILLs, each aimed at a step on the files of a command: the same command again ends as if undisturbed.

`make test-slow` runs them; `-s` shows the table of places.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.dataset_scripts.small_sources import annotation_entry, coco, image_entry
from tests.hostile.conftest import SMALL_RUN
from tests.hub_server import TOKEN, HubServer, Reply, Request
from tests.killing import KILLS, Kill, Killing, contents, differences
from tests.training.conftest import scenes  # noqa: F401
from tests.training.evaluation.conftest import squares  # noqa: F401
from training.publish.folders import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

Tree = dict[str, bytes | None]


@dataclass
class Command:
    """A command whose every output lies in one folder."""

    forks: Killing
    main: str
    words: tuple[object, ...]
    output: Path
    prepare: Callable[[], object] = lambda: None  # what must be there before
    read: Callable[[], Tree] = dict  # what it leaves elsewhere
    killed: Counter[str] = field(default_factory=Counter)  # by place
    failed: list[str] = field(default_factory=list)  # to end as undisturbed: where, and how it did

    def fresh(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir()
        self.prepare()

    def result(self) -> Tree:
        return contents(self.output) | self.read()

    def whole(self) -> tuple[Tree, list[tuple[str, str]]]:
        """What it leaves undisturbed, and its steps."""
        self.fresh()
        end = self.forks.run(self.main, self.words, self.output)
        assert end.code == 0, end.text[-3000:]
        return self.result(), end.steps

    def kill(self, place: str, kill: Kill, expected: Tree, may_differ: set[tuple[str, str]]) -> None:
        """The command killed there, and again: it must end well, with the same files and bytes."""
        self.fresh()
        end = self.forks.run(self.main, self.words, self.output, kill)
        if end.code == 0 and kill.within:
            return  # nothing so long was written from there on
        assert end.code in KILLS, (place, kill, end.code, end.text[-3000:])
        self.finish(place, expected, may_differ)

    def finish(self, place: str, expected: Tree, may_differ: set[tuple[str, str]]) -> None:
        again = self.forks.run(self.main, self.words, self.output)
        self.killed[place] += 1
        if again.code:
            self.failed.append(f"{place}: {again.text[-1500:]}")
        elif wrong := differences(expected, self.result()) - may_differ:
            self.failed.append(f"{place}: {sorted(wrong)}")
        print("F" if self.failed and self.failed[-1].startswith(place) else ".", end="", flush=True)


def place_of(step: tuple[str, str]) -> str:
    """A step without what is another in every run."""
    what, path = step
    name = re.sub(r"\.?([\w.-]+)\.[0-9a-f]{8}\.tmp", r"\1 (new)", path)
    return f"{what.removeprefix('os.')} {re.sub(r'(?<=_)[a-z0-9_]{8}(?=/|$)|[0-9a-f]{12,}', '…', name)}"


def spread(steps: list[tuple[str, str]], count: int) -> Iterator[tuple[str, Kill]]:
    """Steps to die at, in turn before one and within the writing after it: evenly over all places, each once first."""
    seen: Counter[str] = Counter()
    firsts, others = [], []
    for number, step in enumerate(steps):
        (others if seen[place_of(step)] else firsts).append(number)
        seen[place_of(step)] += 1
    chosen = [firsts[number * len(firsts) // count] for number in range(count)] if count < len(firsts) else firsts
    order = [*chosen, *(number for number in firsts if number not in chosen), *others]
    for turn in range(2):
        for number, step in enumerate(order):
            yield place_of(steps[step]), Kill(step, within=number % 2 != turn)


def kill_often(command: Command, count: int) -> None:
    """Kills it at `count` places, and prints them."""
    (expected, steps), (second, _) = command.whole(), command.whole()
    may_differ = differences(expected, second) | differences(second, expected)  # times
    for place, kill in spread(steps, count):
        if command.killed.total() == count:
            break
        command.kill(place, kill, expected, may_differ)
    show(command)
    assert command.killed.total() == count


def show(command: Command) -> None:
    """The table: places, kills, and what went wrong after them."""
    ended = command.killed.total() - len(command.failed)
    print(f"\n{command.main} {command.words[0]}: {command.killed.total()} kills, {ended} ended as undisturbed")
    for place, times in command.killed.items():
        print(f"  {times} x {place}")
    assert not command.failed, "\n".join(command.failed)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killing]:
    modules = ["dataset_scripts.prepare", "dataset_scripts.sources.scenes", "dataset_scripts.sources.coco.builder"]
    modules += ["training.pretrain", "training.run.setup", "training.run.finish", "training.run.report"]
    modules += ["training.evaluation.__main__", "training.evaluation.measure", "training.evaluation.object_knn"]
    modules += ["modeling_decodepos.diagnosis.command", "modeling_decodepos.diagnosis.run", "transformers"]
    with Killing(modules, tmp_path_factory.mktemp("forks"), OMP_NUM_THREADS="1") as started:
        yield started


def test_a_run(forks: Killing, scenes: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "runs"
    words = [*SMALL_RUN, "--mixed_precision", "no", "--probe_count", 4, "--save_steps", 1, "--data", scenes]
    words += ["--measure_steps", 1, "--measure_images", 8, "--max_steps", 2, "--output_dir", out / "run"]
    kill_often(Command(forks, "training.pretrain", tuple(words), out), 28)


def test_a_build_of_scenes(forks: Killing, tmp_path: Path) -> None:
    out = tmp_path / "built"
    words = ("scenes", "--train", 6, "--validation", 3, "--size-px", 32, "--workers", 1, "--output", out / "scenes")
    kill_often(Command(forks, "dataset_scripts.prepare", words, out), 20)


def test_a_build_of_coco(forks: Killing, tmp_path: Path) -> None:
    images = [image_entry(number) for number in range(1, 5)]
    boxes = [annotation_entry(number, number, [3, 4, 20, 15]) for number in range(1, 5)]
    source, out = coco(tmp_path / "coco", images, boxes), tmp_path / "built"
    words = ("coco", "--source", source, "--workers", 1, "--output", out / "coco")
    kill_often(Command(forks, "dataset_scripts.prepare", words, out), 20)


def test_an_evaluation(forks: Killing, squares: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "results"
    words = ("object_knn", "--model", "random:resnet_tiny", "--data", squares, "--size_px", 64)
    kill_often(Command(forks, "training.evaluation.__main__", (*words, "--output", out / "knn.json"), out), 6)


def test_a_diagnosis(forks: Killing, squares: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "results"
    words = ("random:resnet_tiny", "--data", squares, "--size", 64, "--images", 8, "--measures", "norms")
    words = (*words, "--output", out / "report")
    kill_often(Command(forks, "modeling_decodepos.diagnosis.command", words, out), 6)  # all there are


class KillingHub(HubServer):
    """A Hub that kills its visitor at a request, before or after it was done."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.at, self.visitor = 0, -1, 0

    def answer(self, request: Request) -> Reply:
        if (number := self.seen) == self.at and number % 2:
            os.kill(self.visitor, signal.SIGKILL)
        reply = super().answer(request)
        if number == self.at and not number % 2:
            os.kill(self.visitor, signal.SIGKILL)
        self.seen += 1
        return reply

    def forget(self) -> None:
        self.repos.clear()
        self._objects.clear()
        self.log.clear()
        self.seen, self.at = 0, -1


@contextmanager
def publishing(run: Path, tmp_path: Path) -> Iterator[tuple[Command, KillingHub]]:
    with KillingHub() as hub:
        environment = {name: value for name, value in hub.env(tmp_path / "home", TOKEN).items() if "HF" in name}
        modules = ["training.publish.__main__", "training.publish.command", "dataset_scripts.build.engines"]
        with Killing([*modules, "transformers"], tmp_path, NO_PROXY="127.0.0.1", **environment) as forks:
            out = tmp_path / "out"

            def prepare() -> None:
                hub.forget()
                shutil.copytree(run, out / "run", ignore=shutil.ignore_patterns("release"))

            def read() -> Tree:
                names = ("org/tiny", "org/tiny-pretraining")
                found = {f"hub/{name}/{path}": held for name in names for path, held in hub.files(name).items()}
                refs = {name: sorted(hub.repos["models", name].tags) for name in names}
                return found | {"hub/tags.json": json.dumps(refs).encode()}

            words = (out / "run", "--repo", "org/tiny", "--revision_tag", "v1")
            yield Command(forks, "training.publish.__main__", words, out, prepare, read), hub


def test_a_release(forks: Killing, scenes: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "made"
    run.mkdir()
    words = [*SMALL_RUN, "--mixed_precision", "no", "--data", scenes, "--output_dir", run / "run", "--probe_count", 4]
    end = forks.run("training.pretrain", tuple(words), run)
    assert end.code == 0, end.text
    described = json.loads((run / "run/run.json").read_text())
    (run / "run/run.json").write_text(json.dumps(described | {"commit": "0123456789abcdef" * 2 + "01234567"}))
    assert all((run / "run/export" / kind).is_dir() for kind in KINDS)
    with publishing(run / "run", tmp_path) as (command, hub):
        kill_often(command, 10)
        expected, _ = command.whole()
        requests = [f"{line.method} {re.sub(r'/[0-9a-f]{12,}', '/…', line.path)}" for line in hub.log]
        second, _ = command.whole()
        may_differ = differences(expected, second) | differences(second, expected)
        command.killed.clear()
        for number in range(0, len(requests), max(1, len(requests) // 12)):
            command.fresh()
            hub.at = number
            hub.visitor = command.forks.start(command.main, command.words, command.output)
            assert command.forks.end().code == -signal.SIGKILL
            hub.at = -1
            command.finish(requests[number], expected, may_differ)
        show(command)
        assert command.killed.total() >= 10
