"""Features of any backbone, of pictures, their regions and their patches: `embed` writes a file, `Embedder` answers.

from modeling_decodepos.embedding import Embedder, embed, load_features

embed("facebook/dinov2-small", "my_pictures", "features.parquet")
found = load_features("features.parquet", "regions")    # found.feature (N, C), found.box, found.image_id, found.label

dataset.map(Embedder("facebook/dinov2-small"), batched=True, batch_size=32)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedder import Embedder
    from .files import FeatureTable, load_features
    from .run import embed

__all__ = ["Embedder", "FeatureTable", "embed", "load_features"]

_FILES = {"Embedder": "embedder", "FeatureTable": "files", "load_features": "files", "embed": "run"}


def __getattr__(name: str) -> Any:
    """A name's file is imported when the name is first used: torch takes seconds, and `--help` needs none."""
    if name in _FILES:
        return getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
