"""Networks of autoregressive diffusion models, all behind the contract in base.py."""

from darl_jax.methods.ardm.networks.base import Network, NetworkConfig, Problem
from darl_jax.methods.ardm.networks.diffwave import DiffWaveConfig
from darl_jax.methods.ardm.networks.transformer import TextTransformerConfig
from darl_jax.methods.ardm.networks.unet import UNetConfig

# config.model.name -> config of the group
NETWORKS: dict[str, type[NetworkConfig]] = {
    "ardm_unet": UNetConfig,
    "ardm_transformer": TextTransformerConfig,
    "ardm_diffwave": DiffWaveConfig,
}

__all__ = ["NETWORKS", "Network", "NetworkConfig", "Problem"]
