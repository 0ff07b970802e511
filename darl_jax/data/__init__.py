"""Images from a dataset, a folder or scikit-learn to batches of uint8 pixels on the host."""
