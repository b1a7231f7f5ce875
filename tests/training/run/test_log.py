import errno
import time
from pathlib import Path

import pytest

from dataset_scripts.files import read_json_lines
from training.run.log import Meter, Pace, RunLog, minutes_to_go


def test_a_pause_leaves_the_time_before_it_in(monkeypatch: pytest.MonkeyPatch):
    """Measures may fall between two log lines: the steps before them count, the measures do not."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    meter = Meter()
    clock[0] = 7.0
    meter.waited = 4.0
    meter.add(80, [])
    with meter.paused():
        clock[0] = 107.0
    clock[0] = 108.0
    line = meter.line()
    assert (line["seconds"], line["images_per_second"], line["data_wait"]) == (8.0, 10.0, 0.5)


def test_a_resumed_log_is_not_lost_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "log.jsonl"
    log = RunLog(path, 0)
    for step in (1, 2, 3):
        log.write(step=step)

    def fill_up(self: Path, text: str, encoding: str) -> int:
        with self.open("w", encoding=encoding) as file:
            file.write(text[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", fill_up)
        with pytest.raises(OSError, match="No space"):
            RunLog(path, 2)
    assert [line["step"] for line in read_json_lines(path)] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == [path]
    RunLog(path, 2).write(step=3)
    assert [line["step"] for line in read_json_lines(path)] == [1, 2, 3]
    RunLog(path, 0)
    assert read_json_lines(path) == []


def test_the_pace_is_that_of_the_second_step_to_the_fifth():
    pace = Pace()
    assert [pace.add(seconds) for seconds in (90.0, 1.0, 2.0, 3.0, 4.0, 50.0, 50.0)] == [None] * 4 + [2.5] + [None] * 2


@pytest.mark.parametrize(
    ("step", "total", "measure_steps", "minutes"),
    [
        (5, 605, 0, 10),  # 600 seconds of steps
        (5, 605, 200, 10 + 4 * 2),  # measured at 200, 400, 600 and 605
        (5, 600, 200, 10 + 3 * 2),
        (400, 460, 200, 1 + 1 * 2),
        (5, 6, 0, 1),
    ],
)
def test_minutes_to_go_count_steps_and_measures(step: int, total: int, measure_steps: int, minutes: int):
    assert minutes_to_go(step, total, 1.0, measure_steps, 120.0) == minutes
