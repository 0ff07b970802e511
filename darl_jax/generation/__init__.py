"""Images from a model: what is asked for, how it is made, and the files that it goes to."""

from darl_jax.generation.generator import Generator, generating_method

__all__ = ["Generator", "generating_method"]
