"""The loop, one step, stacks, processes, evaluation, display."""
