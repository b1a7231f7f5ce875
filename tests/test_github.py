"""What stands ready for GitHub, for an index and for agents: workflows, forms, the release, SKILL.md."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import modeling_decodepos

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def load(path: Path) -> dict[str, Any]:
    text = re.sub(r"^on:", "'on':", path.read_text(encoding="utf-8"), flags=re.MULTILINE)  # YAML 1.1 reads a truth
    return yaml.safe_load(text)


def runs(job: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


@pytest.fixture(scope="module")
def release() -> Any:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_runs_is_here(path: Path):
    workflow = load(path)
    assert workflow["on"] and workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    text = "\n".join(map(runs, jobs.values()))
    called = set(re.findall(r"\bmake ([\w-]+)", text))
    assert called and called <= TARGETS
    assert all((ROOT / name).is_file() for name in re.findall(r"python (\.ci/\S+)", text))
    for job in jobs.values():
        assert job["timeout-minutes"] <= 300
        assert {*([job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", []))} <= jobs.keys()
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v1)", step.get("uses", "a/b@v1"))


def test_ci_is_what_a_newcomer_runs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    workflow = load(GITHUB / "workflows" / "ci.yml")
    check = workflow["jobs"]["check"]
    assert re.findall(r"make ([\w-]+)", runs(check)) == re.findall(r"^make ([\w-]+)", script, re.MULTILINE)
    supported = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert check["strategy"]["matrix"]["python"] == supported
    assert "test-slow" in runs(workflow["jobs"]["slow"]) and workflow["on"]["schedule"]


def test_a_release_holds_no_token_and_publishes_what_was_built():
    jobs = load(GITHUB / "workflows" / "release.yml")["jobs"]
    assert jobs["pypi"]["permissions"] == {"id-token": "write"} and jobs["pypi"]["environment"]["name"] == "pypi"
    assert "secrets." not in (GITHUB / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "make dist" in runs(jobs["build"]) and not [step for step in jobs["pypi"]["steps"] if "run" in step]


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.name)
def test_forms_ask_and_name_commands_that_exist(path: Path):
    form = load(path)
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert any(field.get("validations", {}).get("required") for field in form["body"])
    words = set(re.findall(r"decodepos (\w+)", path.read_text(encoding="utf-8")))
    assert words <= {"diagnose", "embed", "look"}


def test_version_changelog_and_citation_agree(release: Any):
    version, day, text = release.entries((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))[0]
    assert version in (modeling_decodepos.__version__, "Unreleased") and text
    assert re.fullmatch(r"|unreleased|\d{4}-\d\d-\d\d", day)
    assert release.version() == modeling_decodepos.__version__
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    assert cited == modeling_decodepos.__version__


@pytest.mark.parametrize(
    ("tag", "heading", "said"),
    [
        ("v1.2.0", "1.2.0 (2027-01-31)", ""),
        ("v1.2.1", "1.2.0 (2027-01-31)", "The tag is v1.2.1, and .* says 1.2.0"),
        ("1.2.0", "1.2.0 (2027-01-31)", "expected the tag v1.2.0"),
        ("v1.2.0", "1.2.0 (unreleased)", "expected `## 1.2.0 .YEAR-MONTH-DAY.`"),
        ("v1.2.0", "Unreleased", "begins with `## Unreleased"),
        ("v1.2.0", "1.1.0 (2027-01-31)", "begins with `## 1.1.0"),
    ],
)
def test_a_tag_is_released_only_as_what_it_is(release: Any, tmp_path: Path, tag: str, heading: str, said: str):
    (tmp_path / "modeling_decodepos").mkdir()
    (tmp_path / "modeling_decodepos" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    text = f"# Changelog\n\n## {heading}\n\n- New.\n\n## 0.9.0 (2026-12-01)\n\n- Old.\n"
    (tmp_path / "CHANGELOG.md").write_text(text)
    if said:
        with pytest.raises(ValueError, match=said):
            release.notes(tag, tmp_path)
    else:
        assert release.notes(tag, tmp_path) == "- New."


def test_the_script_refuses_in_a_line():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "release.py", "v999"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
