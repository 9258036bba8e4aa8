"""The ranges of --tune: read, refused in words, and written so that they are read again."""

from __future__ import annotations

import pytest

from icpctl.ablate.ranges import Range, parse_tune, ranges_of, texts_of
from icpctl.errors import UserError


def test_ranges_are_read_and_written_so_that_they_are_read_again() -> None:
    found = parse_tune(["lr=1e-4..1e-1:log,icp-lr=0.001..1", "batch_size=8..64:log", "alpha=0..5:lin"])
    assert found == {
        "lr": Range(1e-4, 0.1, True, False),
        "icp_lr": Range(0.001, 1.0, False, False),
        "batch_size": Range(8, 64, True, True),
        "alpha": Range(0, 5, False, False),
    }
    assert ranges_of(texts_of(found).items(), "") == found
    assert found["batch_size"].ends == (8, 64)
    assert isinstance(found["batch_size"].ends[0], int)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr", "--tune lr: this is not a setting and its range. Write, for example, --tune lr=1e-4..1e-1:log"),
        ("", "this is not a setting and its range"),
        ("lr=1..2,", "this is not a setting and its range"),
        ("lx=1..2", "Unknown hyper-parameter 'lx'. Did you mean 'lr'?"),
        ("lr=0.1", "--tune lr: 0.1 is not a range to choose from"),
        ("lr=1e-4..1e-1:log5", "1e-4..1e-1:log5 is not a range to choose from"),
        ("lr=..", "is not a range"),
        ("lr=nan..1", "is not a range"),
        ("lr=2..1", "from a smaller to a larger number"),
        ("lr=1..1", "from a smaller to a larger number"),
        ("lr=1..1e999", "from a smaller to a larger number"),
        ("lr=0..1:log", "a log range has to begin above 0"),
        ("lr=-1..1", "--lr got '-1'"),
        ("beta1=0.5..1", "--beta1 got '1'"),
        ("batch-size=8.5..16", "have to be whole numbers"),
        ("batch-size=1..16", "--batch-size got '1'"),
        ("seed=1..5", "seed says what is trained, and tuning chooses how"),
        ("epochs=1..5", "epochs says what is trained"),
        ("val-fraction=0.1..0.5", "val_fraction says what is trained"),
        ("optimizer=0..1", "optimizer is no number, so it has no range"),
        ("extra-task-grad=0..1", "extra_task_grad is no number"),
        ("train-size=10..20", "train_size"),
        ("lr=1..2,lr=2..3", "lr is given twice"),
        ("icp-lr=1..2,icp_lr=2..3", "icp_lr is given twice"),
    ],
)
def test_what_is_no_range_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_tune([text])
    assert said in str(caught.value)
