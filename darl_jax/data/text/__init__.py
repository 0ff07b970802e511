"""Text as integers."""
