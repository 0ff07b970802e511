"""Figures from runs and from the code itself: a program for each."""
