"""Images from a model: what is asked for, how it is made, and the files that it goes to."""

from darl_jax.generation.generator import Generator, check_can_generate

__all__ = ["Generator", "check_can_generate"]
