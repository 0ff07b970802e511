"""Image generation: requests, the generator, and output files."""

from darl_jax.generation.generator import Generator, generating_method

__all__ = ["Generator", "generating_method"]
