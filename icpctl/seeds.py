"""Seeds that derive from several numbers, so that nothing has to be saved for a run to draw the same again."""

from __future__ import annotations

import numpy as np


def derived_seed(*numbers: int) -> int:
    """A 64-bit seed from several numbers, such as (seed, epoch, batch). Zeros at the end do not count."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
