"""Datasets: where records come from."""
