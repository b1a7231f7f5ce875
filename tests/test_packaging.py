"""What is built and what lands in site-packages, for somebody who has the dependencies and not the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import modeling_decodepos
from modeling_decodepos.data.scenes import render_scene, sample_scene

ROOT = Path(__file__).parents[1]
NAME = f"decodepos-{modeling_decodepos.__version__}"
# What the library may bring along beside torch and transformers' model classes.
MAY_IMPORT = {"modeling_decodepos", "transformers", "tokenizers"}

# PYTHONPATH may point at the checkout.
UNAWARE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Built:
    """The sdist as it unpacks, and a wheel made of nothing else."""

    source: Path
    wheel: Path


def run(*command: str | Path, cwd: Path, environment: Mapping[str, str] = UNAWARE) -> str:
    """What a command prints."""
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")

    def build(what: str, cwd: Path) -> Path:
        code = f"import hatchling.build; print(hatchling.build.{what}({str(folder)!r}))"
        return folder / run(sys.executable, "-c", code, cwd=cwd, environment=os.environ).split()[-1]

    with tarfile.open(build("build_sdist", ROOT)) as archive:
        archive.extractall(folder, filter="data")
    return Built(folder / NAME, build("build_wheel", folder / NAME))


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and with the dependencies of this one behind it."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, built.wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    assert {path.name for path in site.iterdir()} == {"modeling_decodepos", f"{NAME}.dist-info"}
    # Lines of a .pth file join sys.path, but .pth files there are not read: an editable install stays unseen.
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return folder


def files_under(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_sdist_holds_everything_that_git_does(built: Built):
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("no git checkout to compare with")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    assert files_under(built.source) == {path for path in listed if (ROOT / path).is_file()} | {"PKG-INFO"}
    rooms = {path.partition("/")[0] for path in files_under(built.source)}
    assert rooms >= {"benchmarks", "dataset_scripts", "docs", "model_cards", "modeling_decodepos", "tests", "training"}


def test_the_tests_in_the_sdist_run(built: Built):
    chosen = ["tests/test_readme.py", "tests/test_security.py", "tests/modeling/test_losses.py"]
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, cwd=built.source)


def test_the_library_is_installed_whole(built: Built, installed: Path):
    (site,) = installed.glob("lib/python*/site-packages")
    assert files_under(site / "modeling_decodepos") == files_under(ROOT / "modeling_decodepos")
    assert "py.typed" in files_under(site / "modeling_decodepos")
    metadata = (site / f"{NAME}.dist-info" / "METADATA").read_text(encoding="utf-8")
    assert not re.search(r"^Requires-Dist: torchvision", metadata, re.MULTILINE)


IMPORT = """
import importlib, json, sys, time

sys.modules["torchvision"] = None  # as if it were not installed
import torch, transformers

def measured(action):
    before, start = set(sys.modules), time.process_time()
    action()
    return time.process_time() - start, sorted({name.partition(".")[0] for name in set(sys.modules) - before})

# `import transformers` alone imports next to nothing; these are what anybody needs who loads a model.
MODELS = ("AutoBackbone", "AutoModelForPreTraining", "PreTrainedModel")
seconds_models, _ = measured(lambda: [getattr(transformers, name) for name in MODELS])
seconds, new = measured(lambda: importlib.import_module("modeling_decodepos"))
later = [name for name in ("scenes", "page", "diagnosis") if f"modeling_decodepos.{name}" in sys.modules]
others = []
for name in ("training", "dataset_scripts", "model_cards", "benchmarks", "tests"):
    try:
        others.append(importlib.import_module(name).__name__)
    except ModuleNotFoundError:
        pass
print(json.dumps({
    "seconds": seconds, "seconds_models": seconds_models, "new": new, "later": later, "others": others,
    "at": sys.modules["modeling_decodepos"].__file__,
}))
"""


def test_importing_it_brings_itself_and_no_more(installed: Path):
    found = json.loads(run(installed / "bin" / "python", "-c", IMPORT, cwd=installed).splitlines()[-1])
    print(
        f"\nimport modeling_decodepos: {found['seconds']:.2f} s of processor time after torch and transformers' model "
        f"classes, which take {found['seconds_models']:.2f} s themselves"
    )
    assert Path(found["at"]).is_relative_to(installed)
    assert set(found["new"]) - sys.stdlib_module_names <= MAY_IMPORT
    assert not found["later"]  # drawing scenes and pages, and the diagnosis, come when they are asked for
    assert not found["others"]  # the checkout's packages are not installed


def test_the_commands_are_installed(installed: Path):
    assert "usage: decodepos-diagnose" in run(installed / "bin" / "decodepos-diagnose", "--help", cwd=installed)
    program, seconds = installed / "bin" / "decodepos", []
    for _ in range(2):  # the first time compiles
        started = time.monotonic()
        text = run(program, "--help", cwd=installed)
        seconds.append(time.monotonic() - started)
    print(f"\ndecodepos --help: {seconds[-1]:.2f} s")
    assert all(f"    {name} " in text or f"    {name}\n" in text for name in ("diagnose", "embed", "look", "pretrain"))
    assert seconds[-1] < 2
    lost = subprocess.run([program, "pretrain"], cwd=installed, env=UNAWARE, capture_output=True, text=True)
    assert lost.returncode == 2 and "accelerate launch training/pretrain.py" in lost.stderr
    assert len(lost.stderr.splitlines()) == 1


def test_the_three_commands_do_their_work_from_the_wheel(installed: Path, tmp_path: Path):
    program = installed / "bin" / "decodepos"
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = render_scene(sample_scene(0, number, 96)).pixels
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    call: tuple[str | Path, ...] = (program, "embed", "random:resnet_tiny", "--data", "photos", "--size_px", "64")
    assert "3 pictures (3 image, 27 regions)" in run(*call, "--output", "f.parquet", cwd=tmp_path)
    assert "3 pictures" in run(*call, "--features", "maps", "--output", "f.safetensors", cwd=tmp_path)
    code = "from modeling_decodepos.embedding import load_features; print(load_features('f.parquet').feature.shape)"
    assert "(30, 256)" in run(installed / "bin" / "python", "-c", code, cwd=tmp_path)
    words = ("photos/0.png", "scene:0", "--beside", "random:resnet18", "--size_px", "96")
    run(program, "look", "random:resnet_tiny", *words, cwd=tmp_path)
    assert (tmp_path / "look.png").is_file() and (tmp_path / "look.html").is_file()
    few = ("--images", "8", "--size_px", "64", "--random_seeds", "1", "--measures", "position,context")
    run(program, "diagnose", "random:resnet_tiny", *few, "--output", "report", cwd=tmp_path)
    assert (tmp_path / "report" / "report.html").is_file()


def test_a_model_goes_out_and_comes_back(installed: Path):
    code = """
import torch
from modeling_decodepos import DecodePosConfig, DecodePosForPreTraining, DecodePosModel
from transformers import AutoModel, ResNetConfig

backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
config = DecodePosConfig(backbone_config=backbone, projector_hidden_size=8, projection_size=4)
DecodePosForPreTraining(config).save_pretrained("model")
model = AutoModel.from_pretrained("model").eval()
print(type(model) is DecodePosModel, model(torch.randn(1, 3, 64, 64)).pooler_output.shape)
"""
    assert run(installed / "bin" / "python", "-c", code, cwd=installed).split("\n")[0].startswith("True")
