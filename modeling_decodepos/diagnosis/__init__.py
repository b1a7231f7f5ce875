"""What features hold: pure functions of features, and `diagnose`, which shows controlled pictures to any model.

The functions named here first take features as rows (N, D), one per region, and know no model, file or device.
A collapsed embedding gives the number of chance, or NaN or None where there is nothing to divide, never a find.
"""

import importlib
from typing import Any

from .measures.context import ContextLeak, context_leak
from .measures.position import position_r2
from .statistics.knn import KnnAccuracy, knn_accuracy, knn_neighbours, knn_predict
from .statistics.ridge import ridge_predict
from .statistics.spread import effective_rank, embedding_std

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
    "save_report",
]


_LATER = {
    "diagnose": "run",
    "load_debias": "measures.debias",
    "load_model": "models.load",
    "save_report": "report.page",
}


def __getattr__(name: str) -> Any:
    """What loads models is imported at its first use: measuring features needs none of it."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
