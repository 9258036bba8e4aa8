"""PS-KD against its definition, and the predictions that it stores."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_methods import (
    CLASSES,
    EPOCHS,
    SIZE,
    assert_as_defined,
    batch,
    cross_entropy,
    evaluated,
    images,
    logged,
    method,
    network,
    softmax,
    steps,
    trainer,
)
from torch import Tensor

from icpctl.methods.base import Batch
from icpctl.methods.ps_kd import PSKD


def stored(seed: int, count: int = 9) -> Tensor:
    """Predictions of more images than a batch has; multiples of 1/256, which float32 mixes without rounding."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(CLASSES, (count, 256), generator=generator)
    return torch.nn.functional.one_hot(drawn, CLASSES).sum(1).float() / 256


def at_work(seed: int = 0, **settings: Any) -> PSKD:
    found = method("ps-kd", network(seed), images(seed, 9)[1], **settings)
    assert isinstance(found, PSKD)
    return found


@pytest.mark.parametrize("epoch", range(EPOCHS))
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_step_equals_its_definition(alpha: float, epoch: int) -> None:
    """α_e grows linearly, to α in the last epoch."""
    table = stored(epoch)
    index = [8, 0, 3, 1, 7, 5]

    def naive(other: Any, given: Batch) -> Tensor:
        share = alpha * (epoch + 1) / EPOCHS
        targets = [
            [(1 - share) * (k == int(y)) + share * float(table[i, k]) for k in range(CLASSES)]
            for i, y in zip(index, given.y, strict=True)
        ]
        return cross_entropy(other.model(given.x), targets)

    found = at_work(ps_kd_alpha=alpha)
    found.predictions.copy_(table)
    given = replace(batch(epoch=epoch), index=torch.tensor(index), companion=None)
    log = assert_as_defined(found, given, naive)
    assert torch.equal(found.predictions, table)  # until the step ends
    assert log["task_loss"] == pytest.approx(cross_entropy(log["output"], given.y).item())


def test_the_published_share() -> None:
    found, given = at_work(), batch(epoch=2)
    found.predictions.copy_(stored(0))
    table = found.predictions
    loss, log = found.objective(given)
    targets = [
        [0.4 * (k == int(y)) + 0.6 * float(q[k]) for k in range(CLASSES)] for y, q in zip(given.y, table, strict=False)
    ]
    assert loss.item() == pytest.approx(cross_entropy(log["output"], targets).item(), rel=1e-6)


def test_it_starts_with_the_labels() -> None:
    labels = images(0, 9)[1]
    found = at_work()
    assert found.predictions.dtype == torch.float32
    assert found.predictions.tolist() == [[float(k == y) for k in range(CLASSES)] for y in labels.tolist()]
    # Whatever the weight, an image that was never trained on has its label as its target.
    given = batch(epoch=EPOCHS - 1)
    given = replace(given, y=labels[: len(given.y)])
    loss, _ = found.objective(given)
    other = network()
    assert loss.item() == pytest.approx(cross_entropy(other(given.x), given.y).item(), rel=1e-9)


def test_a_step_stores_its_predictions_and_no_others() -> None:
    found = at_work()
    before = found.predictions.clone()
    index = torch.tensor([4, 8, 1, 0, 6, 2])
    given = replace(batch(), index=index)
    _, log = found.objective(given)
    found.after(given, log)
    assert "probabilities" not in log  # which is no scalar
    expected = torch.tensor(softmax(log["output"]))
    torch.testing.assert_close(found.predictions[index].double(), expected.double(), rtol=1e-6, atol=1e-7)
    for left_out in (3, 5, 7):
        assert torch.equal(found.predictions[left_out], before[left_out])
    assert not found.predictions.requires_grad


def test_over_a_run_the_table_has_the_last_prediction_of_training() -> None:
    """Of train mode, of the weights before the step, of the augmented image; images that an epoch leaves out keep theirs."""
    run = trainer("ps-kd", count=11, classes=3)
    found = run.method
    assert isinstance(found, PSKD)
    expected = torch.nn.functional.one_hot(run.train_set.labels, 3).double()
    left_out = set()
    for epoch in range(EPOCHS):
        seen = set()
        share = 0.8 * (epoch + 1) / EPOCHS
        for step, given in enumerate(run.epoch_batches(epoch)):
            model = copy.deepcopy(run.model)
            x = run.network.normalise(given.pixels)
            targets = (1 - share) * torch.eye(3)[given.labels].double() + share * expected[given.index]
            loss, log = logged(run.step(epoch, step, given))
            logits = model.train()(x).detach()
            assert loss.item() == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-4)
            predicted = torch.tensor(softmax(logits)).double()
            assert float((evaluated(model, x).softmax(1) - predicted).abs().max()) > 1e-3
            expected[given.index] = predicted
            seen |= set(given.index.tolist())
            assert "probabilities" not in log
        left_out |= set(range(11)) - seen
        torch.testing.assert_close(found.predictions.double(), expected, rtol=1e-4, atol=1e-5)
    assert len(left_out) >= 3


def test_it_goes_on_with_the_table_of_a_checkpoint() -> None:
    run, other = trainer("ps-kd"), trainer("ps-kd")
    steps(run, [0])
    saved = copy.deepcopy(run.state())
    assert saved["icp_state"]["predictions"].shape == (24, 3)
    other.restore(saved)
    for one, another in zip(steps(run, [1]), steps(other, [1]), strict=True):
        assert torch.equal(one[3], another[3])


def test_a_table_of_other_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5\) in the place of \(9, 5\)"):
        at_work().restore({"predictions": torch.zeros(3, 5)}, torch.Size((SIZE, 3, 6, 6)))
