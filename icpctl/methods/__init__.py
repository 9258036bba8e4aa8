"""Methods of self-distillation, one file each; `icpctl.config.catalogue` has a row for each of them."""
