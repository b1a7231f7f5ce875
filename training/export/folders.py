"""Exported folders: all or nothing on disk, as transformers loads them, or with a README that says how to."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ResNetConfig, ResNetModel, ViTImageProcessorPil
from transformers.dynamic_module_utils import get_relative_import_files

from dataset_scripts.files import file_sha256
from modeling_decodepos.configuration_decodepos import DecodePosConfig
from modeling_decodepos.modeling_decodepos import DecodePosForPreTraining, DecodePosModel

DESCRIPTION = "export.json"
AUTO_MAP = {
    "AutoConfig": "configuration_decodepos.DecodePosConfig",
    "AutoModel": "modeling_decodepos.DecodePosModel",
    "AutoBackbone": "modeling_decodepos.DecodePosBackbone",
    "AutoModelForPreTraining": "modeling_decodepos.DecodePosForPreTraining",
}


@dataclass
class Readme:
    """What an exported folder says of itself."""

    code: str  # the lines that load it
    title: str = ""
    language: str = "python"
    facts: dict[str, Any] = field(default_factory=dict)  # what a converter could get wrong, by name
    lines: list[str] = field(default_factory=list)  # further sentences

    def fact_lines(self) -> list[str]:
        """The facts as text."""
        return [f"{name.replace('_', ' ')}: {_in_words(value)}" for name, value in self.facts.items()]


@contextmanager
def new_folder(output: Path, replace: bool = False) -> Iterator[Path]:
    """Where to write what afterwards is there whole or not at all; an older folder is refused, or goes last."""
    if not replace and (output.is_file() or (output.is_dir() and any(output.iterdir()))):
        raise ValueError(f"{output} exists. Give another --output, or remove it first.")
    output.parent.mkdir(parents=True, exist_ok=True)
    for left in output.parent.glob(f".writing_{output.name}_*") if replace else ():  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".writing_{output.name}_", dir=output.parent))
    temporary.chmod(0o755)  # a temporary folder is for its owner only
    old = output.with_name(f".replaced_{output.name}")
    try:
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if output.is_dir():
            os.replace(output, old)
        os.replace(temporary, output)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        bring_back_replaced(output)


def bring_back_replaced(output: Path) -> None:
    """Give a folder its name again whose successor never got it."""
    old = output.with_name(f".replaced_{output.name}")
    if old.is_dir() and not output.is_dir():
        with suppress(FileNotFoundError):  # another process did
            os.replace(old, output)


def write_readme(folder: Path, readme: Readme, origin: dict[str, Any]) -> None:
    """Put README.md and export.json beside the files of a folder, with their hashes."""
    files = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    description = {"what": readme.title, **readme.facts, "from": origin, "sha256": files}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    table = "\n".join(f"| `{name}` | `{value}` |" for name, value in files.items())
    parts = [
        f"# {readme.title}",
        f"Made by `python -m training.export` from {_in_words(origin)}.",
        f"```{readme.language}\n{readme.code}\n```",
        *readme.lines,
        "\n".join(f"- {line}" for line in readme.fact_lines()),
        f"| file | sha256 |\n|---|---|\n{table}",
    ]
    (folder / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(item)}" for name, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def export_backbone(
    model: DecodePosForPreTraining | DecodePosModel, path: Path | str, image_size_px: int = 224
) -> Path:
    """The folder of the (student's) backbone in its own transformers class, which loads anywhere."""
    backbone: Any = (model.decodepos if isinstance(model, DecodePosForPreTraining) else model).backbone
    if isinstance(backbone.config, ResNetConfig):  # others load a plain model, not the backbone class
        plain: Any = ResNetModel(backbone.config)
        plain.to(backbone.dtype).load_state_dict(backbone.state_dict(), strict=True)
        backbone = plain.eval()
    return _save(backbone, path, image_size_px, model.config)


def export_pretraining(model: DecodePosForPreTraining, path: Path | str, image_size_px: int = 224) -> Path:
    """The folder of student, teacher and heads, with the code that `trust_remote_code=True` needs."""
    model.config.auto_map = dict(AUTO_MAP)
    try:
        saved = _save(model, path, image_size_px, model.config)
    finally:
        del model.config.auto_map
    # Remote code copies flat siblings only: the modeling file and what it imports relatively.
    source = inspect.getfile(type(model))
    for file in {source, *get_relative_import_files(source)}:
        shutil.copy(file, saved / Path(file).name)
    return saved


def _save(model: PreTrainedModel, path: Path | str, image_size_px: int, config: DecodePosConfig) -> Path:
    path = Path(path)
    model.save_pretrained(path)
    processor = ViTImageProcessorPil(
        size={"height": image_size_px, "width": image_size_px},
        resample=2,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )
    processor.save_pretrained(path)
    return path
