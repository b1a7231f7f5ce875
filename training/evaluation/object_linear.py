"""`object_linear`: a linear classifier on frozen object features.

Softmax regression on standardised features by SGD with momentum. The learning rate is the best of a few on a tenth of
the training images that is held out for this; then the classifier is trained on all of them. Validation data chooses
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_decodepos.diagnosis.statistics.knn import knn_accuracy
from training.evaluation.evaluation import Evaluation
from training.evaluation.learning import batch_items, learning_rate_share
from training.evaluation.object_features import embed_objects
from training.evaluation.object_knn import class_mean, mean_over_objects, refuse_one_class
from training.evaluation.results import Measured
from training.evaluation.settings import ObjectLinearSettings

_HELD_OUT = 0.1


@dataclass(frozen=True)
class Classifier:
    """Standardise, then weigh."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)

    def predict(self, features: Tensor) -> Tensor:
        """(N,) classes."""
        device = self.weight.device
        parts = [
            ((p.to(device) - self.mean) * self.scale @ self.weight + self.bias).argmax(1) for p in features.split(8192)
        ]
        return torch.cat(parts).cpu()


def run(evaluation: Evaluation, settings: ObjectLinearSettings) -> Mapping[str, Measured]:
    """Accuracies of one seed."""
    train_images, validation_images = evaluation.images("train"), evaluation.images("validation")
    train = embed_objects(evaluation, train_images, "training objects")
    queries = embed_objects(evaluation, validation_images, "validation objects")
    refuse_one_class(train.labels, train_images.name)
    classes = int(max(train.labels.max(), queries.labels.max())) + 1
    device = evaluation.processes.device

    def fit(rows: Tensor, rate: float) -> Classifier:
        return fit_linear(train.features[rows], train.labels[rows], classes, rate, settings, evaluation.seed, device)

    held_out = hold_out(train.owners, evaluation.seed)
    rest, tenth = torch.nonzero(~held_out)[:, 0], torch.nonzero(held_out)[:, 0]
    rates = dict.fromkeys(settings.learning_rates, 0.0)
    if len(rates) > 1 and len(tenth) and len(rest):
        for rate in evaluation.progress(list(rates), "learning rates", len(rates), "rate"):
            predictions = fit(rest, rate).predict(train.features[tenth])
            rates[rate] = knn_accuracy(predictions, train.labels[tenth]).micro
    best = max(rates, key=lambda rate: rates[rate])
    evaluation.note(
        f"seed {evaluation.seed}: learning rate {best:g}, chosen on held-out training images from "
        + ", ".join(f"{rate:g} ({found:.3f})" for rate, found in rates.items())
    )
    predictions = fit(torch.arange(len(train)), best).predict(queries.features)
    right = predictions == queries.labels
    commonest = (queries.labels == train.labels.mode().values).double()
    return {
        "commonest_class": mean_over_objects(commonest, queries),
        "micro": mean_over_objects(right.double(), queries),
        "class_mean": class_mean(right, queries),
        "learning_rate": Measured(best),
    }


def hold_out(owners: Tensor, seed: int) -> Tensor:
    """(N,) whether an object belongs to the tenth of the images that chooses the learning rate."""
    images = int(owners.max()) + 1
    order = np.random.default_rng([seed, 1]).permutation(images)
    chosen = torch.zeros(images, dtype=torch.bool)
    chosen[order[: max(1, round(_HELD_OUT * images))]] = True
    return chosen[owners]


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    learning_rate: float,
    settings: ObjectLinearSettings,
    seed: int,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Softmax regression of (N,) labels on (N, D) features, from zero weights; every process gets the same."""
    mean, std = features.double().mean(0).float(), features.double().std(0, correction=0).float()
    scale = torch.where(std > 1e-6 * mean.abs(), 1 / std, 0.0)
    rows, targets = ((features - mean) * scale).to(device), labels.to(device)
    weight = torch.zeros((features.shape[1], classes), device=device, requires_grad=True)
    bias = torch.zeros(classes, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=learning_rate, momentum=0.9, weight_decay=settings.weight_decay)
    size = min(settings.objects_per_update, len(rows))
    steps = max(1, settings.epochs * len(rows) // size)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * size / 256 * learning_rate_share(step, steps)
        chosen = torch.tensor(batch_items(seed, step, len(rows), size), device=device)
        loss = F.cross_entropy(rows[chosen] @ weight + bias, targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Classifier(mean.to(device), scale.to(device), weight.detach(), bias.detach())
