"""What the noise of the seeds allows to say; it imports nothing else of icpctl.

`paired` has the tests of a whole table at once, for a number of seeds that was fixed beforehand; `sequential` those that may
be looked at after every seed.
"""

from __future__ import annotations

ALPHA = 0.05
"""Claims of a difference that pure noise may make, among all comparisons of a metric together; intervals have 1 − ALPHA."""
POWER = 0.8
"""Chance of finding a difference with the number of seeds that is said to be needed."""
LEAST_SEEDS = 3
"""For a claim, and for an interval: of two seeds the spread, on which all rests, is itself a single difference."""
MOST_SEEDS = 10_000
