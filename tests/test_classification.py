"""The metrics against scikit-learn, and the calibration error against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from icpctl.tasks.classification import CALIBRATION_BINS, Classification


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 300), classes=st.integers(2, 30), scale=st.floats(0.1, 8), seed=st.integers(0, 2**16))
def test_metrics_equal_scikit_learns(n: int, classes: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(n), targets] += scale
    ours = {name: float(value) for name, value in Classification(classes).metrics(logits, targets).items()}

    predicted, true = logits.argmax(1).numpy(), targets.numpy()
    probabilities = logits.softmax(1).numpy()
    every = list(range(classes))
    assert ours["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(true, predicted), abs=1e-6)
    for name, function in (("f1", "f1_score"), ("precision", "precision_score"), ("recall", "recall_score")):
        expected = getattr(sklearn_metrics, function)(true, predicted, average="macro", zero_division=0)
        assert ours[f"{name}_macro"] == pytest.approx(expected, abs=1e-5)
    # scikit-learn's own log_loss clips the probabilities at 2e-16.
    log_probabilities = scipy.special.log_softmax(logits.numpy(), axis=1)
    assert ours["loss"] == pytest.approx(-log_probabilities[range(n), true].mean(), rel=1e-5, abs=1e-6)
    if classes > 5:
        top5 = sklearn_metrics.top_k_accuracy_score(true, logits.numpy(), k=5, labels=every)
        assert ours["accuracy_top5"] == pytest.approx(top5, abs=1e-6)
    assert ours["ece"] == pytest.approx(calibration_error(probabilities, true), abs=1e-5)


def calibration_error(probabilities: np.ndarray, true: np.ndarray) -> float:
    """Σ (share of the bin) · |accuracy − mean confidence| over equal-width bins of the confidence."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == true
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return float(
        sum((bins == b).mean() * abs(correct[bins == b].mean() - confidence[bins == b].mean()) for b in np.unique(bins))
    )


def test_top5_is_left_out_where_it_means_nothing() -> None:
    task = Classification(4)
    assert "accuracy_top5" not in task.metrics(torch.randn(8, 4), torch.randint(4, (8,)))
