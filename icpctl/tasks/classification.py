"""Classification: cross-entropy, and metrics by torchmetrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from icpctl.data.device import DeviceSplit
from icpctl.meter import to_floats
from icpctl.network import Network

CALIBRATION_BINS = 15
"""Equal-width confidence bins of the calibration error, as in Guo et al., arXiv 1706.04599."""


class Classification:
    """Outputs are logits (N, C), targets are class indices (N,)."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def targets(self, x: Tensor, labels: Tensor) -> Tensor:
        """The labels."""
        return labels

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, a scalar, in float32 or better."""
        return F.cross_entropy(outputs, targets)

    def record(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The logits."""
        return outputs.detach()

    def evaluate(self, network: Network, split: DeviceSplit) -> dict[str, float]:
        """The metrics of a split in eval mode."""
        outputs = torch.cat([output for _, output in network.batches(split)])
        return self.metrics(outputs, split.labels)

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
        """Nothing: every metric is cheap."""
        return {}

    def metrics(self, records: Tensor, labels: Tensor) -> dict[str, float]:
        """Loss; accuracy, top-5 accuracy; macro F1, precision and recall; expected calibration error: in [0, 1].

        The macro means are over the classes that occur among targets or predictions, as scikit-learn's are. With
        fewer than five classes, accuracy_top5 is left out.
        """
        outputs, targets, classes = records.float(), labels, self.num_classes
        results = {
            "loss": F.cross_entropy(outputs, targets),
            "accuracy": multiclass_accuracy(outputs, targets, classes, average="micro"),
            "f1_macro": multiclass_f1_score(outputs, targets, classes, average="macro"),
            "precision_macro": multiclass_precision(outputs, targets, classes, average="macro"),
            "recall_macro": multiclass_recall(outputs, targets, classes, average="macro"),
            "ece": multiclass_calibration_error(outputs.softmax(dim=1), targets, classes, CALIBRATION_BINS, norm="l1"),
        }
        if classes >= 5:
            results["accuracy_top5"] = multiclass_accuracy(outputs, targets, classes, top_k=5, average="micro")
        return to_floats(results)
