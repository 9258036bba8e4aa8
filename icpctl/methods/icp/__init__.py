"""Iterative constructive perturbation, and the distillation from it."""
