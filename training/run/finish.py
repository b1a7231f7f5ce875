"""What a run leaves: weights, probes, pictures, the report."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from dataset_scripts.files import read_json, write_json
from modeling_decodepos.modeling_decodepos import DecodePosModel
from modeling_decodepos.stored_models import load_whole
from training.export.folders import export_backbone, export_pretraining
from training.probes.before_after import ProbeResult, draw_probe, probe_model
from training.probes.during import NearestRegions, OnlineMeasures, build_online
from training.probes.neighbours import draw_neighbours
from training.probes.similarity import draw_similarity
from training.provenance import describe_data, describe_run, now
from training.run.anchor import START_FOLDER
from training.run.best import Left, bring_back
from training.run.card import write_card
from training.run.folder import read_run
from training.run.gains import DIAGNOSIS, MOST_IMAGES, diagnose_both, name_of
from training.run.log import count_things
from training.run.report import write_report
from training.run.setup import Data, Run

T = TypeVar("T")


def describe(run: Run, dataset: Data, online: OnlineMeasures | None = None) -> dict[str, Any]:
    """What run.json holds."""
    data = describe_data(run.recipe.data.data, dataset.source)
    return describe_run(run.recipe, data) | {
        "terms": [term.name for term in run.objective.terms] + ["anchor"] * (run.anchor is not None),
        "projection_size": run.embedding_size,
        "steps": run.total_steps,
        **({"measured_on": online.describe()} if online else {}),
    }


def note_start(run: Run, dataset: Data, online: OnlineMeasures | None, output_dir: Path) -> None:
    """Write run.json; of a run that goes on, the first start and command stay, and this one is added to `resumed`."""
    known, described = output_dir / "run.json", describe(run, dataset, online)
    if run.step and (before := _read(known)):
        again = {"step": run.step, **{name: described[name] for name in ("started", "command", "commit")}}
        described |= {name: before[name] for name in ("started", "command") if name in before}
        described["resumed"] = [*before.get("resumed", []), again]
    write_json(known, described)


def look_before(run: Run, online: OnlineMeasures | None, output_dir: Path) -> None:
    """Write down what the network finds before its first step; what an earlier run without a checkpoint left goes."""
    for name in ("probe.json", "neighbours.json", "neighbours.jpg", "similarity.png"):
        (output_dir / name).unlink(missing_ok=True)
    if run.recipe.run.probe_count:
        write_json(output_dir / "probe.json", {"before": probe(run).to_dict()})
    if online is not None:
        found = online.neighbours(run.net.decodepos).to_dict()
        write_json(output_dir / "neighbours.json", {"measured_on": online.describe(), "before": found})


def probe(run: Run) -> ProbeResult:
    """How much of a region's feature is the object, on exactly re-rendered scenes; see `before_after`."""
    size = run.recipe.measured_size_px
    return probe_model(run.net.decodepos, seed=run.recipe.run.seed, count=run.recipe.run.probe_count, size_px=size)


def compare_probes(run: Run, output_dir: Path) -> None:
    """Probe the trained network, and draw it beside the one the run began with."""
    path = output_dir / "probe.json"
    before = _before(path, ProbeResult)
    if before is not None:
        after = probe(run)
        write_json(path, _read(path) | {"after": after.to_dict()})
        draw_probe(before, after).save(output_dir / "probe.png")


def compare_neighbours(run: Run, online: OnlineMeasures | None, output_dir: Path) -> None:
    """What is near what now, drawn beside what was near when the run began."""
    path = output_dir / "neighbours.json"
    results, before = _read(path), _before(path, NearestRegions)
    # Since then --allow_change may have changed what is measured on.
    if before is not None and online is not None and results.get("measured_on") == online.describe():
        after = online.neighbours(run.net.decodepos)
        write_json(path, results | {"after": after.to_dict()})
        draw_neighbours(online, before, after).save(output_dir / "neighbours.jpg", quality=88)


def compare_similarity(run: Run, online: OnlineMeasures | None, output_dir: Path) -> None:
    """Of a run that continues weights, where regions are found again, drawn beside where the start finds them."""
    if online is None or not run.continues_weights:
        return
    start, after = (
        load_whole(DecodePosModel, output_dir / folder).to(run.accelerator.device)
        for folder in (START_FOLDER, "export/pretraining")
    )
    drawn = draw_similarity(online, start, after)
    if drawn is not None:
        drawn.quantize(256).save(output_dir / "similarity.png", optimize=True)


def compare_diagnoses(run: Run, online: OnlineMeasures | None, output_dir: Path) -> None:
    """Diagnose the weights a run began with, and those it exported; where that fails, say so and go on."""
    if not run.recipe.run.diagnose or not run.continues_weights:
        return
    shutil.rmtree(output_dir / DIAGNOSIS, ignore_errors=True)  # of other weights
    if online is None:
        print("\nno diagnosis: measure_steps is 0, so there are no pictures to measure on.", flush=True)
        return
    started, images = time.perf_counter(), min(MOST_IMAGES, len(online.queries))
    print(
        f"\ndiagnosis of the start and of what came out of it, on {count_things(images, 'query picture')} …",
        flush=True,
    )
    try:
        diagnose_both(
            online,
            output_dir / START_FOLDER,
            output_dir / "export" / "backbone",
            output_dir / DIAGNOSIS,
            name=name_of(run.recipe.model.backbone),
            size_px=run.recipe.measured_size_px,
            seed=run.recipe.run.seed,
            device=str(run.accelerator.device),
        )
    except Exception as error:  # whatever it is, the weights are exported, and hours of training are not lost
        print(f"the diagnosis failed ({type(error).__name__}: {error}); the run goes on without one.", flush=True)
    else:
        print(
            f"diagnosed in {time.perf_counter() - started:.0f} s: {output_dir / DIAGNOSIS / 'report.html'}", flush=True
        )


def finish(run: Run, dataset: Data, output_dir: Path) -> None:
    """Export the weights, compare both ends of the run, and write the report."""
    size = run.recipe.views.view_size_px
    online = build_online(run.recipe.data, run.recipe.run, run.recipe.measured_size_px)
    with run.as_it_leaves():
        export = {
            "backbone": str(export_backbone(run.net, output_dir / "export" / "backbone", size)),
            "pretraining": str(export_pretraining(run.net, output_dir / "export" / "pretraining", size)),
        }
        compare_probes(run, output_dir)
        compare_neighbours(run, online, output_dir)
    compare_similarity(run, online, output_dir)
    compare_diagnoses(run, online, output_dir)
    known = output_dir / "run.json"
    description = _read(known) or describe(run, dataset)
    description.pop("reason", None)  # of an earlier stop
    write_json(known, description | {"status": "finished", "finished": now(), "export": export})
    if run.continues_weights:
        write_card(read_run(output_dir), Path(export["backbone"]))
    write_report(output_dir)


def finish_with(run: Run, dataset: Data, output_dir: Path, left: Left) -> None:
    """Finish with an earlier state in place of the end, and say so in run.json."""
    bring_back(run, left.step)
    known = output_dir / "run.json"
    write_json(known, (_read(known) or describe(run, dataset)) | {"left": left.to_dict()})
    finish(run, dataset, output_dir)


def record_stop(output_dir: Path, reason: str) -> None:
    """Say in run.json and on the page why a run was stopped; a full disk is no reason to lose the message."""
    known = output_dir / "run.json"
    with contextlib.suppress(OSError):
        if description := _read(known):
            write_json(known, description | {"status": "stopped", "reason": reason, "finished": now()})
            write_report(output_dir)


def is_finished(output_dir: Path) -> bool:
    """Whether an earlier call already left everything that `finish` leaves."""
    description = _read(output_dir / "run.json")
    if description.get("status") != "finished" or not (output_dir / "report.html").is_file():
        return False
    return all(_is_whole(output_dir / "export" / kind) for kind in description.get("export", {}))


def _is_whole(folder: Path) -> bool:
    """Whether an exported folder still has its config and its weights."""
    try:
        with safe_open(folder / "model.safetensors", framework="pt"):  # which compares its length with its header
            return (folder / "config.json").is_file()
    except (OSError, SafetensorError):
        return (folder / "model.safetensors.index.json").is_file()


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file of the run folder holds; empty if there is none, or if it is damaged."""
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError as error:
        print(f"{error} The run goes on without.", flush=True)
        return {}


def _before(path: Path, kind: type[T]) -> T | None:
    """What a file says of the start of a run; None if there is no such file, or if it is damaged."""
    values = _read(path)
    try:
        found: Any = values and kind.from_dict(values["before"])  # type: ignore[attr-defined]
    except (KeyError, TypeError, ValueError) as error:
        print(f"{path} says nothing of the start ({error!r}); what came of it is not compared.", flush=True)
        return None
    return found or None


def how_to_load(output_dir: Path) -> str:
    """Where everything is, and the three lines that load the result."""
    backbone = output_dir / "export" / "backbone"
    return (
        f"\ncheckpoint  {output_dir / 'checkpoints'}\nreport      {output_dir / 'report.html'}\n\n"
        "Load what came out (no code of ours needed):\n\n"
        "    from transformers import AutoImageProcessor, AutoModel\n"
        f'    processor = AutoImageProcessor.from_pretrained("{backbone}")\n'
        f'    model = AutoModel.from_pretrained("{backbone}")'
    )
