"""The trap of low precision on real CIFAR-100: the published table, as a test. Some minutes; `make real`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from precision import measure

from icpctl import data

WHERE = Path(os.environ.get("ICPCTL_DATA_DIR", "none"))


@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not any((WHERE / name).exists() for name in ("cifar100", "cifar-100-python", "cifar-100-python.tar.gz")),
    reason="ICPCTL_DATA_DIR does not point to a folder with CIFAR-100",
)
def test_the_feature_shift_is_exact_at_the_default_precision_and_drowns_in_bfloat16() -> None:
    rows = {(row.optimizer, row.lr): row for row in measure(torch.device("cpu"), data.load("cifar100"))}
    for optimizer in ("adam", "ademamix"):
        default = rows[optimizer, 2e-3]
        assert max(default.errors["float32"]) < 0.01
        assert max(default.errors["bf16"]) > 0.05
        assert default.loss_after < 0.99 * default.loss_before
        assert 0.005 < min(default.shifts) < max(default.shifts) < 0.2
    # AdEMAMix with a fresh state is Adam for all that matters, and SGD on the batch mean is a no-op.
    assert rows["ademamix", 2e-3].loss_after == pytest.approx(rows["adam", 2e-3].loss_after, abs=2e-3)
    nothing = rows["sgd", 2e-3]
    assert nothing.loss_after == pytest.approx(nothing.loss_before, rel=1e-3)
    assert min(nothing.errors["bf16"]) > 1
