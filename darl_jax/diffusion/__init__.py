"""The diffusion process that corrupts patches (Section 3.3)."""
