"""What features hold: pure functions of features, and `diagnose`, which asks any model about controlled pictures.

The functions named here first take features as rows (N, D), one per region, and know no model, file or device.
A collapsed embedding gives the number of chance, or NaN or None where there is nothing to divide, never a find.
"""

from typing import Any

from .context import ContextLeak, context_leak
from .knn import KnnAccuracy, knn_accuracy, knn_neighbours, knn_predict
from .position import position_r2
from .ridge import ridge_predict
from .spread import effective_rank, embedding_std

__all__ = [
    "ContextLeak",
    "KnnAccuracy",
    "context_leak",
    "diagnose",
    "effective_rank",
    "embedding_std",
    "knn_accuracy",
    "knn_neighbours",
    "knn_predict",
    "load_debias",
    "load_model",
    "position_r2",
    "ridge_predict",
]


def __getattr__(name: str) -> Any:
    """What loads models comes when it is asked for: who measures features needs none of it."""
    if name == "diagnose":
        from .diagnose import diagnose

        globals()[name] = diagnose  # the function, where importing its module has put the module
        return diagnose
    if name == "load_debias":
        from .debias import load_debias

        return load_debias
    if name == "load_model":
        from .models import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
