"""Whether a run may go on from what lies in its folder: one recipe, one set of images, changes only by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_scripts.files import read_json
from training.data.sources import ImageSource
from training.data.streaming import ImageStream
from training.recipe import Recipe, build_recipe

# Keys that may differ between a run and its continuation: they change neither weights nor data.
FREE_KEYS = frozenset(
    {"num_workers", "log_steps", "save_steps", "keep_checkpoints", "resume", "output_dir", "cpu", "processes"}
    | {"cache_dir", "allow_change", "tracker", "space_id", "max_broken_share", "measure_steps", "watchdog_share"}
    | {"collapse_warn", "collapse_stop", "collapse_patience", "collapse_grace_steps"}
)


def refuse_other_recipe(place: Path, before: dict[str, Any], recipe: Recipe) -> None:
    """A run folder, and a checkpoint, belong to one recipe, but for the changes that were allowed by name."""
    free = FREE_KEYS | recipe.allowed_changes
    if recipe.data.streaming:  # the images are dealt out to the workers
        free -= {"num_workers"} - recipe.allowed_changes
    defaults, after = build_recipe({}).values(), recipe.values()
    changed = [k for k in after if k not in free and before.get(k, defaults[k]) != after[k]]
    if changed:
        lines = "\n".join(f"  {k}: {before.get(k, defaults[k])!r} there, {after[k]!r} now" for k in changed)
        raise ValueError(
            f"{place} belongs to a run of another recipe:\n{lines}\n"
            "Give this run its own --output_dir, delete the folder, or go on with the change: --allow_change "
            f"{','.join(changed)}"
        )


def refuse_other_data(checkpoint: Path, before: str | None, source: ImageSource | ImageStream, recipe: Recipe) -> None:
    """A path may hold other images than it did; `before` is what told them apart then, None if it was not noted."""
    if before not in (None, source.fingerprint) and "data" not in recipe.allowed_changes:
        raise ValueError(
            f"{source.name} is not what {checkpoint} was trained on:\n  data: {before} there, {source.fingerprint} now"
            "\nGive this run its own --output_dir, put the images back as they were, or go on with these: "
            "--allow_change data"
        )


def read_recipe(known: Path) -> dict[str, Any]:
    """The recipe of a run folder, from its run.json."""
    try:
        recipe = read_json(known)["recipe"]
        if not isinstance(recipe, dict):
            raise TypeError(f"its recipe is a {type(recipe).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{known} is damaged ({error!r}). Delete that file; the checkpoints know their recipe, and the same "
            "command goes on from them."
        ) from error
    return recipe
