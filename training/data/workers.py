"""Data workers: how they start, whose signals they heed, and how they end."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import signal
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader


def load_in_workers(dataset: Any, num_workers: int, pin_memory: bool = False, **order: Any) -> DataLoader:
    """A DataLoader of what the data set has built; `order` says how it asks for it."""
    # Runs before multiprocessing's own, which would wait for ever for workers that heed no SIGTERM.
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=as_it_is,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        prefetch_factor=2 if num_workers else None,
        generator=torch.Generator(),  # else every new iterator draws from the global stream, and a resumed run differs
        **order,
    )


def as_it_is(batch: Any) -> Any:
    """For a DataLoader, which would collate what `__getitems__` has already built."""
    return batch


def start_worker(worker: int) -> None:
    """What a DataLoader's worker does first: one thread, and signals are the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers signal whole groups; the parent ends its workers
    gc.freeze()  # what the parent has loaded is no garbage, and looking through it takes 5 % of the time
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _end_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()  # most have ended by themselves; an error that is on its way out keeps the others
