"""What every test starts from: no network, and caches that end with the session."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeling_decodepos.commands.garbage import collect_less
from tests.hub_server import TOKEN, HubServer

collect_less()
# Read by the Hugging Face libraries when they are imported, which the test modules do after this file.
# `HF_HUB_OFFLINE=0 pytest -m hub` reaches the real Hub.
CACHE = tempfile.TemporaryDirectory(prefix="decodepos-tests-")
os.environ["HF_HOME"] = CACHE.name
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests are small: a second thread costs more than it brings, above all where other programs share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = CACHE.name

from huggingface_hub import constants  # noqa: E402  after the settings that it reads
from hypothesis import settings as property_settings  # noqa: E402
from transformers import logging as transformers_logging  # noqa: E402

# The same examples in every run, wherever it is; how long one takes says more of the machine than of the code.
property_settings.register_profile("suite", derandomize=True, deadline=None, database=None)
property_settings.load_profile("suite")


def pytest_collection_finish() -> None:
    gc.freeze()  # what all tests have imported is no garbage


def pytest_unconfigure() -> None:
    CACHE.cleanup()


@pytest.fixture(autouse=True)
def nothing_is_left_of_other_tests() -> Iterator[None]:
    """What other tests, and commands that they ran in this process, leave of themselves is gone.

    They make transformers quiet, whose warnings it may look for, and fix the precision of every later `Accelerator`.
    Torch's numbers start anew: what a test draws does not depend on which tests this process ran before.
    """
    transformers_logging.set_verbosity_warning()
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """An empty Hub on loopback; subprocesses reach it with `hub.env(tmp_path)`."""
    with HubServer() as server:
        yield server
        assert [line for line in server.log if line.status == 501] == []  # a client wanted what the server lacks


@pytest.fixture
def reachable_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The same, for code of this process, which may then talk to the Hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return hub
