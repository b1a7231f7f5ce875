"""What features hold: pure functions of features, and `diagnose`, which shows controlled pictures to any model.

The functions named here first take features as rows (N, D), one per region, and know no model, file or device.
A collapsed embedding gives the number of chance, or NaN or None where there is nothing to divide, never a find.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .measures.context import ContextLeak, context_leak
    from .measures.debias import load_debias
    from .measures.position import position_r2
    from .models.load import load_model
    from .report.page import save_report
    from .run import diagnose
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

_FILES = {
    "measures.context": "ContextLeak context_leak",
    "measures.debias": "load_debias",
    "measures.position": "position_r2",
    "models.load": "load_model",
    "report.page": "save_report",
    "run": "diagnose",
    "statistics.knn": "KnnAccuracy knn_accuracy knn_neighbours knn_predict",
    "statistics.ridge": "ridge_predict",
    "statistics.spread": "effective_rank embedding_std",
}


def __getattr__(name: str) -> Any:
    """A name's file is imported when the name is first used: torch takes seconds, and `--help` needs none."""
    for file, names in _FILES.items():
        if name in names.split():
            return getattr(importlib.import_module(f".{file}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
