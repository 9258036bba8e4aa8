"""The metrics against scikit-learn, and the calibration error against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from icpctl.tasks.classification import CALIBRATION_BINS, Classification, calibration_error


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
    expected = by_definition(probabilities.max(1), predicted == true)
    assert ours["ece"] == pytest.approx(expected, abs=1e-5)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 1) | st.integers(0, CALIBRATION_BINS).map(lambda bin: bin / CALIBRATION_BINS), st.booleans()
        ),
        min_size=1,
    )
)
def test_the_calibration_error_has_15_bins_each_with_its_upper_end(pairs: list[tuple[float, bool]]) -> None:
    confidence, correct = (np.array(each) for each in zip(*pairs, strict=True))
    found = calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct))
    assert float(found) == pytest.approx(by_definition(confidence, correct), abs=1e-12)


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    """Where its error and that of a lower confidence even out."""
    confidence = torch.tensor([0.95, 0.95, 1.0, 1.0])
    correct = torch.tensor([True, True, True, False])
    assert float(calibration_error(confidence, correct)) == pytest.approx(0.225)


@pytest.mark.parametrize("logit", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_have_no_metrics(logit: float) -> None:
    logits = torch.randn(8, 10)
    logits[3, 2] = logit
    assert all(np.isnan(value) for value in Classification(10).metrics(logits, torch.arange(8)).values())


def by_definition(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Σ (share of the bin) · |accuracy − mean confidence| over equal-width bins of the confidence."""
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS), 1, CALIBRATION_BINS)
    return float(
        sum((bins == b).mean() * abs(correct[bins == b].mean() - confidence[bins == b].mean()) for b in np.unique(bins))
    )


def test_top5_is_left_out_where_it_means_nothing() -> None:
    task = Classification(4)
    assert "accuracy_top5" not in task.metrics(torch.randn(8, 4), torch.randint(4, (8,)))


def test_the_brier_score_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(40, 4, generator=generator)
    labels = torch.randint(4, (40,), generator=generator)
    expected = ((logits.double().softmax(dim=1) - torch.eye(4).double()[labels]) ** 2).sum(dim=1).mean()
    measured = Classification(4).metrics(logits, labels)["brier"]
    assert measured == pytest.approx(float(expected), rel=1e-6)
    of_two = Classification(2).metrics(logits[:, :2], labels % 2)["brier"]
    probabilities = logits[:, :2].double().softmax(dim=1)[:, 1].numpy()
    assert of_two == pytest.approx(2 * sklearn_metrics.brier_score_loss((labels % 2).numpy(), probabilities), rel=1e-6)
