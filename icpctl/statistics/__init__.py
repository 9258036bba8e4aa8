"""What the noise of the seeds allows to say; numpy and scipy alone, nothing of icpctl's.

`paired` has the tests of a whole table at once, for a number of seeds that was fixed beforehand; `sequential` those that may
be looked at after every seed.
"""
