"""Audio as 16-bit integers."""
