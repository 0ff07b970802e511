"""Lossless codec on a trained autoregressive diffusion model."""
