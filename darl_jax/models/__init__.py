"""Models: arrays in, arrays out. They know nothing of data or configs."""
