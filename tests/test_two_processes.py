"""Two processes and one see the same global batches, as arrays over all devices."""

import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from darl_jax.data.pipeline import DataConfig, open_sources, train_batches
from darl_jax.sharding import MeshConfig, global_array, make_mesh, replicated

STEPS = 3


def fingerprints() -> list[list[int]]:
    """For each global batch the records in their order and a weighted sum of all pixels."""
    config = DataConfig(
        source="digits", image_size=8, channels=1, mean=(0.3,), std=(0.4,), in_memory=True
    )
    mesh = make_mesh(MeshConfig())
    batches = train_batches(
        open_sources(config).train,
        config,
        batch_size=16,
        seed=7,
        start_step=80,  # The third of them runs over the end of the first epoch of 1297 images.
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    def fingerprint(image, index):
        pixels = image.reshape(-1).astype(jnp.int32)
        return jnp.append(index.astype(jnp.int32), jnp.sum(pixels * jnp.arange(pixels.size)))

    with batches:
        arrays = [global_array(dict(next(batches)), mesh) for _ in range(STEPS)]
    read = jax.jit(fingerprint, out_shardings=replicated(mesh))
    return [np.asarray(read(a["image"], a["index"])).tolist() for a in arrays]


def test_two_processes_make_the_global_batches_of_one():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, address, str(i)], stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # Gloo greets on the same stream.
    last_lines = [output.splitlines()[-1] for output in outputs]
    assert last_lines == [str(fingerprints())] * 2


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
    print(fingerprints())
