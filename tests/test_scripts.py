"""The one-file scripts: what their headers ask for exists, and pretrain.py trains with the tag that it names."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import modeling_decodepos
from scripts import pretrain

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def header(path: Path) -> dict[str, Any]:
    (block,) = re.findall(r"^# /// script\n((?:#.*\n)+?)# ///$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_header_asks_for_this_library(path: Path):
    asked = header(path)
    assert asked["requires-python"] == PROJECT["requires-python"]
    (wanted,) = map(Requirement, asked["dependencies"])
    assert wanted.name == PROJECT["name"] and wanted.extras <= PROJECT["optional-dependencies"].keys()
    assert modeling_decodepos.__version__ in wanted.specifier


@pytest.mark.parametrize("name", ["diagnose", "embed"])
def test_they_are_the_commands_of_the_library(name: str):
    call = [sys.executable, str(ROOT / "scripts" / f"{name}.py")]
    done = subprocess.run([*call, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name}.py ") and "--size_px" in done.stdout
    assert subprocess.run([*call, "--nothing"], cwd=ROOT, capture_output=True).returncode == 2


def test_the_lines_for_jobs_are_taken(tmp_path: Path):
    """By `hf jobs uv run` itself, which reads the headers and sends nothing."""
    pytest.importorskip("huggingface_hub.cli._uv_script_header")
    (tmp_path / "my_pictures").mkdir()
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    text = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("hf jobs uv run ")]
    assert len(lines) == len(SCRIPTS)
    for line in lines:
        words = shlex.split(line.removeprefix("hf "))
        run = "import sys; from huggingface_hub.cli.hf import main; sys.exit(main())"
        call = [sys.executable, "-c", run, *words[:3], "--dry-run", *words[3:]]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "not submitted" in said.lower(), said
        script = next(word for word in words if word.endswith(".py"))
        wanted = header(ROOT / script)["tool"]["hf-jobs"]
        assert wanted["flavor"] in said and wanted["timeout"] in said


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=n@example.com", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tags; the training of each says which it is, and with what it was called."""
    folder = tmp_path / "repository"
    (folder / "training" / "recipes").mkdir(parents=True)
    (folder / "training" / "recipes" / "mini.yaml").write_text("max_steps: 1\n")
    git(folder, "init")
    for tag in ("v1", "v2"):
        (folder / "other.py").write_text(f"TAG = {tag!r}\n")
        code = "import sys, other\nopen('said', 'a').write(f'{other.TAG} {sys.argv[1:]}\\n')\nsys.exit(75)\n"
        (folder / "training" / "pretrain.py").write_text(code)
        git(folder, "add", ".")
        git(folder, "commit", "-m", tag)
        git(folder, "tag", tag)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_pretrain_trains_with_the_tag(repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture):
    call = ["--repository", str(repository), "--tag", "v1", "--recipe"]
    (tmp_path / "here" / "own.yaml").write_text("")
    assert pretrain.main([*call, "mini", "--max_steps", "3", "--data", "d"]) == 75  # the code of the training
    assert pretrain.main([*call, "own.yaml"]) == 75  # and again, with what is there
    first, second = Path("said").read_text().splitlines()
    assert first.startswith("v1 ") and first.endswith("recipes/mini.yaml', '--max_steps', '3', '--data', 'd']")
    assert second == "v1 ['own.yaml']"
    assert pretrain.main([*call, "nothing"]) == 2
    assert "--recipe is 'nothing': no file, and none of mini." in capfd.readouterr().err


def test_pretrain_refuses_what_is_not_the_tag(repository: Path, capfd: pytest.CaptureFixture):
    call = ["--repository", str(repository), "--recipe", "mini"]
    assert pretrain.main([*call, "--tag", "v9"]) == 2
    assert "could not check out the tag v9" in capfd.readouterr().err
    assert pretrain.main([*call, "--tag", "v1"]) == 75
    assert pretrain.main([*call, "--tag", "v2"]) == 2
    assert "decodepos-checkout is there and is not the tag v2" in capfd.readouterr().err
    default = pretrain.build_parser().parse_args(["--repository", "x"]).tag
    assert default == f"v{modeling_decodepos.__version__}"
