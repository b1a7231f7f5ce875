"""How much a region's feature says about where it lies, as a module of Hugging Face `evaluate`.

metric = evaluate.load("./training/evaluation/metrics/position")
metric.compute(predictions=features, references=centres, train_features=train_features, train_centres=train_centres)
"""

import datasets
import evaluate
import torch

from modeling_decodepos.diagnosis import position_r2

DESCRIPTION = "R² of the centres of held-out regions, predicted from their features by ridge regression."
INPUTS = """
Args:
    predictions: (N, D) features of held-out regions.
    references: (N, 2) their centres, x and y in units of the view.
    train_features: (M, D) features of the regions that the regression learns from.
    train_centres: (M, 2) their centres. Keep regions of one image on one side.
Returns:
    position_r2: 1: the feature tells the place exactly; 0 or below: it tells nothing.
"""


class Position(evaluate.Metric):
    """Hands its arguments to `position_r2`."""

    def _info(self) -> evaluate.MetricInfo:
        rows = datasets.List(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references, train_features, train_centres):  # type: ignore[no-untyped-def]
        train, centres = torch.as_tensor(train_features), torch.as_tensor(train_centres)
        return {"position_r2": position_r2(train, centres, torch.as_tensor(predictions), torch.as_tensor(references))}
