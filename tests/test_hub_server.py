"""The real clients against `hub_server`: what is proved here may be relied on by the tests of publishing."""

import hashlib
import json
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.hub_server import HubServer, run_python

UPLOADS = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

api = HfApi()
assert not api.repo_exists("org/plain")
api.create_repo("org/plain")
api.create_repo("org/plain", exist_ok=True)
first = api.upload_folder(repo_id="org/plain", folder_path=sys.argv[1]).oid
api.create_tag("org/plain", tag="v1.0", tag_message="first release")
second = api.upload_file(repo_id="org/plain", path_or_fileobj=b"second", path_in_repo="sub/notes.txt").oid
api.delete_file("weights.bin", repo_id="org/plain")

refs = api.list_repo_refs("org/plain")
assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1.0", first)]
history = [commit.commit_id for commit in api.list_repo_commits("org/plain")]
assert history[1:3] == [second, first] and len(history) == 4

for revision, notes in ((None, "second"), (second, "second"), ("v1.0", "first"), (first, "first")):
    path = hf_hub_download("org/plain", "sub/notes.txt", revision=revision)
    assert Path(path).read_text() == notes, revision
pinned = Path(snapshot_download("org/plain", revision="v1.0"))
assert pinned.name == first
assert {p.name: p.read_bytes() for p in pinned.iterdir() if p.is_file()}["weights.bin"] == bytes(5000)
assert {p.name for p in Path(snapshot_download("org/plain")).iterdir()} == {".gitattributes", "README.md", "sub"}

sizes = {s.rfilename: s.size for s in api.model_info("org/plain", revision="v1.0", files_metadata=True).siblings}
assert sizes["weights.bin"] == 5000 and sizes["sub/notes.txt"] == 5

for call, expected in (
    (lambda: api.create_tag("org/plain", tag="v1.0"), HfHubHTTPError),
    (lambda: hf_hub_download("org/plain", "weights.bin"), EntryNotFoundError),
    (lambda: hf_hub_download("org/plain", "README.md", revision="v2.0"), RevisionNotFoundError),
    (lambda: api.upload_file(repo_id="org/plain", path_or_fileobj=b"", path_in_repo="x", parent_commit=first),
     HfHubHTTPError),
):
    try:
        call()
    except expected:
        continue
    raise AssertionError(expected)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A card\n")
    (root / "sub" / "notes.txt").write_text("first")
    (root / "weights.bin").write_bytes(bytes(5000))
    return root


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def own_files(hub: HubServer, repo_id: str, **where: str) -> dict[str, bytes]:
    return {path: content for path, content in hub.files(repo_id, **where).items() if path != ".gitattributes"}


def test_upload_tag_and_pin(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    run_python(f"import sys; sys.argv.append({str(folder)!r})" + UPLOADS, hub.env(tmp_path / "home"))
    assert own_files(hub, "org/plain", revision="v1.0") == local_files(folder)
    assert own_files(hub, "org/plain") == {
        "README.md": local_files(folder)["README.md"],
        "sub/notes.txt": b"second",
    }


@pytest.mark.parametrize(
    ("asked", "status", "sent"),
    [
        (None, 200, b"0123456789"),
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=-3", 206, b"789"),
        ("bytes=10-", 416, None),
    ],
)
def test_ranges(hub: HubServer, tmp_path: Path, asked: str | None, status: int, sent: bytes | None) -> None:
    (tmp_path / "digits").write_text("0123456789")
    hub.add_repo("org/digits", tmp_path)
    connection = HTTPConnection("127.0.0.1", int(hub.url.rpartition(":")[2]))
    connection.request("GET", "/org/digits/resolve/main/digits", headers={"Range": asked} if asked else {})
    with closing(connection), connection.getresponse() as response:
        assert response.status == status
        assert sent is None or response.read() == sent


def test_a_private_repository_needs_the_token(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/private", folder, private=True)
    hub.add_repo("org/public", folder)
    code = """
from huggingface_hub import HfApi, hf_hub_download
hf_hub_download("org/public", "README.md")
print(HfApi().repo_exists("org/private"))
for call in (
    lambda: hf_hub_download("org/private", "README.md"),
    lambda: HfApi().upload_file(repo_id="org/public", path_or_fileobj=b"x", path_in_repo="x"),
    lambda: HfApi().create_repo("org/new"),
):
    try:
        call()
        print("allowed")
    except Exception as error:
        print(type(error).__name__, error.response.status_code)
"""
    anonymous = run_python(code, hub.env(tmp_path / "anonymous", token=None))
    assert anonymous.split("\n", 1) == ["False", "RepositoryNotFoundError 401\n" + "HfHubHTTPError 401\n" * 2]
    assert sorted(hub.files("org/public")) == sorted([".gitattributes", *local_files(folder)])
    known = run_python(code, hub.env(tmp_path / "known"))
    assert known == "True\n" + "allowed\n" * 3


def test_a_fault_in_the_middle_is_retried(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    (folder / "more.bin").write_bytes(b"more" * 2000)
    code = f"""
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
HfApi().create_repo("org/shaky")
HfApi().upload_folder(repo_id="org/shaky", folder_path={str(folder)!r})
try:
    print(snapshot_download("org/shaky"))
except HfHubHTTPError:  # the client repeats uploads by itself; downloads go on where they were when called again
    print(snapshot_download("org/shaky"))
"""
    hub.fail_next("PUT /lfs/", status=500, skip=1)
    hub.fail_next("GET /org/shaky/resolve/", status=503, skip=2)
    snapshot = Path(run_python(code, hub.env(tmp_path / "home")).strip())
    assert own_files(hub, "org/shaky") == local_files(folder)
    assert local_files(snapshot) == hub.files("org/shaky")
    uploads = [line.status for line in hub.log if line.method == "PUT"]
    assert sorted(uploads) == [200, 200, 500]
    downloads = [(line.path, line.status) for line in hub.log if line.method == "GET" and "/resolve/" in line.path]
    [failed] = [path for path, status in downloads if status == 503]
    assert sorted(path for path, status in downloads if status == 200) == sorted({path for path, _ in downloads})
    assert downloads.index((failed, 200)) > downloads.index((failed, 503))


def test_a_fault_in_the_commit_leaves_no_half_upload(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/shaky", folder)
    before = hub.files("org/shaky")
    (folder / "weights.bin").write_bytes(bytes(9000))
    code = f"""
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
try:
    HfApi().upload_folder(repo_id="org/shaky", folder_path={str(folder)!r})
except HfHubHTTPError as error:
    print(error.response.status_code)
"""
    hub.fail_next("/commit/main", status=500)
    assert run_python(code, hub.env(tmp_path / "home")) == "500\n"
    assert hub.files("org/shaky") == before
    assert run_python(code, hub.env(tmp_path / "home")) == ""
    assert own_files(hub, "org/shaky") == local_files(folder)
    # The bytes had arrived the first time and are not sent again.
    assert [line.path.split("/")[-1] for line in hub.log if line.method == "PUT"] == [
        hashlib.sha256(bytes(9000)).hexdigest()
    ]


MODELS = """
import torch
from huggingface_hub import HfApi
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, ResNetConfig, ResNetModel
from transformers import ConvNextImageProcessorPil

def build(seed):
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
    return ResNetModel(config).eval()

def outputs(model):
    with torch.no_grad():
        return model.eval()(pixels)

first, second, pixels = build(1), build(2), torch.rand(2, 3, 64, 64)
assert not torch.equal(outputs(first)[0], outputs(second)[0])
api = HfApi()
api.create_repo("org/resnet")
for model, tag in ((first, "v1"), (second, "v2")):
    model.save_pretrained(tag)
    ConvNextImageProcessorPil(size={"shortest_edge": 96}).save_pretrained(tag)
    api.upload_folder(repo_id="org/resnet", folder_path=tag)
    api.create_tag("org/resnet", tag=tag)

newest = AutoModel.from_pretrained("org/resnet")
assert torch.equal(outputs(newest)[0], outputs(second)[0])
pinned = AutoModel.from_pretrained("org/resnet", revision="v1")
assert torch.equal(outputs(pinned)[0], outputs(first)[0])
backbone = AutoBackbone.from_pretrained("org/resnet", out_indices=[3, 4])
assert torch.equal(outputs(backbone).feature_maps[-1], outputs(second).last_hidden_state)
assert ConvNextImageProcessorPil.from_pretrained("org/resnet").size["shortest_edge"] == 96
if "torchvision" not in getattr(AutoImageProcessor, "_backends", ()):  # transformers 5.17 wants torchvision for it
    assert AutoImageProcessor.from_pretrained("org/resnet", backend="pil").size["shortest_edge"] == 96

remote = AutoModel.from_pretrained("org/remote", trust_remote_code=True)
assert type(remote).__module__.startswith("transformers_modules.")
assert remote(torch.ones(2)).tolist() == [3.5, 3.5]

try:
    AutoModel.from_pretrained("org/private", trust_remote_code=True, token=False)
except OSError as error:
    print(error)
AutoModel.from_pretrained("org/private", trust_remote_code=True)
"""

REMOTE_CODE = {
    "configuration_scaled.py": """
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

@strict
class ScaledConfig(PreTrainedConfig):
    model_type = "scaled"
    factor: float = 1.0
""",
    "modeling_scaled.py": """
import torch
from transformers import PreTrainedModel

from .configuration_scaled import ScaledConfig

class ScaledModel(PreTrainedModel):
    config: ScaledConfig

    def __init__(self, config):
        super().__init__(config)
        self.shift = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, values):
        return self.config.factor * values + self.shift
""",
    "config.json": json.dumps(
        {
            "model_type": "scaled",
            "factor": 3.0,
            "auto_map": {
                "AutoConfig": "configuration_scaled.ScaledConfig",
                "AutoModel": "modeling_scaled.ScaledModel",
            },
        }
    ),
}


def test_models_load_by_id(hub: HubServer, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    for name, text in REMOTE_CODE.items():
        (remote / name).write_text(text)
    save_file({"shift": np.array([0.5], dtype=np.float32)}, remote / "model.safetensors", {"format": "pt"})
    hub.add_repo("org/remote", remote)
    hub.add_repo("org/private", remote, private=True)
    refusal = run_python(MODELS, hub.env(tmp_path / "home"))
    assert "org/private" in refusal
    assert "private repository" in refusal


DATASETS = """
import numpy as np
from datasets import Dataset, Features, Image, List, Value, load_dataset
from datasets.exceptions import DatasetNotFoundError
from PIL import Image as Picture

def picture(i):
    return Picture.fromarray(np.full((8, 8, 3), 20 * i, dtype=np.uint8))

features = Features({"image": Image(), "image_id": Value("int64"), "boxes": List(List(Value("float32"), length=4))})
rows = {"image": [picture(i) for i in range(9)], "image_id": list(range(9))}
rows["boxes"] = [[[0.0, 0.0, 1.0, float(i)]] * (i % 3) for i in range(9)]
made = Dataset.from_dict(rows, features=features)
made.push_to_hub("org/pictures", split="train", num_shards=3)
made.select(range(2)).push_to_hub("org/pictures", split="validation")
made.push_to_hub("org/private", split="train", private=True)

def check(row, i):
    assert row["image_id"] == i and row["boxes"] == rows["boxes"][i]
    assert np.array_equal(np.asarray(row["image"]), np.asarray(picture(i)))

streamed = list(load_dataset("org/pictures", split="train", streaming=True))
assert len(streamed) == 9
for i, row in enumerate(streamed):
    check(row, i)
stored = load_dataset("org/pictures")
assert {split: len(rows) for split, rows in stored.items()} == {"train": 9, "validation": 2}
assert stored["train"].features == features
check(stored["train"][7], 7)

try:
    load_dataset("org/private", token=False)
except DatasetNotFoundError as error:
    print(error)
assert len(load_dataset("org/private", split="train")) == 9
"""


def test_datasets_load_whole_and_streamed(hub: HubServer, tmp_path: Path) -> None:
    shards = [f"data/train-{i:05d}-of-00003.parquet" for i in range(3)]
    hub.fail_next(shards[1], status=502)  # the first to ask for it is the stream
    refusal = run_python(DATASETS, hub.env(tmp_path / "home"))
    assert "org/private" in refusal
    stored = own_files(hub, "org/pictures", repo_type="dataset")
    assert sorted(stored) == ["README.md", *shards, "data/validation-00000-of-00001.parquet"]
    assert all(stored[name].endswith(b"PAR1") for name in shards)
    first_reads = {name: [line.status for line in hub.log if line.path.endswith(name)] for name in shards}
    assert first_reads[shards[0]][0] == 206  # a part was asked for and a part was sent
    assert first_reads[shards[1]][:2] == [502, 206]
