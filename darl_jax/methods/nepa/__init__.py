"""NEPA: next-embedding prediction (arXiv 2512.16922)."""
