"""Iterative constructive perturbation, and the self-distillation from it."""
