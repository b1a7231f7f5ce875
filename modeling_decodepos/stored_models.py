"""A model from a folder or the Hub, whole or not at all: a weight that a file lacks would be a random number."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel

# Buffers that older files hold and newer classes compute.
_COMPUTED = ("position_ids", "relative_position_index", "num_batches_tracked")


@contextmanager
def unusable_if_it_fails(what: str) -> Iterator[None]:
    """Whatever parsers raise on damaged or foreign files becomes a ValueError; an OSError says enough by itself."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except StrictDataclassError as error:
        raise ValueError(f"{what}: {error.__cause__ or error}") from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{what} cannot be used: {type(error).__name__}: {reason}") from error


def read_config(name: str | Path) -> Any:
    """The config of a folder or a Hub id; no code that may lie beside it is run."""
    with unusable_if_it_fails(f"the config.json of {name}"):
        try:
            return AutoConfig.from_pretrained(name, trust_remote_code=False)
        except ValueError as error:
            # transformers' advice on how to run that code, or on other versions, follows in further lines.
            raise ValueError(f"the config.json of {name} cannot be used: {str(error).splitlines()[0]}") from error


def load_whole(kind: Any, name: str | Path, **options: Any) -> Any:
    """A model of a class (or of `AutoModel`) with every one of its weights from a folder or a Hub id.

    What a network may have beside its maps, such as a classifier, is left out, and a pooler may be missing. ValueError
    where anything else is missing, of another shape, or has no place in the class; OSError where there are no weights.
    """
    with unusable_if_it_fails(f"the weights of {name}"):
        model, report = kind.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    refuse_incomplete(str(name), model, report)
    return model


def refuse_incomplete(name: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Raises ValueError where transformers' report of a loading names weights that the model needs or cannot place."""
    kind = type(model).__name__
    missing = sorted(key for key in report["missing_keys"] if not is_map_norm(key) and "pooler" not in key)
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} weights of its {kind}, first {missing[0]}.")
    if other := sorted(map(str, report.get("mismatched_keys", ()))):
        raise ValueError(
            f"{name} has {len(other)} weights of another shape than its config.json says, first {other[0]}."
        )
    prefix, parts = f"{model.base_model_prefix}.", {part for part, _ in model.named_children()}
    surplus = sorted(
        key
        for key in report.get("unexpected_keys", ())
        if {key.partition(".")[0], key.removeprefix(prefix).partition(".")[0]} & parts and not key.endswith(_COMPUTED)
    )
    if surplus:
        raise ValueError(
            f"{name} has {len(surplus)} weights that a {kind} of its config.json has no place for, first "
            f"{surplus[0]}: the file is of another network than the config."
        )


def is_map_norm(key: str) -> bool:
    """Whether a weight is one that ConvNeXt and Swin have in their backbone class only, once per map it returns."""
    return key.startswith("hidden_states_norms.")
