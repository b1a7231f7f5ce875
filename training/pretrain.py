"""Pre-train a network with de-coupling and de-positioning: the one file to read.

    accelerate launch training/pretrain.py [RECIPE.yaml] [--key value …]

The step is `training_step`; everything else here is setup and bookkeeping around it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from training.recipe import Recipe, parse_command_line
from training.run.last_word import last_word

if __name__ == "__main__":
    with last_word(listen=True):
        parse_command_line()  # --help and mistyped keys answer before the imports below, which take seconds

import torch
from huggingface_hub.utils import logging as hub_logging
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm
from transformers import logging as transformers_logging

from dataset_scripts.files import lock_folder, remove_unfinished, write_json
from modeling_decodepos.commands.memory import named_shortage
from modeling_decodepos.imagenet import IMAGE_MEAN, IMAGE_STD
from modeling_decodepos.losses import Objective
from modeling_decodepos.regions import View
from training.data.batches import RegionBatch, StepBatches, build_loader
from training.data.broken_images import TooManyBroken
from training.data.streaming import RegionStream, build_stream_loader
from training.errors import EXIT_INTERRUPTED, RunStopped, WentWrong
from training.run.batch_norms import recalibrate
from training.run.best import best_so_far, better_than_end
from training.run.checkpoints import save_checkpoint
from training.run.finish import finish, finish_with, how_to_load, is_finished, look_before, note_start, record_stop
from training.run.health import Watch, measure_spread
from training.run.log import Meter, Pace, RunLog, count_things, minutes_to_go
from training.run.optimisation import set_schedule
from training.run.setup import Data, Run, build_accelerator, build_run
from training.run.stopping import StopRequest, is_disk_full
from training.show import draw_sample
from training.views.normalise import normalise, statistics_of


def training_step(run: Run, batches: list[RegionBatch]) -> dict[str, Tensor]:
    """One update of student and teacher from this process's micro-batches; returns detached values for the log."""
    run.net.update_teacher(run.momentum())  # once per step, before the teacher's forward pass, as in SoCo
    set_schedule(run.optimizer, run.learning_rate(), run.weight_decay())
    num_pairs = count_pairs(run, batches)
    if run.net.config.centre_features and run.step == 0:
        centre_first_step(run, batches)
    logged: dict[str, Tensor] = {}
    targets: Tensor | float = 0.0
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last else run.accelerator.no_sync(run.model):
            views = prepare_views(batch, run.accelerator.device, statistics_of(run.net))
            output = run.model(views, objective=run.objective, num_pairs=num_pairs)
            loss, terms = output.loss, output.terms
            if run.anchor is not None:
                with run.accelerator.autocast():
                    anchored = run.anchor.loss(views, output.features, num_pairs)
                loss, terms = loss + run.anchor.weight * anchored, {**terms, "anchor": anchored.detach()}
            # The loss divides by the pairs of all processes; distributed training would divide by their number again.
            run.accelerator.backward(loss * run.accelerator.num_processes)
        for name, value in {"loss": loss.detach(), **terms}.items():
            logged[name] = logged.get(name, 0.0) + value
        targets = targets + sum_targets(run, output.teacher_features, batch)
    logged = {name: run.accelerator.reduce(value, "sum") for name, value in logged.items()}
    stop_if_not_finite(run, logged["loss"], batches)
    if run.recipe.run.gradient_clip > 0:
        logged["grad_norm"] = run.accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.run.gradient_clip)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.net.config.centre_features:
        run.net.update_feature_mean(run.accelerator.reduce(targets, "sum"))
    if run.is_logged():
        view, embeddings = watched_embeddings(run, output.features, output.targets)
        spread = measure_spread(embeddings, views[view].valid_regions)
        logged |= {name: run.accelerator.reduce(value, "mean") for name, value in spread.items()}
    return logged


def centre_first_step(run: Run, batches: list[RegionBatch]) -> None:
    """Give the running mean a value that the first loss can be centred with; it does not count as an update."""
    targets: Tensor | float = 0.0
    for batch in batches:
        views = prepare_views(batch, run.accelerator.device, statistics_of(run.net))
        with run.accelerator.autocast():
            features, _ = run.net.embed_by_teacher(views, run.objective)
        targets = targets + sum_targets(run, features, batch)
    sums = run.accelerator.reduce(targets, "sum")
    run.net.feature_mean.copy_(sums[:-1] / sums[-1].clamp(min=1))


def count_pairs(run: Run, batches: list[RegionBatch]) -> dict[tuple[str, str], Tensor]:
    """How many regions each pair of views matches, over all processes and micro-batches of a step."""
    counts = [sum(int(matched_regions(batch, *pair).sum()) for batch in batches) for pair in run.pairs]
    totals = run.accelerator.reduce(torch.tensor(counts, device=run.accelerator.device), "sum")
    return dict(zip(run.pairs, totals, strict=True))


def matched_regions(batch: RegionBatch, student: str, teacher: str) -> Tensor:
    """(B, R) flags of the regions that both views of a batch show."""
    flags = []
    for view in (batch.views[student], batch.views[teacher]):
        full = torch.zeros((len(batch.indices), view.valid_regions.shape[1]), dtype=torch.bool)
        rows = torch.arange(len(batch.indices)) if view.rows is None else view.rows
        full[rows] = view.valid_regions
        flags.append(full)
    return flags[0] & flags[1]


def sum_targets(run: Run, features: Mapping[str, Tensor], batch: RegionBatch) -> Tensor:
    """(C + 1,) sum of the teacher's features that a micro-batch was matched with, and their number."""
    sums = torch.zeros(run.net.config.hidden_size + 1, device=run.accelerator.device)
    for view in run.objective.of_features().teacher_views:
        rows = features[view][matched_regions(batch, view, view)].float()
        sums += torch.cat([rows.sum(0), sums.new_tensor([len(rows)])])
    return sums


def watched_embeddings(run: Run, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """A view, and its (B, R, D) embeddings in which a collapse would show.

    The targets of the teacher's heads; without heads, the student's features less the running mean.
    """
    if teacher_views := run.objective.of_heads().teacher_views:
        return teacher_views[-1], targets[teacher_views[-1]]
    view = run.objective.student_views[0]
    return view, features[view].detach() - run.net.feature_mean


def prepare_views(
    batch: RegionBatch,
    device: torch.device,
    statistics: tuple[Sequence[float], Sequence[float]] = (IMAGE_MEAN, IMAGE_STD),
) -> dict[str, View]:
    """The views on the device, their 8-bit pixels normalised there."""
    views = {name: view.to(device) for name, view in batch.views.items()}
    return {
        name: dataclasses.replace(view, pixel_values=normalise(view.pixel_values, *statistics))
        for name, view in views.items()
    }


def stop_if_not_finite(run: Run, loss: Tensor, batches: list[RegionBatch]) -> None:
    """Stop before the update that would spoil the weights, and leave the images of the step on record."""
    if not torch.isfinite(loss):
        image_ids = [image_id for batch in batches for image_id in batch.image_ids]
        place = Path(run.recipe.run.output_dir) / f"not_finite_{run.accelerator.process_index}.json"
        write_json(place, {"step": run.step, "loss": str(float(loss)), "image_ids": image_ids})
        raise WentWrong(
            f"the loss is {float(loss)} at step {run.step}; stopped before the update. {place} names the images of "
            f"this process's batch ({', '.join(image_ids[:3])} …). Lower base_learning_rate, or set gradient_clip.",
            "the loss was not finite",
        )


def train(
    run: Run, batches: Iterator[RegionBatch], watch: Watch, log: RunLog | None, progress: tqdm, steps_per_epoch: int
) -> None:
    """Train to the last step, or until asked to stop; log, measure, save and show on the way."""
    settings = run.recipe.run
    meter, pace = Meter(), Pace()
    while run.step < run.total_steps:
        began = time.perf_counter()
        own = [next(batches) for _ in range(settings.accumulation_steps)]
        meter.waited += time.perf_counter() - began
        schedule = {"learning_rate": run.learning_rate(), "momentum": run.momentum()}
        logged = training_step(run, own)
        run.step += 1
        meter.add(settings.global_batch_size, own)
        progress.update(1)
        if step_seconds := pace.add(time.perf_counter() - began):
            tell_time(run, watch, step_seconds)
        last, leave, improved = run.step == run.total_steps, watch.stop.agreed(run.accelerator), False
        if run.step % settings.log_steps == 0 or last or leave:
            line: dict[str, Any] = {"step": run.step, "epoch": round(run.step / steps_per_epoch, 3)}
            line |= {name: float(value) for name, value in logged.items()} | schedule | meter.line()
            record(run, log, line)
            show(progress, line, run.objective)
            try:
                watch.observe(line, meter.can_move, meter.broken)
            except TooManyBroken:
                save(run, watch)
                raise
            meter = Meter()
        if last and run.clean_pictures is not None:
            with run.as_it_leaves():
                recalibrate(run.net.decodepos, run.clean_pictures())
        if settings.measure_steps and (run.step % settings.measure_steps == 0 or last):
            with meter.paused():
                measures = watch.measure()
                record(run, log, {"step": run.step, **measures})
                improved = watch.judge(measures)
        if last or leave or improved or (settings.save_steps and run.step % settings.save_steps == 0):
            save(run, watch)
        if leave:
            run.accelerator.print(f"\nasked to stop: saved at step {run.step}; the same command continues from there.")
            sys.exit(EXIT_INTERRUPTED)


def record(run: Run, log: RunLog | None, line: dict[str, Any]) -> None:
    """Write a line to log.jsonl (on the main process) and to the tracker, if there is one."""
    if log is not None:
        log.write(**line)
    run.accelerator.log({name: value for name, value in line.items() if name != "step"}, step=run.step)


def save(run: Run, watch: Watch) -> None:
    """Write a checkpoint."""
    settings = run.recipe.run
    folder = Path(settings.output_dir) / "checkpoints"
    state = {**run.state, **watch.state(), "recipe": run.recipe.values()}
    best = run.state.get("best", {}).get("step")
    save_checkpoint(
        folder, run.step, run.net, run.optimizer, run.accelerator, state, settings.keep_checkpoints, best_step=best
    )


def tell_time(run: Run, watch: Watch, step_seconds: float) -> None:
    """Print how long the run has to go on this machine, unless that is hardly anything."""
    if run.total_steps - run.step >= 20:
        measure_steps = run.recipe.run.measure_steps
        minutes = minutes_to_go(run.step, run.total_steps, step_seconds, measure_steps, watch.measure_seconds)
        run.accelerator.print(f"\nabout {count_things(minutes, 'minute')} to go on this machine")


def show(progress: tqdm, line: dict[str, Any], objective: Objective) -> None:
    """Put the latest values beside the progress bar."""
    shown = {name: f"{line[name]:.3f}" for name in ("loss", *(term.name for term in objective.terms))}
    speed = {"img/s": f"{line['images_per_second']:.0f}", "wait": f"{line['data_wait']:.0%}"}
    progress.set_postfix(shown | speed, refresh=False)


def main(arguments: list[str] | None = None) -> None:
    """Train, export, and write the report."""
    recipe = parse_command_line(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    # A 1x1 kernel's channels-last strides differ in name only from those of its gradient bucket.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    stop = StopRequest()
    try:
        run_recipe(recipe, stop)
    except KeyboardInterrupt:
        print("\nasked to stop outside of training steps: nothing is lost; the same command goes on.", flush=True)
        sys.exit(EXIT_INTERRUPTED)


def run_recipe(recipe: Recipe, stop: StopRequest) -> None:
    """A run from its recipe to its report; what keeps it from either becomes a message and exit code 1."""
    output_dir = Path(recipe.run.output_dir)
    with contextlib.ExitStack() as held:
        enough = partial(named_shortage, memory_keys(recipe), ", or accumulation_steps larger")
        try:
            with enough():
                accelerator = build_accelerator(recipe)
                if accelerator.is_main_process:
                    held.enter_context(lock_folder(output_dir))
                    remove_unfinished(output_dir)
                run, dataset, batches = build_run(accelerator, recipe, output_dir)
                watch = Watch(run, dataset.source, stop) if run.step < run.total_steps else None
        except (ValueError, OSError, SafetensorError, RunStopped) as error:  # a user can put it right: it says how
            sys.exit(f"{error}")
        try:
            with enough(kind=RunStopped):
                run_to_the_end(run, dataset, batches, watch)
        except RunStopped as error:
            stop_here(run, dataset, error)
        except (OSError, SafetensorError) as error:
            if not is_disk_full(error):
                raise
            reason = f"{output_dir} cannot be written: {error}. Make room, then run the same command: it goes on."
            stop_here(run, dataset, RunStopped(reason))


def memory_keys(recipe: Recipe) -> dict[str, int]:
    """The keys of a recipe that decide how much memory a run takes."""
    return {"global_batch_size": recipe.run.global_batch_size, "view_size_px": recipe.views.view_size_px}


def stop_here(run: Run, dataset: Data, error: RunStopped) -> NoReturn:
    """End with a reason, which run.json and the report tell too; after a loss, the best state is exported."""
    output_dir, lines = Path(run.recipe.run.output_dir), [str(error)]
    if run.accelerator.is_main_process:
        if isinstance(error, WentWrong) and (left := best_so_far(run, error.cause)):
            try:
                finish_with(run, dataset, output_dir, left)
                lines += [left.why, how_to_load(output_dir)]
            except (OSError, SafetensorError) as problem:
                lines.append(f"the best state could not be exported: {problem}")
        record_stop(output_dir, str(error))
    if isinstance(error, WentWrong):  # a process that leaves earlier takes the one that exports with it
        run.accelerator.wait_for_everyone()
    sys.exit("\n" + "\n".join(lines))


def run_to_the_end(run: Run, dataset: Data, batches: StepBatches, watch: Watch | None) -> None:
    """Train what is left to train, leave the results, and say where they are."""
    output_dir = Path(run.recipe.run.output_dir)
    if watch is not None:
        run_training(run, dataset, batches, watch, output_dir)
    else:
        run.accelerator.print("this run is complete; nothing is left to train.")
    last_lines = []
    if run.accelerator.is_main_process:
        left = None if is_finished(output_dir) else better_than_end(run)
        if left is not None:
            finish_with(run, dataset, output_dir, left)
        elif not is_finished(output_dir):
            finish(run, dataset, output_dir)
        last_lines.append(how_to_load(output_dir))
        if left is not None:
            last_lines.append(f"\nTHE END OF THIS RUN IS NOT WHAT IT LEAVES. {left.why}")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()  # trackers have a word at their end as well
    print("\n".join(last_lines), end="\n" if last_lines else "")


def start_tracker(run: Run) -> None:
    """Where log lines go beside log.jsonl. One run there, however often it is taken up again."""
    settings = run.recipe.run
    if settings.tracker == "none":
        return
    name = run.state.setdefault("tracker_run", uuid.uuid4().hex)  # must outlive this process
    options: dict[str, dict[str, Any]] = {
        # The lines after the checkpoint that a run continues from make room for their repetition.
        "tensorboard": {"purge_step": run.step + 1 if run.step else 0},
        "trackio": {"name": name, "resume": "allow", "space_id": settings.space_id or None},
        "wandb": {"id": name, "resume": "allow"},
    }
    try:
        run.accelerator.init_trackers("decodepos", config=run.recipe.values(), init_kwargs=options)
    except Exception as error:  # of a network, a login, a full disk: whatever a tracker runs into
        raise RunStopped(
            f"the tracker {settings.tracker} cannot be started ({type(error).__name__}: {error}). Take another "
            "--tracker, or none: log.jsonl has every line."
        ) from error


def measure_start(run: Run, watch: Watch, log: RunLog | None, output_dir: Path) -> None:
    """Measure what the first step begins with, and keep what the end is compared with."""
    if run.accelerator.is_main_process:
        look_before(run, watch.online, output_dir)
    if run.recipe.run.measure_steps:
        measures = watch.measure()
        record(run, log, {"step": 0, **measures})
        watch.tell_measures()
        watch.judge(measures)


def run_training(run: Run, dataset: Data, batches: StepBatches, watch: Watch, output_dir: Path) -> None:
    """Everything between a built model and its last checkpoint."""
    main_process = run.accelerator.is_main_process
    log = RunLog(output_dir / "log.jsonl", run.step) if main_process else None
    start_tracker(run)
    if main_process:
        note_start(run, dataset, watch.online, output_dir)
        draw_sample(dataset).quantize(256, Image.Quantize.FASTOCTREE).save(output_dir / "views.png", optimize=True)
    if run.step == 0:
        with run.as_it_starts():
            measure_start(run, watch, log, output_dir)
    batches = dataclasses.replace(batches, first_step=run.step, last_step=run.total_steps)
    workers, pin_memory = run.recipe.data.num_workers, run.accelerator.device.type == "cuda"
    if isinstance(dataset, RegionStream):
        loader = build_stream_loader(dataset, batches, workers, pin_memory)
    else:
        loader = build_loader(dataset, batches, workers, pin_memory)
    with (
        watch.stop.put_off(),
        tqdm(
            total=run.total_steps, initial=run.step, disable=not main_process, unit="step", dynamic_ncols=True
        ) as bar,
    ):
        try:
            train(run, iter(loader), watch, log, bar, batches.steps_per_epoch)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # a worker's error keeps all workers alive, and so the process
            raise
    watch.tell_measures()


if __name__ == "__main__":
    with last_word():
        main()
