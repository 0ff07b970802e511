"""Fine-tuning, supervised training and probes."""
