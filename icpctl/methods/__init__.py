"""Methods of self-distillation, one file each."""
