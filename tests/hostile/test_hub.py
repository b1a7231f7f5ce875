"""A Hub that does not answer like one: pages of proxies, silence, listings that break off."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from dataset_scripts import publish as publishing
from dataset_scripts.hub import release
from tests.hostile.running import run
from tests.hub_server import HubServer, Reply

PAGE = Reply(body=b"<!doctype html><title>Sign in</title>", headers={"Content-Type": "text/html"})
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def online(reachable_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """This process may talk to the Hub on loopback, and waits a hundredth of what people wait."""
    monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint=reachable_hub.url))
    for name in ("PAUSE_S", "LONGEST_S", "SILENCE_S"):
        monkeypatch.setattr(release, name, getattr(release, name) / 100)
    return reachable_hub


def publish(data: Path) -> tuple[int, str]:
    ended = run("publish data", data, "--repo", "org/scenes", "--workers", 1)
    assert ended.escaped is None and "Traceback" not in ended.text
    return ended.code, ended.text


@pytest.mark.parametrize("path", ["GET /api/datasets/org/scenes", "GET /api/datasets/org/scenes/tree", "/preupload/"])
def test_a_page_instead_of_an_answer(path: str, online: HubServer, scenes: Path) -> None:
    online.spoil_next(path, PAGE, times=9)
    code, said = publish(scenes)
    assert code == 2 and "is not the Hub: it sent something else than JSON" in said and "HF_ENDPOINT" in said


def test_silence_ends_and_is_told(online: HubServer, scenes: Path) -> None:
    online.spoil_next("GET /api/datasets/org/scenes", Reply(delay_s=0.5), times=99)
    started = time.monotonic()
    code, said = publish(scenes)
    assert code == 75 and time.monotonic() - started < 20
    assert "The Hub does not answer as it should (" in said and "again in" in said and "Timeout" in said
    assert "run the same command again later" in said


def test_a_listing_that_breaks_off_has_a_verdict(
    online: HubServer, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(scenes)[0] == 0
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client's own pauses
    online.spoil_next("GET /api/datasets/org/scenes/tree", Reply(missing=3), times=99)
    code, said = publish(scenes)
    assert code == 75 and "The Hub does not answer as it should (" in said and " tries in " in said


def test_the_clients_patience_is_given_back(online: HubServer, scenes: Path) -> None:
    from huggingface_hub.utils import get_session

    before = get_session().timeout
    assert publish(scenes)[0] == 0
    assert get_session().timeout == before
