"""Models that a visitor may choose: one before and after training, the operator's, or the safetensors of a Hub id.

What is typed is a Hub id and nothing else: never a local path, `module:function` or a file that can hold code. Of a
repository only `FILES` are downloaded, after their sizes are known; code of a repository is never run. The Hub is
asked as anybody would ask it: a token of the operator's goes nowhere.
"""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from transformers import AutoConfig, AutoModel
from visitor_pictures import SCENES, VIEW_PX

from modeling_decodepos.batch_norms import FITTED_ON
from modeling_decodepos.diagnosis.models.load import FeatureModel, load_model, with_reading
from modeling_decodepos.diagnosis.models.networks import RANDOM
from modeling_decodepos.looking.views import scene_view

BEFORE, AFTER, OWN, TYPED = "before: untrained", "after: trained", "the operator's", "another of the Hub"
OPERATORS_MODEL = "DECODEPOS_MODEL"
"""Environment variable: the Hub id or local folder of the checkpoint that is offered as `OWN`."""

_HERE = Path(__file__).resolve().parent
WEIGHTS = next(
    (folder for folder in (_HERE / "weights", _HERE.parent / "weights" / "decodepos-scenes-mini") if folder.is_dir()),
    _HERE / "weights",
)
"""The released weights: beside this file in the Space, and in the checkout with the other weights."""
AS_TRAINED = "known"
"""Where regions were read when the released weights were trained: where a padded network's cells lie."""

FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
LARGEST_WEIGHTS = 400 * 2**20
LARGEST_CONFIG = 2**20
MOST_LAYERS = 64
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_ID = re.compile(rf"{_PART}/{_PART}")


class NoSuchModel(ValueError):
    """Why a model cannot be used; for the visitor."""


def choices() -> list[str]:
    """What is offered here."""
    return [BEFORE, AFTER, *([OWN] if os.environ.get(OPERATORS_MODEL) else []), TYPED]


def find_model(choice: str, typed: str) -> FeatureModel:
    """The model of a choice; `typed` is the Hub id, for the choice that needs one."""
    if choice == BEFORE:
        return _untrained()
    if choice == AFTER:
        return _trained()
    if choice == OWN and (own := os.environ.get(OPERATORS_MODEL)):
        return load_folder(Path(own), OWN) if Path(own).is_dir() else load_from_hub(check_id(own))
    if choice == TYPED:
        return load_from_hub(check_id(typed))
    raise NoSuchModel(f"There is no choice {choice!r} here; expected one of {', '.join(choices())}.")


def check_id(text: str) -> str:
    """The text, if it is a Hub id of the form ORGANISATION/NAME."""
    name = text.strip()
    if not _HUB_ID.fullmatch(name) or "--" in name or ".." in name:
        shown = f"{name[:80]!r} is no id of a model on the Hub" if name else "No model is named"
        raise NoSuchModel(f"{shown}; expected ORGANISATION/NAME, such as facebook/dinov2-small.")
    return name


@lru_cache(maxsize=1)
def _trained() -> FeatureModel:
    """The released weights."""
    return with_reading(load_folder(WEIGHTS, "trained on scenes"), AS_TRAINED)


@lru_cache(maxsize=1)
def _untrained() -> FeatureModel:
    """Fresh weights of the same network, its batch norms as pictures want them."""
    fresh = load_model(f"{RANDOM}{WEIGHTS}", size_px=VIEW_PX, reading=AS_TRAINED, name="untrained, batch norms fitted")
    scenes = torch.stack([scene_view(number, VIEW_PX)[0] for number in range(SCENES, SCENES + FITTED_ON)])
    return fresh.fit_norms(scenes)


def load_from_hub(name: str) -> FeatureModel:
    """The model of a Hub id, downloaded as far as needed."""
    return load_folder(_download(name), name)


def _download(name: str) -> Path:
    api = HfApi(token=False)
    try:
        revision = api.model_info(name).sha
        found = api.get_paths_info(name, list(FILES), revision=revision)
        sizes = {item.path: item.size for item in found if isinstance(item, RepoFile)}
        if "config.json" not in sizes or "model.safetensors" not in sizes:
            raise NoSuchModel(
                f"{name} has no config.json with model.safetensors at its root. Only weights in safetensors, in one "
                "file, are read here: other files can hold code."
            )
        for file, most in (("model.safetensors", LARGEST_WEIGHTS), ("config.json", LARGEST_CONFIG)):
            if sizes[file] > most:
                raise NoSuchModel(
                    f"{file} of {name} has {sizes[file] / 2**20:,.0f} MB; at most {most >> 20} MB are read here. Use "
                    "decodepos-diagnose on a machine of your own."
                )
        stored = [hf_hub_download(name, file, revision=revision, token=False) for file in FILES if file in sizes]
    except GatedRepoError as error:
        raise NoSuchModel(f"{name} is behind a form on the Hub, which this page cannot fill in.") from error
    except RepositoryNotFoundError as error:
        raise NoSuchModel(
            f"There is no model {name} on the Hub, or it is private. Is the id spelled right?"
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise NoSuchModel(
            f"{name} cannot be downloaded from the Hub now ({type(error).__name__}). Please try again later."
        ) from error
    return Path(stored[0]).parent


def load_folder(folder: Path, name: str) -> FeatureModel:
    """The model of a folder with `FILES`."""
    if not (folder / "model.safetensors").is_file():
        raise NoSuchModel(f"{name} has no model.safetensors.")
    try:
        _refuse_bomb(folder, name)
        return load_model(str(folder), size_px=VIEW_PX, name=name)
    except NoSuchModel:
        raise
    except Exception as error:  # whatever transformers makes of a config that somebody else wrote
        raise NoSuchModel(explain(name, str(error).replace(str(folder), name) or type(error).__name__)) from error


def explain(name: str, said: str) -> str:
    """What to tell a visitor about an error: its first sentence, for what follows advises on the command line."""
    first = re.split(r"\.\s", said.strip())[0].removesuffix(".")
    return f"{name} cannot be used here: {first[:300]}."


def _refuse_bomb(folder: Path, name: str) -> None:
    """Builds the network without memory first: a short config can ask for any amount of it."""
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in written and written.get("model_type") != "decodepos":
        raise NoSuchModel(f"{name} needs code of its own, which this page never runs.")
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    network = getattr(config, "backbone_config", None) or config
    layers = getattr(network, "num_hidden_layers", None) or getattr(network, "depths", None) or 0
    if (sum(layers) if isinstance(layers, list | tuple) else layers) > MOST_LAYERS:
        raise NoSuchModel(f"{name} has more than {MOST_LAYERS} layers, too many for this page.")
    with torch.device("meta"):
        weights = sum(part.numel() for part in AutoModel.from_config(network).parameters())
    if 2 * weights > LARGEST_WEIGHTS:
        raise NoSuchModel(f"{name} has {weights / 1e6:,.0f} million weights, too many for this page.")
