"""Autoregressive diffusion models of integers (arXiv 2110.02037)."""
