"""Run folders: configuration, metrics, checkpoints; and the table of runs."""
