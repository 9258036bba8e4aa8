"""Self-distillation by iterative constructive perturbations (arXiv 2505.14751)."""
