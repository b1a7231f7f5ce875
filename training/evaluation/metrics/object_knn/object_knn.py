"""Weighted k-NN accuracy of object features, as a module of Hugging Face `evaluate`.

metric = evaluate.load("./training/evaluation/metrics/object_knn")
metric.compute(predictions=query_features, references=query_labels, gallery=gallery_features, gallery_labels=labels)
"""

import datasets
import evaluate
import torch

from modeling_decodepos.diagnosis import knn_accuracy, knn_predict

DESCRIPTION = "Share of objects whose class is what their nearest neighbours among a gallery of objects vote for."
INPUTS = """
Args:
    predictions: (Q, D) features of the queries.
    references: (Q,) their classes.
    gallery: (G, D) features of the objects that vote.
    gallery_labels: (G,) their classes.
    k: Number of voting neighbours.
    temperature: A vote weighs exp(cosine / temperature).
Returns:
    micro: share of right answers. class_mean: mean of that share over classes.
"""


class ObjectKnn(evaluate.Metric):
    """Hands its arguments to `knn_predict` and `knn_accuracy`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, gallery, gallery_labels, k=20, temperature=0.07):  # type: ignore[no-untyped-def]
        queries, gallery = torch.as_tensor(predictions), torch.as_tensor(gallery)
        voted = knn_predict(gallery, torch.as_tensor(gallery_labels), queries, k=k, temperature=temperature)
        accuracy = knn_accuracy(voted, torch.as_tensor(references))
        return {"micro": accuracy.micro, "class_mean": accuracy.class_mean}
