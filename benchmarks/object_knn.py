"""The protocol `object_knn` on a CPU: `python -m benchmarks.object_knn`.

First the features, four times of each object (`benchmarks.object_features`). Then the nearest objects in a large
gallery: random fp32 features of a ResNet-18's width, and three ways to the same 200 neighbours by cosine:

    ours    `modeling_decodepos.diagnosis.statistics.knn`: blocks of both sides, each query keeps its best
    naive   normalise, one product of all queries with all of the gallery, one topk
    faiss   `IndexFlatIP`, exact, where faiss-cpu is installed

Every one normalises its rows. They must agree before anything counts. Peak memory is that of a process of its own,
less what the process held with the features in it (Linux only).

Then the size of COCO (850 thousand training boxes, 36 thousand validation boxes): ours alone, on a tenth of the
queries, times ten. The naive matrix would be 122 GB.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.object_features import measure_features
from benchmarks.timing import (
    clock_for,
    clock_name,
    print_machine,
    print_result,
    print_table,
    ratio,
    spread,
    time_interleaved,
)
from modeling_decodepos.diagnosis.statistics.knn import knn_neighbours, knn_vote

NEIGHBOURS, CLASSES = 200, 80
COCO_GALLERY, COCO_QUERIES, COCO_SHARE = 850_000, 36_000, 10

STATUS = Path("/proc/self/status")

# (Q, k) gallery rows of the gallery and the queries
Search = Callable[[Tensor, Tensor], Tensor]


def ours(gallery: Tensor, queries: Tensor) -> Tensor:
    """By blocks."""
    return knn_neighbours(gallery, queries, NEIGHBOURS)[1]


def naive(gallery: Tensor, queries: Tensor) -> Tensor:
    """By the whole matrix of cosines."""
    return (F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T).topk(NEIGHBOURS, dim=1).indices


def by_faiss(gallery: Tensor, queries: Tensor) -> Tensor:
    """By faiss's exact search."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(F.normalize(gallery, dim=1).numpy())
    return torch.from_numpy(index.search(F.normalize(queries, dim=1).numpy(), NEIGHBOURS)[1])


SEARCHES: dict[str, Search] = {"ours": ours, "naive": naive, "faiss": by_faiss}


def features(rows: int, width: int, seed: int) -> Tensor:
    """(rows, width) noise."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def peak_mb(name: str, sizes: tuple[int, int, int], threads: int) -> float:
    """Greatest memory of one search beyond its features, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours_end, theirs_end = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(name, sizes, threads, theirs_end))
    process.start()
    theirs_end.close()
    try:
        return float(ours_end.recv())
    except EOFError as error:
        raise RuntimeError(f"the process that measures {name}'s memory died; is there enough for it?") from error
    finally:
        process.join()


def _measure_peak(name: str, sizes: tuple[int, int, int], threads: int, answer: object) -> None:
    torch.set_num_threads(threads)
    gallery_rows, query_rows, width = sizes
    search = SEARCHES[name]
    search(features(NEIGHBOURS, width, 2), features(2, width, 3))  # libraries and their buffers
    gallery, queries = features(gallery_rows, width, 0), features(query_rows, width, 1)
    before = _start_peak()
    search(gallery, queries)
    answer.send(_peak() - before)  # type: ignore[attr-defined]


def _start_peak() -> float:
    """Memory in use now, in MB, from which the peak is then counted; NaN on other systems than Linux."""
    if STATUS.is_file():
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """Most memory that was in use since, in MB."""
    if not STATUS.is_file():
        return math.nan
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def share_of_equal_rows(one: Tensor, other: Tensor) -> float:
    """Share of neighbours that two searches have in common; ties and rounding may exchange the last ones."""
    same = [len(set(a) & set(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    return sum(same) / one.numel()


def main() -> None:
    """Measure, print the tables and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads that each may use")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed")
    parser.add_argument("--gallery", type=int, default=85_000, help="rows of the gallery")
    parser.add_argument("--queries", type=int, default=3_600, help="query rows")
    parser.add_argument("--width", type=int, default=512, help="of a feature")
    parser.add_argument("--coco", action=argparse.BooleanOptionalAction, default=True, help="the size of COCO too")
    parser.add_argument("--model", default="random:mobilenet_v2", help="network whose features are timed")
    parser.add_argument("--data", help="data set whose validation images are shown (default: synthetic photos)")
    parser.add_argument("--size_px", type=int, default=160, help="side of the images")
    parser.add_argument("--photos", type=int, default=32, help="images that are shown")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_machine()
    print(f"measured in {clock_name(arguments.threads)}, median [min..max] of {arguments.rounds} rounds")
    shown = (arguments.model, arguments.data, arguments.size_px, arguments.photos)
    more: dict[str, object] = dict(measure_features(*shown, arguments.threads, arguments.rounds))
    names = [name for name in SEARCHES if name != "faiss" or importlib.util.find_spec("faiss")]
    if "faiss" not in names:
        print("faiss is not installed here (pip install faiss-cpu): the peer is the naive matrix alone.")

    sizes = (arguments.gallery, arguments.queries, arguments.width)
    gallery, queries = features(sizes[0], sizes[2], 0), features(sizes[1], sizes[2], 1)
    found = {name: SEARCHES[name](gallery, queries) for name in names}
    agreement = {name: share_of_equal_rows(found["ours"], found[name]) for name in names}
    if min(agreement.values()) < 0.999:
        raise SystemExit(f"the searches find different neighbours: {agreement}")

    def call(name: str) -> Callable[[], Tensor]:
        return lambda: SEARCHES[name](gallery, queries)

    seconds = time_interleaved(
        {name: call(name) for name in names}, arguments.rounds, warmup=0, clock=clock_for(arguments.threads)
    )
    peaks = {name: peak_mb(name, sizes, arguments.threads) for name in names}
    rows = [
        (name, spread(seconds[name]), ratio(seconds[name], seconds["ours"]), f"{peaks[name]:.0f}", agreement[name])
        for name in names
    ]
    print(f"{sizes[0]} x {sizes[1]} rows of width {sizes[2]}, {NEIGHBOURS} neighbours")
    print_table(("search", "seconds", "seconds over ours", "peak beyond the features, MB", "neighbours of ours"), rows)
    if arguments.coco:
        more |= measure_coco(arguments.width, arguments.threads)
    peer = names[-1]
    print_result(
        "object_knn",
        peer,
        ratio(seconds[peer], seconds["ours"]).median,
        sizes[1] / spread(seconds["ours"]).median,
        sizes[1] / spread(seconds[peer]).median,
        "queries/s",
        ratios={name: ratio(seconds[name], seconds["ours"]).median for name in names},
        peaks_mb=peaks,
        threads=arguments.threads,
        **more,
    )


def measure_coco(width: int, threads: int) -> dict[str, object]:
    """Time and memory of a tenth of the queries of COCO's size, fp16 features, votes for four k included."""
    asked = COCO_QUERIES // COCO_SHARE
    gallery = torch.cat([features(85_000, width, seed).half() for seed in range(COCO_GALLERY // 85_000)])
    queries = features(asked, width, 100)
    labels = torch.randint(0, CLASSES, (len(gallery),), generator=torch.Generator().manual_seed(0))
    clock = clock_for(threads)
    before, start = _start_peak(), clock()
    cosines, rows = knn_neighbours(gallery, queries, NEIGHBOURS)
    searched = clock() - start
    for k in (10, 20, 100, 200):
        knn_vote(cosines[:, :k], labels[rows[:, :k]])
    whole = clock() - start
    print(
        f"COCO's size, {len(gallery)} x {COCO_QUERIES} rows, {asked} of the queries asked: {searched:.0f} s for the "
        f"search, {whole - searched:.1f} s for the votes of 4 k. EXTRAPOLATED to all queries: {COCO_SHARE * whole:.0f}"
        f" s. The fp16 gallery holds {gallery.nbytes / 1e6:.0f} MB; the search took up to {_peak() - before:.0f} MB."
    )
    return {"coco_tenth_seconds": whole, "coco_extrapolated_seconds": COCO_SHARE * whole}


if __name__ == "__main__":
    main()
