"""Publishing a run to a Hub on loopback with the real client, and loading it as a stranger does."""

import dataclasses
import json
import pickle
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load_file, save_file

import training.publish.command as publishing
from dataset_scripts import publish as data_publishing
from dataset_scripts.hub import release as hub_release
from dataset_scripts.hub.release import card_problems
from tests.hub_server import TOKEN, HubServer, StoredFile, run_python
from tests.training.runs import run_here
from training.publish import folders
from training.publish.__main__ import build_parser, main
from training.publish.about import About
from training.run.places import command_without_places

# The client's own, about the client below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLAIN, WHOLE = "org/tiny", "org/tiny-pretraining"


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest run that is finished, under a commit whatever this checkout is."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    values = {
        "data": scenes, "output_dir": folder, "view_size_px": 64, "backbone": "resnet_tiny", "region_bins": 4,
        "mixed_precision": "no",
        "projector_hidden_size": 32, "projection_size": 16, "max_steps": 2, "global_batch_size": 8, "cpu": True,
        "base_learning_rate": 0.02, "optimizer": "adamw", "log_steps": 1, "measure_steps": 0, "probe_count": 4,
        "num_workers": 0,
    }  # fmt: skip
    assert run_here(values) == 0
    change(folder / "run.json", commit=COMMIT)
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(finished, tmp_path / "tiny", ignore=shutil.ignore_patterns("checkpoints", "release"))


@pytest.fixture
def online(reachable_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """This process may talk to the Hub on loopback, and nobody waits."""
    monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint=reachable_hub.url))
    monkeypatch.setattr(hub_release, "PAUSE_S", 0.01)
    return reachable_hub


@pytest.fixture
def publish(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs the command, and gives back what it says, if it ends with `code`."""

    def run(folder: Path, *arguments: str, code: int = 0, repo: str = PLAIN) -> str:
        ended = main([str(folder), "--repo", repo, *arguments])
        said = "".join(capsys.readouterr())
        assert ended == code, said
        assert TOKEN not in said
        return said

    return run


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def published(hub: HubServer, repo: str = PLAIN, revision: str = "main") -> dict[str, bytes]:
    return {path: text for path, text in hub.files(repo, revision=revision).items() if path != ".gitattributes"}


def local(run_dir: Path, name: str = "tiny") -> dict[str, bytes]:
    folder = run_dir / "release" / name
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sent(hub: HubServer) -> tuple[int, int]:
    """Files stored outside git, and commits."""
    return sum(line.method == "PUT" and line.status == 200 for line in hub.log), sum(
        len(repo.commits) for repo in hub.repos.values()
    )


def result_row(**values: object) -> dict[str, object]:
    row = {
        "model": "random:resnet18", "arm": "untrained", "protocol": "object_knn-1:k=20", "metric": "accuracy",
        "value": 0.25, "spread": {"std_over_seeds": 0.01, "interval_95_over_images": [0.2, 0.3]}, "seeds": [0, 1],
        "command": "python -m training.evaluation object_knn --data /somewhere/scenes", "commit": COMMIT,
        "label": "reduced scale",
    }  # fmt: skip
    return row | values


def write_results(run_dir: Path, *rows: dict[str, object]) -> None:
    (run_dir / "results.json").write_text(json.dumps({"results": rows}))


STRANGER = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_decodepos", "training", "model_cards", "dataset_scripts", "tests"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import torch
from transformers import AutoModel, AutoModelForPreTraining

def load(loader, *args, **kwargs):
    model, report = loader.from_pretrained(*args, output_loading_info=True, **kwargs)
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    return model.eval()

torch.manual_seed(0)
pixels = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    plain = load(AutoModel, "org/tiny", revision="v1")
    assert not any(name.startswith("transformers_modules") for name in sys.modules)
    features = plain(pixels).last_hidden_state
    try:
        AutoModel.from_pretrained("org/tiny-pretraining", trust_remote_code=False)
        raise SystemExit("loaded without its code")
    except ValueError as error:
        assert "trust_remote_code" in str(error)
    whole = load(AutoModelForPreTraining, "org/tiny-pretraining", revision="v1", trust_remote_code=True)
    student = whole.decodepos.backbone.state_dict()
    assert all(torch.equal(value, student[key]) for key, value in plain.state_dict().items())
    teacher = whole.teacher["decodepos"].backbone.state_dict()
    assert any(not torch.equal(value, teacher[key]) for key, value in student.items())
    extractor = load(AutoModel, "org/tiny-pretraining", revision="v1", trust_remote_code=True)
    regions = [torch.tensor([[0.1, 0.2, 0.6, 0.9]])] * 2
    assert extractor(pixels, regions=regions).region_embeddings.isfinite().all()
    latest = load(AutoModel, "org/tiny").state_dict()
    assert any(not torch.equal(value, latest[key]) for key, value in plain.state_dict().items())  # v1 stayed
print("loaded", tuple(features.shape))
"""


@pytest.mark.slow
def test_strangers_load_both_and_the_pinned_revision_stays(online: HubServer, run_dir: Path, tmp_path: Path, publish):
    publish(run_dir, "--revision-tag", "v1")
    for kind, prefix in (("backbone", ""), ("pretraining", "decodepos.backbone.")):
        path = run_dir / "export" / kind / "model.safetensors"
        weights = load_file(path)
        weights[f"{prefix}embedder.embedder.convolution.weight"] += 1
        save_file(weights, path, metadata={"format": "pt"})
    publish(run_dir, "--revision-tag", "v2")
    assert "loaded (2, " in run_python(STRANGER, online.env(tmp_path / "stranger", token=None))


@pytest.mark.slow
def test_a_private_release_is_not_for_strangers(online: HubServer, run_dir: Path, tmp_path: Path, publish):
    publish(run_dir, "--private")
    assert all(repo.private for repo in online.repos.values())
    code = (
        "from transformers import AutoModel\ntry:\n    AutoModel.from_pretrained('org/tiny')\n"
        "    print('loaded')\nexcept OSError as error:\n    print(error)"
    )
    refused = run_python(code, online.env(tmp_path / "stranger", token=None))
    assert "loaded" not in refused and ("private" in refused or "log in" in refused.lower())
    assert "loaded" in run_python(code, online.env(tmp_path / "owner"))


def test_a_dry_run_shows_everything_and_changes_nothing(online: HubServer, run_dir: Path, publish, monkeypatch):
    said = publish(run_dir, "--dry-run")
    assert not online.repos and "Nothing was changed" in said and "a new repository, public" in said
    for name in ("tiny", "tiny-pretraining"):
        shown = said.split(f"org/{name}/\n")[1].split(f"org/{name} (")[0]
        assert sorted(line.split()[-1] for line in shown.splitlines()) == sorted(local(run_dir, name))
        assert all(line.split()[0] == "upload" for line in shown.splitlines())
    plain, whole = local(run_dir), local(run_dir, "tiny-pretraining")
    assert not [path for path in plain if path.endswith(".py")]
    assert {"modeling_decodepos.py", "configuration_decodepos.py", "release.json", "training/report.html"} <= set(
        whole
    )
    assert {"recipe.yaml", "training/log.jsonl", "training/loss.svg", "preprocessor_config.json"} <= set(plain)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the Hub was not asked" in publish(run_dir, "--dry-run")
    assert "HF_HUB_OFFLINE is set" in publish(run_dir, code=2)


def test_what_is_published_is_whole_and_names_no_place_of_this_machine(online: HubServer, run_dir: Path, publish):
    publish(run_dir, "--revision-tag", "v1")
    for repo in (PLAIN, WHOLE):
        files = published(online, repo)
        assert files == published(online, repo, "v1") == local(run_dir, repo.partition("/")[2])
        sums = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
        assert set(sums) == set(files) - {"SHA256SUMS"}
        assert all(StoredFile(files[path], lfs=True).sha256 == digest for path, digest in sums.items())
        for path, content in files.items():
            assert str(run_dir.parent).encode() not in content and TOKEN.encode() not in content, path
    before = sent(online)
    said = publish(run_dir, "--revision-tag", "v1")
    assert said.count("0 of ") == 2 and "verified by hash" in said
    assert sent(online) == before


def test_the_card_says_what_was_measured(online: HubServer, run_dir: Path, publish):
    evaluated = result_row(model=str(run_dir / "export" / "backbone"), arm="both", value=0.5, data="scenes")
    quoted = {"title": "README of X", "url": "https://x.org/README", "place": "first table", "read": "2026-01-31"}
    elsewhere = result_row(model="/home/somebody/runs/other/export/backbone", value=0.7654321)
    earlier = result_row(model=str(run_dir / "checkpoints" / "step_0000001"), value=0.7654321)
    write_results(
        run_dir, evaluated, result_row(), elsewhere, earlier, result_row(model="X", label="quoted", source=quoted)
    )
    online.add_repo("org/scenes", run_dir / "export" / "backbone", repo_type="dataset")  # anything that is there
    (run_dir / "about.yaml").write_text("hub_datasets:\n  scenes: org/scenes\n")
    said = publish(run_dir)
    assert "Left out: numbers of /home/somebody/runs/other/export/backbone" in said
    assert f"Left out: numbers of {earlier['model']}" in said
    files = published(online)
    assert b"somebody" not in b"".join(files.values()) and b"0.76543" not in files["README.md"]
    card = ModelCard(files["README.md"].decode())
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["datasets"]) == ("apache-2.0", "transformers", ["org/scenes"])
    assert "custom_code" not in data["tags"]
    assert 'from_backbone("org/tiny", region_bins=4, centre_cells=True)\nmodel.eval()' in card.text
    assert "custom_code" in ModelCard(published(online, WHOLE)["README.md"].decode()).data.tags
    after = json.loads((run_dir / "probe.json").read_text())["after"]["content_wins"]
    assert [result.metric_value for result in card.data.eval_results] == [after, 0.5]  # of these weights alone
    assert "*reduced scale*" in card.text and "*quoted*" in card.text and "README of X, first table" in card.text
    assert "random:resnet18" not in str(data)
    (entry,) = yaml.safe_load(files[".eval_results/decodepos.yaml"])
    assert entry["dataset"] == {"id": "org/scenes", "task_id": "object_knn-1_accuracy"} and entry["value"] == 0.5
    assert all(part in entry["notes"] for part in ("reduced scale", "seeds 0, 1", COMMIT, "k=20", "--data scenes"))
    (run_dir / "about.yaml").write_text("hub_datasets:\n  scenes: org/nowhere\n")
    assert "where no such data set is to be seen" in publish(run_dir, code=2)


def test_an_upload_that_breaks_off_goes_on(online: HubServer, run_dir: Path, publish):
    online.fail_next("POST /api/models/org/tiny/commit", 500, times=5)
    said = publish(run_dir, "--revision-tag", "v1", code=75)
    assert "(HTTP 500), after 5 tries" in said and "run the same command again" in said
    assert not any(repo.tags for repo in online.repos.values())  # the other one is whole, and has no tag either
    assert published(online, WHOLE) == local(run_dir, "tiny-pretraining")
    assert published(online) == {}  # whole or not at all
    before = sent(online)
    online.fail_next("POST /api/models/org/tiny/commit", 502)  # is tried again
    publish(run_dir, "--revision-tag", "v1")
    assert published(online, PLAIN, "v1") == local(run_dir)
    assert sent(online) == (before[0], before[1] + 1)  # only what was missing: its files were there already


def test_what_belongs_to_others_is_refused(online: HubServer, run_dir: Path, tmp_path: Path, publish):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "model.bin").write_text("years of work")
    online.add_repo(WHOLE, thesis)
    for flags in ([], ["--overwrite"], ["--dry-run"]):
        assert "such as model.bin, but no release.json" in publish(run_dir, *flags, code=2)
    (thesis / "release.json").write_text('{"project": "something else"}')
    online.add_repo(WHOLE, thesis)
    assert "release.json of another program" in publish(run_dir, "--overwrite", code=2)
    assert list(online.repos) == [("models", WHOLE)] and "README.md" not in published(online, WHOLE)


def test_another_run_needs_to_be_asked_for_and_moves_no_tag(online: HubServer, run_dir: Path, publish):
    publish(run_dir, "--revision-tag", "v1")
    assert "exists and is public" in publish(run_dir, "--private", code=2)
    before = {repo: published(online, repo) for repo in (PLAIN, WHOLE)}
    change(run_dir / "run.json", started="2020-01-01T00:00:00+00:00")
    (run_dir / "views.png").unlink()
    said = publish(run_dir, code=2)
    assert "holds the release of another run" in said and "here '2020-01-01T00:00:00+00:00'" in said
    said = publish(run_dir, "--overwrite", "--revision-tag", "v1", code=2)
    assert "has a tag v1 with other files" in said and "tags are not moved" in said
    assert {repo: published(online, repo) for repo in (PLAIN, WHOLE)} == before
    repo = online.repos["models", PLAIN]
    repo.add_commit(
        "main", {**repo.commit_at("main").files, "notes.txt": StoredFile(b"by a reader", lfs=False)}, "add"
    )
    said = publish(run_dir, "--overwrite", "--dry-run")
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("  remove")] == [
        "training/views.png"
    ] * 2
    publish(run_dir, "--overwrite", "--revision-tag", "v2")
    assert published(online) == local(run_dir) | {"notes.txt": b"by a reader"}
    assert published(online, PLAIN, "v1") == before[PLAIN]


def test_a_file_that_arrives_changed_is_not_tagged(online: HubServer, run_dir: Path, publish, monkeypatch):
    original = online._commit

    def spoil(request, repo, branch):
        reply = original(request, repo, branch)
        tip = repo.commit_at(branch)
        if "SHA256SUMS" in tip.files:
            repo.add_commit(branch, {**tip.files, "config.json": StoredFile(b"{}", lfs=False)}, "spoil")
        return reply

    monkeypatch.setattr(online, "_commit", spoil)
    said = publish(run_dir, "--revision-tag", "v1", code=2)
    assert "1 files differ from the local ones after the upload, the first is config.json" in said
    assert not any(repo.tags for repo in online.repos.values())


def test_without_a_token_that_may_write_nothing_is_made(online: HubServer, run_dir: Path, publish, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in publish(run_dir, code=2)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    said = publish(run_dir, code=2)
    assert "hf auth login" in said and "hf_expired" not in said
    assert not online.repos


def poison(run_dir: Path, kind: str) -> None:
    path = run_dir / "export" / kind / "model.safetensors"
    weights = load_file(path)
    weights[next(key for key in weights if key.endswith("weight"))].view(-1)[3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})


def swap_weights(run_dir: Path) -> None:
    path = run_dir / "export" / "backbone" / "model.safetensors"
    save_file({key: value * 2 for key, value in load_file(path).items()}, path, metadata={"format": "pt"})


def wrap(run_dir: Path) -> None:
    path = run_dir / "export" / "backbone" / "model.safetensors"
    save_file({f"module.{key}": value for key, value in load_file(path).items()}, path, metadata={"format": "pt"})


def drop_weight(run_dir: Path) -> None:
    path = run_dir / "export" / "pretraining" / "model.safetensors"
    weights = load_file(path)
    del weights[next(key for key in weights if key.startswith("teacher."))]
    save_file(weights, path, metadata={"format": "pt"})


def into_export(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run_dir: (run_dir / "export" / "backbone" / name).write_bytes(content)


def about(text: str) -> Callable[[Path], object]:
    return lambda run_dir: (run_dir / "about.yaml").write_text(text)


def results(**values: object) -> Callable[[Path], object]:
    return lambda run_dir: write_results(run_dir, result_row(**values))


def described(**values: object) -> Callable[[Path], object]:
    return lambda run_dir: change(run_dir / "run.json", **values)


UNFIT = {
    "nan": (lambda run_dir: poison(run_dir, "backbone"), "NaN or infinite values in 1 tensors"),
    "nan in a head": (lambda run_dir: poison(run_dir, "pretraining"), "tiny-pretraining/model.safetensors has NaN"),
    "other weights": (swap_weights, "is not the student's in tiny-pretraining"),
    "wrapped": (wrap, "has module."),
    "not whole": (drop_weight, "1 missing keys, first teacher."),
    "pickle": (into_export("pytorch_model.bin", pickle.dumps({"a": 1})), "pytorch_model.bin is a pickle"),
    "hidden pickle": (into_export("notes.json", pickle.dumps({"a": 1})), "notes.json is a pickle"),
    "pickle as weights": (into_export("model.safetensors", pickle.dumps({"a": 1})), "cannot be read as safetensors"),
    "archive": (into_export("weights.pt", b"PK\x03\x04"), "weights.pt is a pickle or an archive"),
    "unknown kind": (into_export("weights.h5", b"\x89HDF"), "weights.h5 is of no kind"),
    "token": (into_export("notes.json", b'"hf_' + b"aB3" * 12 + b'"'), "looks like a token"),
    "placeholder": (about('license: ""'), "still says [More Information Needed]"),
    "placeholder, by hand": (
        about("data: see [More Information Needed]"),
        "about.yaml: license, data, biases, base_model",
    ),
    "licence in words": (about("license: free for all"), "license is 'free for all'"),
    "unknown key": (about("licence: mit"), "unknown key 'licence'"),
    "no commit": (results(commit="unknown"), "the commit is 'unknown'"),
    "changed commit": (results(commit=f"{COMMIT}+changes"), "commit, measure again"),
    "no seeds": (results(seeds=[]), "the seeds are []"),
    "no command": (results(command=""), "no command"),
    "no label": (results(label=None), "the label is None"),
    "no protocol": (results(protocol=" "), "no protocol"),
    "no number": (results(value=float("nan")), "the value is nan"),
    "quoted from nowhere": (results(label="quoted"), "`source` does not say title, url, place, read"),
    "run of no commit": (described(commit="unknown"), "(its probe and measures) has numbers that cannot be shown"),
    "not finished": (described(status="running"), "is not finished"),
    "no export": (lambda run_dir: shutil.rmtree(run_dir / "export" / "backbone"), "has no export/backbone"),
    "place": (described(reason="killed in " + str(Path.home() / "work")), "a path of this machine"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_not_fit_never_reaches_the_hub(online: HubServer, run_dir: Path, publish, case: str):
    spoil, message = UNFIT[case]
    spoil(run_dir)
    assert message in publish(run_dir, code=2)
    assert not online.log


def test_other_data_need_words_of_the_publisher_and_show_no_pictures(online: HubServer, run_dir: Path, publish):
    described = json.loads((run_dir / "run.json").read_text())["data"]
    change(run_dir / "run.json", data=described | {"path": "/photos/of/others"})
    said = publish(run_dir, "--dry-run", code=2)
    assert said.count("still says [More Information Needed]") == 2 * 3 and "Say what is missing in" in said
    words = {"license": "cc-by-4.0", "data": "Photos | of others, CC BY 2.0.", "biases": "Mostly cats."}
    (run_dir / "about.yaml").write_text(yaml.safe_dump(words))
    publish(run_dir, "--dry-run")
    files = local(run_dir)
    assert "training/views.png" not in files and "training/probe.png" in files  # the probe's scenes are drawn
    assert b"/photos/of" not in b"".join(files.values())
    assert "has only seen" not in files["README.md"].decode()


def test_a_run_that_began_with_the_weights_of_others_names_them(online: HubServer, run_dir: Path, publish):
    described = json.loads((run_dir / "run.json").read_text())
    change(run_dir / "run.json", recipe=described["recipe"] | {"backbone": "org/weights"})
    assert publish(run_dir, "--dry-run", code=2).count("still says [More Information Needed]") == 2 * 2
    (run_dir / "about.yaml").write_text("license: cc-by-nc-4.0\nbase_model: org/weights\n")
    publish(run_dir, "--dry-run")
    data = ModelCard(local(run_dir)["README.md"].decode()).data
    assert (data.license, data.base_model) == ("cc-by-nc-4.0", "org/weights")


def test_the_commands_of_the_page_are_commands():
    page = (Path(__file__).parents[3] / "docs" / "publishing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    words = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    asked = {"training.publish": build_parser(), "dataset_scripts.publish": data_publishing.build_parser()}
    found = [line for line in words if line[:2] == ["python", "-m"] and line[2] in asked]
    assert {line[2] for line in found} == set(asked)
    for line in found:
        asked[line[2]].parse_args(line[3:])
    assert set(yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0])) == {
        field.name for field in dataclasses.fields(About)
    }


def test_a_built_release_never_replaces_something_else(online: HubServer, run_dir: Path, publish):
    mine = run_dir / "release" / "tiny"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    assert "is no release of this program" in publish(run_dir, code=2)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    for repo in ("tiny", "org/tiny-pretraining", "org/a/b", "/tiny"):
        assert "--repo is" in publish(run_dir, code=2, repo=repo)


def test_a_card_that_does_not_come_back_is_refused():
    def problems(header: str) -> str:
        return " ".join(card_problems(f"---\n{header}\n---\n# Title\n", ModelCard))

    assert problems("license: mit\ntags: [a, b]") == ""
    assert "does not come back as it was written: tags" in problems("license: mit\ntags: [a, a]")
    assert "cannot be read" in problems("license: mit\ntags: [a")
    assert "cannot be read" in problems("license: mit\nmodel-index: three")
    assert "no `key: value`" in problems("# nothing")


def test_the_list_of_files_is_read_as_it_is_written(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "two  words.txt").write_text("x")
    folders.write_sums(tmp_path)
    assert folders.listed_in_sums((tmp_path / "SHA256SUMS").read_text()) == {"a/two  words.txt", "SHA256SUMS"}


def test_commands_keep_names_and_lose_places():
    command = "python training/pretrain.py --data /home/me/my\\ data --output_dir=/mnt/x/run --name 'a b' --cpu"
    assert command_without_places(command) == (
        "python training/pretrain.py --data 'my data' --output_dir=run --name 'a b' --cpu"
    )


def test_the_build_is_the_same_every_time(online: HubServer, run_dir: Path, publish):
    publish(run_dir, "--dry-run")
    first = local(run_dir)
    torch.manual_seed(sys.maxsize % 1000)
    publish(run_dir, "--dry-run", "--output", str(run_dir / "elsewhere"))
    folder = run_dir / "elsewhere" / "tiny"
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == first
