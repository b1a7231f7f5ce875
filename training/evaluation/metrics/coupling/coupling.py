"""How much of a region's feature comes from its surroundings, as a module of Hugging Face `evaluate`.

metric = evaluate.load("./training/evaluation/metrics/coupling")
metric.compute(predictions=features, references=in_other_surroundings, other_content=of_other_content)
"""

import datasets
import evaluate
import torch

from modeling_decodepos.diagnosis import context_leak

DESCRIPTION = "Share of the surroundings in region features, from exchanging surroundings and content in turn."
INPUTS = """
Args:
    predictions: (N, D) features of regions.
    references: (N, D) of the same content in the same place, in other surroundings.
    other_content: (N, D) of other content in the same place, in the first surroundings.
Returns:
    leak: 0: features follow the content alone; 1/2: content and surroundings weigh alike; 1: the surroundings alone.
    content, context: the mean centred cosines it is made of.
"""


class Coupling(evaluate.Metric):
    """Hands its arguments to `context_leak`."""

    def _info(self) -> evaluate.MetricInfo:
        rows = datasets.List(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references, other_content):  # type: ignore[no-untyped-def]
        leak = context_leak(*(torch.as_tensor(rows) for rows in (predictions, references, other_content)))
        return {"leak": leak.leak, "content": leak.content, "context": leak.context}
