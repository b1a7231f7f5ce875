import errno
import fcntl
import multiprocessing
import signal
from pathlib import Path

import pytest

from dataset_scripts.files import lock_folder
from training.run.stopping import StopRequest


def test_a_folder_in_use_is_refused_until_the_run_ends(tmp_path: Path):
    lock = lock_folder(tmp_path / "run")
    with pytest.raises(ValueError, match="in use by another run"):
        lock_folder(tmp_path / "run")
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def work() -> None:
        ready.set()
        done.wait(60)

    worker = context.Process(target=work)  # as a DataLoader's: it may live on for a while
    worker.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ValueError, match="in use by another run"):  # a worker's end of it is not the run's
            lock_folder(tmp_path / "run")
        lock.close()
        lock_folder(tmp_path / "run").close()
    finally:
        done.set()
        worker.join()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be written"):
        lock_folder(tmp_path / "file")


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ValueError, match="file system without locks .Function not implemented"):
        lock_folder(tmp_path)


def be_asked_to_stop(stop: StopRequest) -> None:
    with stop.put_off():
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)  # would end this process
        assert stop.received


def test_one_request_handed_on_twice_is_one_request(monkeypatch: pytest.MonkeyPatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = StopRequest()
        with pytest.raises(KeyboardInterrupt):
            be_asked_to_stop(stop)
        stop = StopRequest()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGINT, stop._receive)
        monkeypatch.setattr("training.run.stopping.ONE_REQUEST", -1.0)
        monkeypatch.setattr(signal, "SIG_DFL", signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
