"""Where work runs: in this process, in several on this machine, or on a Ray cluster; and how a command ends.

Work is a function of one item and a counter: `work(item, count)` makes the item's result and calls `count(n)` whenever
n more rows are done, which moves a progress bar. An engine gives back (item, result) as results come in, in any order,
and raises what `work` raises; leaving it early ends the workers. Results must depend on the item alone, so that nobody
can tell which engine made them.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from modeling_decodepos.commands.settings import number

Item = TypeVar("Item")
Result = TypeVar("Result")
Count = Callable[[int], object]
Work = Callable[[Item, Count], Result]


class Unfinished(RuntimeError):
    """Not done through no fault of the request: the same command goes on from what is there. One line."""


def exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command and tells, in a line, how it ended.

    0 done, or what the command returns; 2 it cannot be done as asked; 75 not finished, and the same command goes on (a
    full disk, a lost worker, a Hub that does not answer); 130 Ctrl-C, or 128 and the signal that `KeyboardInterrupt`
    was raised with: likewise.
    """
    try:
        return command() or 0
    except (ValueError, Unfinished) as error:
        message, code = f"error: {error}", 2 if isinstance(error, ValueError) else os.EX_TEMPFAIL
    except KeyboardInterrupt as stop:
        message = "Stopped. What is finished is kept: the same command goes on from there."
        code = 128 + (stop.args or (signal.SIGINT,))[0]
    print(f"\n{message}", file=sys.stderr)  # a bar may stand in the line
    return code


def add_worker_flag(parser: argparse.ArgumentParser, help: str = "processes; 0: one per core") -> None:
    """The flag of every command with workers."""
    parser.add_argument("--num_workers", "--workers", dest="workers", type=number(int, 0, 1000), default=0, help=help)


# ------------------------------------------------------------------------------------------------------- one machine


def available_cores() -> int:
    """Processor cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# In a worker: the number of rows made so far by all workers. A shared counter lets the bar move within an item.
_rows_done: Any = None


def _worker_context() -> Any:
    # Not "fork": a child would inherit the locks of whatever threads this process has. A server that has imported the
    # libraries once, and nothing else, is forked in no time, and its memory is shared.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dataset_scripts.build.parquet"])
    return context


def _start_worker(counter: Any, lifeline: Any) -> None:
    global _rows_done
    _rows_done = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent alone

    def leave_with_parent() -> None:
        # Its end of this pipe closes when it stops, or is killed and cannot say so. At once: what a worker has in hand
        # is lost anyway, and may take minutes to complete.
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _count_rows(rows: int) -> None:
    with _rows_done.get_lock():
        _rows_done.value += rows


def run_local(
    items: Sequence[Item], work: Work[Item, Result], workers: int, count: Count
) -> Generator[tuple[Item, Result], None, None]:
    """Runs in this process if one worker is enough, else in processes of their own; 0: one per core."""
    workers = workers or available_cores()
    if min(workers, len(items)) <= 1:
        for item in items:
            yield item, work(item, count)
        return
    context = _worker_context()
    counter, counted = context.Value("q", 0), 0
    lifeline, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(workers, len(items)), context, _start_worker, (counter, lifeline))
    try:
        waiting = {pool.submit(work, item, _count_rows): item for item in items}
        while waiting:
            finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            done = counter.get_obj().value  # without its lock, which a worker that was killed may hold
            count(done - counted)
            counted = done
            for future in finished:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise Unfinished(
            "A worker process was killed, perhaps for memory. What is finished is kept: run the same command again, "
            "with fewer --workers if it happens twice."
        ) from error
    except BaseException:
        held.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        held.close()
        lifeline.close()


# --------------------------------------------------------------------------------------------------------- a cluster


TRIES_PER_ITEM = 4  # what a lost worker or machine had in hand is begun again elsewhere, this often in all


def run_ray(
    items: Sequence[Item], work: Work[Item, Result], workers: int, count: Count
) -> Generator[tuple[Item, Result], None, None]:
    """Runs on the Ray cluster that this machine belongs to or RAY_ADDRESS names, else on a Ray of its own.

    `workers` is how many items are in hand at a time, one core each; 0: as many as the cluster has cores. Every
    machine needs this checkout and its packages at the same path.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError(
            "--engine ray needs Ray, which is not installed here: pip install -e '.[train,ray]' (on every machine)."
        ) from None
    from ray.exceptions import RayError, RayTaskError

    begun_here = not ray.is_initialized()
    if begun_here:
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError:
            ray.init(num_cpus=workers or None, include_dashboard=False, log_to_driver=False)
    waiting: dict[Any, Item] = {}
    try:
        remote = ray.remote(num_cpus=1, max_retries=TRIES_PER_ITEM - 1)(_counted)
        shared = ray.put(work)
        left = iter(items)
        for item in itertools.islice(left, workers or int(ray.cluster_resources()["CPU"])):
            waiting[remote.remote(shared, item)] = item
        while waiting:
            (finished,), _ = ray.wait(list(waiting), num_returns=1)
            item = waiting.pop(finished)
            result, rows = ray.get(finished)
            for following in itertools.islice(left, 1):
                waiting[remote.remote(shared, following)] = following
            count(rows)
            yield item, result
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise Unfinished(
            f"A worker was lost {TRIES_PER_ITEM} times over the same work ({type(error).__name__}), perhaps for "
            "memory, or the cluster is gone. What is finished is kept: run the same command again."
        ) from error
    finally:
        for unfinished in waiting:
            ray.cancel(unfinished, force=True)
        if begun_here:
            ray.shutdown()


def _counted(work: Work[Item, Result], item: Item) -> tuple[Result, int]:
    """A result and the rows counted for it: the bar moves when an item is done."""
    counts: list[int] = []
    return work(item, counts.append), sum(counts)


ENGINES: dict[str, Callable[..., Generator[tuple[Any, Any], None, None]]] = {"local": run_local, "ray": run_ray}
