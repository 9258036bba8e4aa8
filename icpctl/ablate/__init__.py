"""Ablations: the runs that a study means, and executing them on one machine or many.

`study` has the definition, `ranges` and `tuning` what of it is tuned, `claim` who trains a run, `worker` the training of one in a process,
`executors` the machines, `scheduler` the loop that hands runs to them, `table` the study's own output.
"""
