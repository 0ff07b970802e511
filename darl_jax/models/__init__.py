"""Models: arrays in, arrays out. They know nothing of data, configs or devices."""
