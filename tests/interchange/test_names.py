import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.config import to_dict
from darl_jax.interchange.described import describe, shape_of
from darl_jax.interchange.names import expected_shapes, from_torch, to_torch
from darl_jax.nn.patches import patchify
from darl_jax.nn.positions import POSITIONS
from darl_jax.training.state import parameters
from tests.interchange.small_run import assert_same, make_config
from tests.random_modules import random_module


def params_of(**model):
    config = make_config(**model)
    return parameters(random_module(config.method.init)), config


@pytest.mark.parametrize("encoding", POSITIONS)
def test_there_and_back_keeps_every_bit_under_the_expected_names(encoding):
    params, config = params_of(positions=encoding)
    patch_size = config.model.patch_size
    found = {name: value.shape for name, value in to_torch(params, patch_size).items()}
    assert found == expected_shapes(shape_of(describe(params, to_dict(config))["model"]))
    params["head"] = {"kernel": np.ones((16, 5), np.float32), "bias": np.ones(5, np.float32)}
    tensors = to_torch(params, patch_size)
    del params["patch_decoder"]
    assert_same(from_torch(tensors), params)
    assert all(value.flags.c_contiguous for value in tensors.values())


def test_the_patch_embedding_is_a_convolution_with_patches_as_its_stride():
    params, config = params_of()
    size = config.model.patch_size
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    kernel = np.asarray(params["backbone"]["patch_embedding"]["kernel"], np.float64)
    ours = np.asarray(patchify(jnp.asarray(image), size), np.float64) @ kernel
    weight = to_torch(params, size)["patch_embedding.weight"].astype(np.float64)
    windows = image[0].reshape(4, size, 4, size, 3)
    convolved = np.einsum("rpcqk,dkpq->rcd", windows, weight).reshape(16, -1)
    np.testing.assert_allclose(convolved, ours[0], atol=1e-12)


def test_a_head_with_parts_is_pre_trainings_and_left_out():
    params, config = params_of()
    head = {"norm": {"scale": np.ones(3, np.float32)}, "to_pixels": {"kernel": np.ones((3, 2))}}
    names = to_torch(params | {"head": head}, config.model.patch_size)
    assert names.keys() == to_torch(params, config.model.patch_size).keys()
    assert describe(params | {"head": head}, to_dict(config))["model"]["num_classes"] is None


def test_a_group_of_parameters_without_a_place_is_an_error():
    params, config = params_of()
    with pytest.raises(ValueError, match=r"'probe'.* cannot be exported"):
        to_torch(params | {"probe": {"kernel": np.ones(3)}}, config.model.patch_size)
