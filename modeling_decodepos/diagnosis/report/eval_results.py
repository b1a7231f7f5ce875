"""`.eval_results/*.yaml`: what was measured on a benchmark of the Hub, in the folder of the model."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...commands.outputs import refuse_unwritable
from ..data.photos import open_splits
from ..data.scene_pairs import PAIRS_SPLIT
from ..measures.metrics import BENCHMARK_TASKS, BY_KEY
from ..models.networks import short_name
from ..results import Diagnosis, ModelResult

FOLDER = ".eval_results"


def find_folders(dataset_id: str, data: str, models: Sequence[str]) -> dict[str, Path]:
    """The models that are folders, by the name a diagnosis gives them.

    Raises ValueError unless there are any that can be written, and the data is a benchmark with an id of the Hub.
    """
    if not _is_hub_id(dataset_id):
        raise ValueError(f"--eval_results {dataset_id!r}: expected the id of the data set on the Hub, ORG/NAME.")
    if data == "scenes" or PAIRS_SPLIT not in open_splits(data):
        raise ValueError(
            f"--eval_results: --data {data} is no benchmark, for it has no split {PAIRS_SPLIT}. Build one: python -m "
            "dataset_scripts.prepare pairs."
        )
    found = [Path(model) for model in models if Path(model).is_dir()]
    folders = {short_name(str(folder)): folder for folder in found}
    if not found or len(folders) < len(found):
        many = "several have the same name" if found else "none is"
        raise ValueError(f"--eval_results: a MODEL must be a folder to be written into, and {many}. Give one.")
    for folder in found:
        refuse_unwritable(folder / FOLDER, folder=True, flag="--eval_results: the folder")
    return folders


def _is_hub_id(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


def write_scores(diagnosis: Diagnosis, folders: Mapping[str, Path], dataset_id: str) -> list[Path]:
    """Writes what each model scored into its folder; the files."""
    scored = [
        (folders[model.name], benchmark_entries(diagnosis, model, dataset_id))
        for model in diagnosis.models
        if model.name in folders
    ]
    name = dataset_id.partition("/")[2]
    return [write_eval_results(folder, name, entries) for folder, entries in scored if entries]


def benchmark_entries(diagnosis: Diagnosis, model: ModelResult, dataset_id: str) -> list[EvalResultEntry]:
    """What the last stage scored, as far as it was measured."""
    numbers = {key: model.last.numbers.get(key) for key in BENCHMARK_TASKS}
    setup = (
        f"stage {model.last.name}, regions read {model.model.reading}, pictures of {model.model.size_px} px, "
        f"{diagnosis.settings['probed_regions']} objects"
    )
    return [
        EvalResultEntry(
            dataset_id,
            key,
            round(found.value, 4),
            date=datetime.date.today().isoformat(),
            notes=f"decodepos diagnose, {BY_KEY[key].protocol}; 95 % {found.low:.4f} to {found.high:.4f}; {setup}",
        )
        for key, found in numbers.items()
        if found is not None and found.value is not None and found.low is not None and found.high is not None
    ]


def write_eval_results(folder: Path, name: str, entries: Sequence[EvalResultEntry]) -> Path:
    """Writes the entries of one benchmark into a model's folder, as the Hub reads them."""
    path = folder / FOLDER / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    text = yaml.safe_dump(eval_result_entries_to_yaml(list(entries)), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path
