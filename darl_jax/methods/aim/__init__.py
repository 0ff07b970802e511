"""AIM: autoregressive pre-training with prefix attention (arXiv 2401.08541)."""
