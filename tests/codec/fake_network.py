"""A network for tests: NumPy, fast, and as sensitive to what is known as a trained one."""

import numpy as np


class FakeNetwork:
    """Logits that depend on all that is known, on the step and on the stage."""

    def __init__(self, positions: int, outputs: int, noise: float = 0.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(0, 2.0 / np.sqrt(positions), (positions, positions, 8))
        self.outputs = rng.normal(0, 1.0, (8, outputs))
        self.noise = np.random.default_rng(1)
        self.scale = noise
        self.calls = 0

    def __call__(self, values, known, step, stage):
        self.calls += 1
        seen = np.where(known, np.sin(values + 1.0), 0.1 * values + step[:, None] / 100 + stage)
        hidden = np.tanh(np.einsum("gp,pqh->gqh", seen, self.weights))
        logits = hidden @ self.outputs
        return logits + self.scale * self.noise.uniform(-1, 1, logits.shape)
