"""Input: records of a dataset to batches in host memory; nothing here knows a model."""

from darl_jax.data.audio.config import AudioConfig
from darl_jax.data.base import DataConfig
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.text.config import TextConfig

# Kinds of data by the config's key `data.name`.
DATA: dict[str, type[DataConfig]] = {
    "images": ImagesConfig,
    "text": TextConfig,
    "audio": AudioConfig,
}
