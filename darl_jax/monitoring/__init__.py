"""Metrics, logs, goodput and profiles of a run."""
