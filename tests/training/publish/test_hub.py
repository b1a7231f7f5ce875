"""Publishing to the real Hub, privately and for a minute: `HF_HUB_OFFLINE=0 HF_TOKEN=… pytest -m hub`.

What the other tests see is a server of ours (tests/hub_server.py). This one shows that the Hub is like it.
"""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file
from transformers import AutoModel

from dataset_scripts import publish as data_publishing
from tests.training.runs import run_here
from training.publish import command as publishing

pytestmark = [pytest.mark.hub, pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")]


@pytest.fixture
def api() -> HfApi:
    if constants.HF_HUB_OFFLINE or not os.environ.get("HF_TOKEN"):
        pytest.skip("needs HF_HUB_OFFLINE=0 and HF_TOKEN, a token that may write")
    return HfApi(token=os.environ["HF_TOKEN"])


@pytest.fixture
def repo(api: HfApi) -> Iterator[str]:
    """A name under the token's user that nobody has; whatever is published there is deleted, come what may."""
    name = f"{api.whoami()['name']}/decodepos-test-{uuid.uuid4().hex[:12]}"
    made = [(name, "model"), (f"{name}-pretraining", "model"), (name, "dataset")]
    yield name
    for repo_id, kind in made:
        api.delete_repo(repo_id, repo_type=kind, missing_ok=True)
    assert not [repo_id for repo_id, kind in made if api.repo_exists(repo_id, repo_type=kind)]


@pytest.fixture
def run_dir(scenes: Path, tmp_path: Path) -> Path:
    """The smallest finished run, under a commit whatever this checkout is."""
    folder = tmp_path / "tiny"
    values = {
        "data": scenes, "output_dir": folder, "view_size_px": 64, "backbone": "resnet_tiny", "region_bins": 4,
        "mixed_precision": "no",
        "projector_hidden_size": 32, "projection_size": 16, "max_steps": 2, "global_batch_size": 8, "cpu": True,
        "base_learning_rate": 0.02, "optimizer": "adamw", "log_steps": 1, "measure_steps": 0, "probe_count": 4,
        "num_workers": 0,
    }  # fmt: skip
    assert run_here(values) == 0
    described = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(described | {"commit": "0123456789abcdef" * 2 + "01234567"}))
    return folder


def test_a_model_goes_to_the_hub_and_comes_back(repo: str, api: HfApi, run_dir: Path, capsys: pytest.CaptureFixture):
    command = [str(run_dir), "--repo", repo, "--private", "--revision-tag", "v1"]
    for _ in range(2):  # the second time, everything is there
        assert publishing.main(command) == 0
        assert os.environ["HF_TOKEN"] not in "".join(capsys.readouterr())
    for name in (repo, f"{repo}-pretraining"):
        assert api.model_info(name).private
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=False).model_info(name)
    trained = load_file(run_dir / "export" / "backbone" / "model.safetensors")
    plain = AutoModel.from_pretrained(repo, revision="v1").state_dict()
    assert all(torch.equal(plain[key], value) for key, value in trained.items())
    whole = AutoModel.from_pretrained(f"{repo}-pretraining", revision="v1", trust_remote_code=True)
    student = whole.backbone.state_dict()
    assert all(torch.equal(student[key], value) for key, value in trained.items())


def test_a_data_set_goes_to_the_hub_and_comes_back(repo: str, api: HfApi, scenes: Path):
    for _ in range(2):
        assert data_publishing.main([str(scenes), "--repo", repo, "--private", "--revision-tag", "v1"]) == 0
    assert api.dataset_info(repo).private
    here = load_dataset(str(scenes), split="validation").remove_columns(["image", "segmentation"])
    there = load_dataset(repo, split="validation", revision="v1").remove_columns(["image", "segmentation"])
    assert there.to_list() == here.to_list()
    (first, *_) = load_dataset(repo, split="train", revision="v1", streaming=True)
    assert first["width"] == 64
