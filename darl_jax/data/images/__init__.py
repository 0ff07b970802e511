"""Images: from a record to an example."""
