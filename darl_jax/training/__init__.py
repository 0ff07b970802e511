"""State, step, optimizers, sharding, initialization and checkpoints."""
