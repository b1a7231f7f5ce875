"""What region features hold, as pure functions of features: tensors in, numbers out.

Features are rows (N, D), one per region. Nothing here knows a model, a file or a device: whoever has features can
measure them. A collapsed embedding gives the number of chance, or NaN where there is nothing to divide, never a find.
"""

from .context import ContextLeak, context_leak
from .knn import KnnAccuracy, knn_accuracy, knn_neighbours, knn_predict
from .position import position_r2
from .spread import effective_rank, embedding_std

__all__ = [
    "ContextLeak",
    "KnnAccuracy",
    "context_leak",
    "effective_rank",
    "embedding_std",
    "knn_accuracy",
    "knn_neighbours",
    "knn_predict",
    "position_r2",
]
