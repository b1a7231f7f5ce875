"""Files that appear whole or not at all, and locks that outlive the removal of what they lock."""

import shutil
import threading
from pathlib import Path

import pytest

from dataset_scripts.files import lock_folder, whole_file


def write_half(path: Path) -> None:
    path.write_bytes(b"half")
    raise RuntimeError


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, sync: bool):
    path = tmp_path / "deeper" / "x"
    with whole_file(path, sync) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
    with pytest.raises(RuntimeError), whole_file(path, sync) as temporary:
        write_half(temporary)
    assert path.read_bytes() == b"new" and [file.name for file in path.parent.iterdir()] == ["x"]


def test_a_locked_folder_is_refused_or_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture):
    lock = lock_folder(tmp_path, "--output", "build")
    with pytest.raises(ValueError, match="--output .* is in use by another build"):
        lock_folder(tmp_path, "--output", "build")
    with lock_folder(tmp_path, name="other.lock"):
        pass
    waiting = threading.Thread(target=lambda: lock_folder(tmp_path, "--output", "build", wait=True).close())
    waiting.start()
    while "waiting" not in capsys.readouterr().out:
        pass
    lock.close()
    waiting.join(10)
    assert not waiting.is_alive()


def test_who_waited_for_a_folder_that_is_removed_locks_the_new_one(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder, found = tmp_path / "work", []
    lock = lock_folder(folder)
    waiting = threading.Thread(target=lambda: found.append(lock_folder(folder, wait=True)))
    waiting.start()
    while "waiting" not in capsys.readouterr().out:
        pass
    shutil.rmtree(folder)
    lock.close()
    waiting.join(10)
    with pytest.raises(ValueError, match="in use"):
        lock_folder(folder)
    found[0].close()
