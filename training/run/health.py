"""What stops a run that has gone wrong, before the night is over and good checkpoints are gone.

`CollapseWatch` looks at the spread of the embeddings at every log line, `KnnWatchdog` at the measures of
`training.probes.during`, `BrokenImages` counts what could not be read. `Watch` holds them all, and the measures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from modeling_decodepos.diagnosis import effective_rank, embedding_std
from training.data.batches import Broken
from training.data.broken_images import BrokenImages, still_broken
from training.data.sources import ImageSource
from training.data.streaming import ImageStream
from training.errors import RunStopped, WentWrong
from training.probes.during import OnlineMeasures, build_online
from training.probes.in_words import changes_in_words, in_words
from training.run.best import WATCHED, noise, score
from training.run.checkpoints import saved_steps, step_of
from training.run.log import count_things
from training.run.setup import Run
from training.run.stopping import StopRequest

LEAST_RANK = 2.0
"""An effective rank below this says that all embeddings lie (almost) on one line, whatever their dimension is."""


def measure_spread(embeddings: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Standard deviation and effective rank of the valid ones of (B, R, D) embeddings, and their greatest rank."""
    rows = (F.normalize(embeddings.float(), dim=-1) * valid[..., None]).flatten(0, 1)
    return {
        "embedding_std": embedding_std(embeddings, valid),
        "effective_rank": effective_rank(rows),
        "full_rank": valid.sum().clamp(max=rows.shape[1]).float(),
    }


def lies_on_a_line(rank: float, full_rank: float) -> bool:
    """Whether embeddings of an effective rank have collapsed to (almost) one line, where more was possible."""
    return rank < LEAST_RANK and full_rank >= 2 * LEAST_RANK


@dataclass
class CollapseWatch:
    """Warns once when embeddings become narrow, and stops the run when they stay collapsed.

    A perfect spread has a standard deviation of 1 / sqrt(D) in each dimension. Collapsed means: below `stop_below`
    times that, or an effective rank below `LEAST_RANK` where a rank of at least twice that is possible.
    """

    size: int
    warn_below: float
    stop_below: float
    patience: int
    grace_steps: int
    checkpoints: Path
    warned: bool = False
    collapsed_lines: int = 0
    healthy_step: int = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep, and a new watch is given."""
        return {name: getattr(self, name) for name in ("warned", "collapsed_lines", "healthy_step")}

    def observe(self, step: int, std: float, rank: float, full_rank: float) -> str | None:
        """A warning, if it is time for one; stops the run if the embeddings have been collapsed for too long.

        A line without a number (too few regions) is passed over.
        """
        if not math.isfinite(std):
            return None
        perfect = 1 / math.sqrt(self.size)
        numbers = (
            f"standard deviation {std:.2g}, perfect spread {perfect:.2g}; effective rank {rank:.1f} of {full_rank:.0f}"
        )
        if std >= self.stop_below * perfect and not lies_on_a_line(rank, full_rank):
            self.collapsed_lines, self.healthy_step = 0, step
        else:
            self.collapsed_lines += 1
        if self.stop_below > 0 and self.collapsed_lines >= self.patience and step > self.grace_steps:
            healthy = f"step {self.healthy_step}" if self.healthy_step else "none"
            raise WentWrong(
                f"stopped at step {step}: the embeddings have collapsed, all regions look alike to the network "
                f"({numbers}; collapsed for {self.collapsed_lines} log lines in a row). The last healthy log line: "
                f"{healthy}. {name_checkpoint(self.checkpoints, self.healthy_step)} Change what led here: lower "
                "base_learning_rate, raise teacher_momentum or warmup_share, keep use_predictor true. collapse_stop 0 "
                "switches this off.",
                "the embeddings collapsed",
            )
        if std < self.warn_below * perfect and not self.warned:
            self.warned = True
            return f"step {step}: the embeddings have become narrow ({numbers}). Watch for collapse."
        return None


@dataclass
class KnnWatchdog:
    """Stops a run whose features have become much worse than those it began with.

    Meant for runs that continue given weights: fresh weights begin at chance, and there is nothing to lose.
    """

    share: float
    checkpoints: Path
    measure: str | None = None
    start: float = 0.0
    healthy_step: int = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep, and a new watchdog is given."""
        return {name: getattr(self, name) for name in ("measure", "start", "healthy_step")}

    def observe(self, step: int, measures: Mapping[str, float]) -> str | None:
        """Compare measures with the first ones, and stop the run if the watched one fell below its share of that.

        Returns a warning where no fall from the first can be told.
        """
        if self.measure is None:
            self.measure = next((name for name in WATCHED if name in measures), None)
            self.start = measures.get(self.measure or "", 0.0)
            self.healthy_step = step
            if self.share > 0 and self.start <= self._noise(measures):
                found = f"{self.measure} is {self.start:.4g}" if self.measure else f"there is no {WATCHED[-1]}"
                return f"nothing is watched: {found} at the start, so no fall from it can be told (watchdog_share)."
            return None
        value = measures.get(self.measure)
        if value is None or value >= self.share * self.start or self.start - value <= self._noise(measures):
            self.healthy_step = step
            return None
        raise WentWrong(
            f"stopped at step {step}: {self.measure} fell to {value:.4g} from {self.start:.4g} at the start; at least "
            f"{self.share * self.start:.4g} is wanted (watchdog_share {self.share:g}). It was last above that at step "
            f"{self.healthy_step}. {name_checkpoint(self.checkpoints, self.healthy_step)} Change what led here: "
            "lower base_learning_rate, raise warmup_share or teacher_momentum. watchdog_share 0 switches this off."
        )

    def _noise(self, measures: Mapping[str, float]) -> float:
        """A fall within it is none: near chance nothing is lost."""
        return noise(self.start, measures, self.measure or WATCHED[-1])


def name_checkpoint(folder: Path, step: int) -> str:
    """A sentence that names the newest checkpoint not younger than a step."""
    saved = [path for path in saved_steps(folder) if step_of(path) <= step]
    if saved:
        return f"The newest checkpoint that old is {saved[-1]}."
    return f"{folder} holds no checkpoint that old: begin anew, and set save_steps and keep_checkpoints to keep some."


class Watch:
    """All that looks at a run while it goes on, and may stop it. Every process has one; all come to one verdict."""

    def __init__(self, run: Run, source: ImageSource | ImageStream, stop: StopRequest):
        settings, output_dir = run.recipe.run, Path(run.recipe.run.output_dir)
        checkpoints, main_process = output_dir / "checkpoints", run.accelerator.is_main_process
        self.run, self.stop = run, stop
        self.online: OnlineMeasures | None = None
        self.measure_seconds = 0.0  # that measuring took last
        if main_process:
            self.online = build_online(run.recipe.data, settings, run.recipe.measured_size_px)
        self.collapse = CollapseWatch(
            run.embedding_size,
            settings.collapse_warn,
            settings.collapse_stop,
            settings.collapse_patience,
            settings.collapse_grace_steps,
            checkpoints,
            **run.state.get("collapse_watch", {}),
        )
        share = settings.watchdog_share if run.continues_weights else 0.0
        self.knn = KnnWatchdog(share, checkpoints, **run.state.get("knn_watchdog", {}))
        self.moves: list[int] = run.state.get("moves", [0, 0])  # mixed samples that could not move, mixed samples
        known, most = output_dir / "broken_images.jsonl", run.recipe.data.max_broken_share
        self.broken = BrokenImages(len(source), most, known, resume=run.step > 0, writes=main_process)
        if run.step > 0 and not isinstance(source, ImageStream):  # a stream finds no image by its number
            own = still_broken(self.broken.reasons, source) if main_process else {}
            self.broken.keep(broadcast_object_list([own])[0])

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        return {"collapse_watch": self.collapse.state(), "knn_watchdog": self.knn.state(), "moves": self.moves}

    def observe(self, line: Mapping[str, Any], can_move: list[bool], broken: list[Broken]) -> None:
        """Look at a log line, and at what this process met since the one before; stops a run that went wrong."""
        accelerator = self.run.accelerator
        counts = torch.tensor([can_move.count(False), len(can_move), len(broken)], device=accelerator.device)
        immobile, mixed, met = accelerator.reduce(counts, "sum").tolist()
        # Told to all processes; objects go through a pickle, in memory, so only when there are any.
        if met and (new := self.broken.add(gather_object(broken))):
            added = count_things(new, "more image")
            accelerator.print(f"\n{added} cannot be read, {len(self.broken)} in all: broken_images.jsonl")
        self.moves = [self.moves[0] + immobile, self.moves[1] + mixed]
        if self.run.recipe.views.repositioning != "none":
            stop_if_immobile(self.moves[0], self.moves[1], self.run.recipe.run.max_immobile_share)
        if "effective_rank" in line:
            rank, full_rank = line["effective_rank"], line["full_rank"]
            if warning := self.collapse.observe(self.run.step, line["embedding_std"], rank, full_rank):
                accelerator.print(f"\n{warning}")

    def measure(self) -> dict[str, float]:
        """The measures now, taken on the main process and told to all."""
        began = time.perf_counter()
        with self.run.as_it_leaves():
            own = self.online.measure(self.run.net.decodepos) if self.online else {}
        measures: dict[str, float] = broadcast_object_list([own])[0]
        self.measure_seconds = time.perf_counter() - began
        self.run.state.setdefault("measured", {})["last" if self.run.step else "start"] = measures
        return measures

    def tell_measures(self) -> None:
        """Print what was measured last, beside what the run began with."""
        measured = self.run.state.get("measured", {})
        if self.online is None or not measured:
            return
        start, last = measured.get("start"), measured.get("last")
        on = f"on {len(self.online.queries)} pictures ({self.online.queries.name})"
        if last is None:
            print(f"\nat the start, {on}: {in_words(start)}")
        else:
            print(f"\nat the end, {on}: {in_words(last, start)}")
            print(changes_in_words(last, start or {}))

    def judge(self, measures: Mapping[str, float]) -> bool:
        """Whether a checkpoint has to keep this state, the best so far; stops a run that lost what it began with.

        The start of a run that continues weights counts too: `start/` keeps it.
        """
        if warning := self.knn.observe(self.run.step, measures):
            self.run.accelerator.print(f"\n{warning}")
        found, best = score(measures), self.run.state.get("best")
        if found is None or (self.run.step == 0 and not self.run.continues_weights):
            return False
        name, value = found
        if best and best["measure"] == name and best["value"] >= value:
            return False
        self.run.state["best"] = {"step": self.run.step, "measure": name, "value": value}
        return self.run.step > 0


def stop_if_immobile(immobile: int, mixed: int, most: float) -> None:
    """Refuse to go on re-positioning regions that have nowhere to go: that teaches nothing and looks like success."""
    if mixed and immobile / mixed > most:
        raise RunStopped(
            f"{immobile} of {mixed} mixed samples had no room to move their regions (allowed: {most:.0%}, "
            "max_immobile_share). Use --repositioning scaled, or fewer and smaller regions."
        )
