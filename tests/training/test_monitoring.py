import time

import pytest

from training.monitoring import Meter


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
