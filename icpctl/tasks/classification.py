"""Classification: cross-entropy, and metrics by torchmetrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from icpctl.data.device import DeviceSplit
from icpctl.models.network import Network, to_floats

CALIBRATION_BINS = 15
"""Equal-width confidence bins of the calibration error, as in Guo et al., arXiv 1706.04599."""


class Classification:
    """Outputs are logits (N, C), targets are class indices (N,) or probabilities (N, C).

    Args:
        num_classes: C.
        label_smoothing: ε of the loss; the metrics are of the labels as they are.
        robustness: the seed of the disturbances for which the accuracy is measured after the last epoch; None: of none.
    """

    def __init__(self, num_classes: int, label_smoothing: float = 0.0, robustness: int | None = None) -> None:
        self.num_classes, self.label_smoothing, self.robustness = num_classes, label_smoothing, robustness

    def targets(self, x: Tensor, labels: Tensor) -> Tensor:
        """The labels."""
        return labels

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, a scalar, in float32 or better."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def plain_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The same of the labels as they are: the negative log-likelihood."""
        return F.cross_entropy(outputs, targets)

    def record(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The logits."""
        return outputs.detach()

    def evaluate(self, network: Network, split: DeviceSplit) -> dict[str, float]:
        """The metrics of a split in eval mode."""
        outputs = torch.cat([output for _, output in network.batches(split)])
        return self.metrics(outputs, split.labels)

    def of_each(self, network: Network, split: DeviceSplit) -> dict[str, Tensor]:
        """The label and the predicted class; accuracy, 0 or 1; and loss."""
        outputs = torch.cat([output for _, output in network.batches(split)]).float()
        predicted = outputs.argmax(dim=1)
        return {
            "label": split.labels,
            "predicted": predicted,
            "accuracy": (predicted == split.labels).long(),
            "loss": F.cross_entropy(outputs, split.labels, reduction="none"),
        }

    def check(self) -> None:
        """Nothing can be wrong."""

    def evaluate_last(
        self,
        network: Network,
        split: DeviceSplit,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        pause: Callable[[], None],
    ) -> dict[str, float]:
        """The accuracy on disturbed images, where it is asked for."""
        if self.robustness is None:
            return {}
        from icpctl.tasks.robustness import robustness

        say("Measuring the accuracy on disturbed images.")
        return robustness(network, split, self.robustness, pause)

    def metrics(self, records: Tensor, labels: Tensor) -> dict[str, float]:
        """Loss, which is the negative log-likelihood; accuracy, top-5 accuracy; macro F1, precision and recall; expected
        calibration error: in [0, 1]; and the Brier score of all classes, in [0, 2] (Brier, Monthly Weather Review 78, 1950).

        The macro means are over the classes that occur among targets or predictions, as scikit-learn's are. With
        fewer than five classes, accuracy_top5 is left out. Where the logits of an image make no probabilities, all are NaN:
        a network that has diverged predicts nothing.
        """
        outputs, targets, classes = records.float(), labels, self.num_classes
        probabilities = outputs.softmax(dim=1)
        results = {
            "loss": F.cross_entropy(outputs, targets),
            "accuracy": multiclass_accuracy(outputs, targets, classes, average="micro"),
            "f1_macro": multiclass_f1_score(outputs, targets, classes, average="macro"),
            "precision_macro": multiclass_precision(outputs, targets, classes, average="macro"),
            "recall_macro": multiclass_recall(outputs, targets, classes, average="macro"),
            "brier": (probabilities.double() - F.one_hot(targets, classes)).square().sum(dim=1).mean(),
            "ece": calibration_error(probabilities.amax(dim=1), outputs.argmax(dim=1) == targets),
        }
        if classes >= 5:
            results["accuracy_top5"] = multiclass_accuracy(outputs, targets, classes, top_k=5, average="micro")
        diverged = probabilities.isnan().any()
        return to_floats({name: value.masked_fill(diverged, torch.nan) for name, value in results.items()})


def calibration_error(confidence: Tensor, correct: Tensor) -> Tensor:
    """The expected calibration error of Guo et al., equation 3, a scalar in float64.

    A confidence c of M bins is in bin ⌈M·c⌉, so that one of exactly 1 is in the last. torchmetrics gives it a bin of its own.

    Args:
        confidence: (N,), the probabilities of the predicted classes.
        correct: (N,), whether they are the right ones.
    """
    confidence = confidence.double()
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    gaps = correct.double() - confidence
    # By a matrix product, whose sums have the same order on every call.
    return (gaps @ F.one_hot(bins, CALIBRATION_BINS).double()).abs().sum() / len(correct)
