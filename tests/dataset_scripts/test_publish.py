"""Publishing to a Hub on loopback with the real client."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from dataset_scripts import publish as publishing
from dataset_scripts.build.parquet import build_dataset
from dataset_scripts.hub import release as hub_release
from dataset_scripts.hub.release import card_problems
from dataset_scripts.publish import main
from dataset_scripts.sources.scenes import scenes_source
from tests.hub_server import TOKEN, HubServer, StoredFile, run_python

# The client's own, about the client below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
ROOT = Path(__file__).parents[2]
SOURCE = scenes_source(train=9, validation=3, size_px=32)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "scenes"
    build_dataset(folder, SOURCE, rows_per_shard=3)
    (folder / "missing_ids.txt").write_text("scenes-0-train-000009\n")  # what a builder may add
    return folder


@pytest.fixture
def online(reachable_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """This process may talk to the Hub on loopback, and nobody waits."""
    monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint=reachable_hub.url))
    monkeypatch.setattr(hub_release, "PAUSE_S", 0.01)
    return reachable_hub


@pytest.fixture
def publish(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs the command, and gives back what it says, if it ends with `code`."""

    def run(folder: Path, *arguments: str, code: int = 0, repo: str = "org/scenes") -> str:
        assert main([str(folder), "--repo", repo, "--workers", "1", *arguments]) == code
        said = capsys.readouterr()
        assert TOKEN not in said.out + said.err
        return said.out + said.err

    return run


def published(hub: HubServer, revision: str = "main") -> dict[str, bytes]:
    files = hub.files("org/scenes", repo_type="dataset", revision=revision)
    return {path: content for path, content in files.items() if path != ".gitattributes"}


def local(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def sent(hub: HubServer) -> int:
    return sum(line.method == "PUT" and line.status == 200 for line in hub.log)


LOAD = """
from datasets import load_dataset

splits = load_dataset("org/scenes", revision="v1")
assert {split: len(rows) for split, rows in splits.items()} == {"train": 9, "validation": 3}
row = splits["train"][8]
assert row["image"].size == (32, 32) and splits["train"].features["objects"]["category"].feature.names
streamed = list(load_dataset("org/scenes", split="train", streaming=True))
assert len(streamed) == 9 and streamed[8]["objects"] == row["objects"]
"""


def test_what_is_published_loads(online: HubServer, built: Path, tmp_path: Path, publish):
    said = publish(built, "--dry-run")
    assert "7 of 7 files to upload" in said and "a new repository" in said
    assert not online.repos
    publish(built, "--revision-tag", "v1")
    assert published(online) == published(online, "v1") == local(built)
    run_python(LOAD, online.env(tmp_path / "reader", token=None))  # a stranger

    commits, puts = len(online.repos["datasets", "org/scenes"].commits), sent(online)
    assert (commits, puts) == (1 + 1, 4)
    said = publish(built, "--revision-tag", "v1")
    assert "0 of 7 files to upload, 0.0 MB" in said and "7 files, verified by hash" in said
    assert (len(online.repos["datasets", "org/scenes"].commits), sent(online)) == (commits, puts)


@pytest.mark.slow
def test_the_command_as_it_is_typed(hub: HubServer, built: Path, tmp_path: Path):
    command = [sys.executable, "-m", "dataset_scripts.publish", str(built), "--repo", "org/scenes", "--private"]
    done = subprocess.run(
        command, cwd=ROOT, env=hub.env(tmp_path / "home"), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "verified by hash" in done.stdout and TOKEN not in done.stdout + done.stderr
    assert hub.repos["datasets", "org/scenes"].private


def test_an_upload_that_breaks_off_goes_on(online: HubServer, built: Path, publish):
    online.fail_next("PUT /lfs", 400, skip=2)  # the client raises this as a RuntimeError
    assert "The Hub refuses: " in publish(built, code=2)
    done = sent(online)
    assert 0 < done < 4 and published(online) == {}  # whole or not at all
    online.fail_next("POST /api/datasets/org/scenes/commit", 500, times=5)
    said = publish(built, "--revision-tag", "v1", code=75)
    assert "(HTTP 500), after 5 tries" in said and "run the same command again" in said
    assert online.repos["datasets", "org/scenes"].tags == {} and published(online) == {}
    online.fail_next("POST /api/datasets/org/scenes/commit", 502)  # is tried again
    publish(built, "--revision-tag", "v1")
    assert published(online, "v1") == local(built)
    assert sent(online) == 4  # each file outside git went over the wire once


def test_what_is_missing_is_sent_and_the_rest_is_not(online: HubServer, built: Path, publish):
    publish(built)
    repo = online.repos["datasets", "org/scenes"]
    lost = {path: stored for path, stored in repo.commit_at("main").files.items() if path != "README.md"}
    repo.add_commit("main", lost, "lose the card")
    assert "1 of 7 files to upload" in publish(built)
    assert published(online) == local(built) and sent(online) == 4


def test_a_dry_run_needs_no_hub(built: Path, publish, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = publish(built, "--dry-run")
    assert "org/scenes (the Hub was not asked): 7 of 7 files to upload" in said and "Nothing was changed" in said


def test_a_file_that_arrives_changed_is_not_tagged(online: HubServer, built: Path, publish, monkeypatch):
    original = online._commit

    def spoil(request, repo, branch):
        reply = original(request, repo, branch)
        tip = repo.commit_at(branch)
        if "README.md" in tip.files:
            repo.add_commit(branch, {**tip.files, "README.md": StoredFile(b"---\n---\nspoiled", lfs=False)}, "spoil")
        return reply

    monkeypatch.setattr(online, "_commit", spoil)
    said = publish(built, "--revision-tag", "v1", code=2)
    assert "1 files differ from the local ones after the upload, the first is README.md" in said
    assert online.repos["datasets", "org/scenes"].tags == {}


def test_what_belongs_to_others_is_refused(online: HubServer, built: Path, tmp_path: Path, publish):
    other = tmp_path / "other"
    build_dataset(other, scenes_source(train=20, validation=3, size_px=32), rows_per_shard=3)
    (other / ".lock").unlink()  # the server takes every file
    online.add_repo("org/scenes", other, repo_type="dataset")
    before = published(online)
    said = publish(built, code=2)
    assert "train: the folder has 20, this command asks for 9" in said and "--overwrite" in said
    assert "org/scenes exists and is public" in publish(built, "--private", code=2)
    assert published(online) == before

    said = publish(built, "--overwrite", "--dry-run")
    assert any(line.startswith("  remove") and "train-00006-of-00007.parquet" in line for line in said.splitlines())
    publish(built, "--overwrite", "--revision-tag", "v1")
    assert published(online, "v1") == local(built)  # nothing of the other is left for load_dataset to read

    online.add_repo("org/scenes", other, repo_type="dataset")
    said = publish(other, "--revision-tag", "v1", code=2)
    assert "has a tag v1 with other files" in said and "tags are not moved" in said

    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("years of work")
    online.add_repo("org/scenes", notes, repo_type="dataset")
    assert "such as thesis.txt, but no manifest.json" in publish(built, code=2)
    assert published(online) == {"thesis.txt": b"years of work"}


def test_a_stranger_is_told_to_log_in(online: HubServer, built: Path, publish, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in publish(built, code=2)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf auth login" in publish(built, code=2)
    assert not online.repos


def test_what_is_not_fit_never_reaches_the_hub(built: Path, tmp_path: Path, publish):
    folder = shutil.copytree(built, tmp_path / "copy")
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card + "\nTo have a photo taken down, write to TAKEDOWN-CONTACT.\n")
    assert "still says TAKEDOWN-CONTACT" in publish(folder, code=2)
    (folder / "README.md").write_text(card)
    assert "expected ORG/NAME" in publish(folder, code=2, repo="scenes")
    assert "HF_HUB_OFFLINE" in publish(folder, code=2)  # all that is in the way now, in this process
    (folder / "data" / "train-00001-of-00003.parquet").write_bytes(b"PAR1")
    assert "cut off or replaced" in publish(folder, code=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    assert "the build is not finished" in publish(folder, code=2)
    (folder / "manifest.json").unlink()
    assert "No manifest.json" in publish(folder, code=2)


def test_a_dry_run_needs_no_network(built: Path, publish):
    """This process is offline."""
    said = publish(built, "--dry-run", "--revision-tag", "v1")
    assert "org/scenes (the Hub was not asked): 7 of 7 files to upload" in said
    assert said.count("upload  ") == 7 and "data/train-00002-of-00003.parquet" in said and "dry run" in said


def test_a_dry_run_goes_on_without_an_answer(online: HubServer, built: Path, publish):
    online.fail_next("GET /api/datasets/org/scenes", 503, times=20)
    assert "org/scenes (the Hub did not answer): 7 of 7 files to upload" in publish(built, "--dry-run")
    assert "(HTTP 503), after 5 tries" in publish(built, code=75)


def test_a_card_is_read_line_by_line():
    assert card_problems("---\nlicense: mit\n---\n# Fine\n[link](https://x)\n") == []
    assert card_problems("---\nlicense: mit\n---\n\n- Authors: [More Information Needed]\n") == [
        "line 5 still says [More Information Needed]"
    ]
    assert card_problems("# No header\n") == ["it has no YAML header between two lines of ---"]
