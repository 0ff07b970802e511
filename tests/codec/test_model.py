"""Identity of a model: what its hash depends on, and what not."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from darl_jax.codec.model import model_hash, numerics, open_model
from darl_jax.config import load
from darl_jax.training.checkpoint.reading import arrays_by_name
from tests.codec.tiny_models import images


def method_and_params(**objective):
    method = load(images(levels=17, **objective)).method
    shapes = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: method.init(nnx.Rngs(0))))[1])
    return method, jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


def test_the_hash_depends_on_each_parameter_and_on_what_reads_it():
    method, params = method_and_params()
    hashes = {model_hash(method, params)}
    for changed in ({"branching": 4}, {"branching": 4, "parametrization": "direct"}):
        hashes.add(model_hash(method_and_params(**changed)[0], params))
    wider = dataclasses.replace(method.model, num_heads=2)
    hashes.add(model_hash(dataclasses.replace(method, model=wider), params))
    assert len(hashes) == 4
    arrays = arrays_by_name(params)
    decisive = [path for path in arrays if "loss_per_step" not in path]
    assert len(decisive) > 20
    for path in decisive:
        arrays[path].flat[-1] += 2.0**-20
        hashes.add(model_hash(method, params))
        arrays[path].flat[-1] -= 2.0**-20
    assert len(hashes) == 4 + len(decisive)


def test_the_hash_depends_on_nothing_that_leaves_the_tables_alone():
    method, params = method_and_params()
    first = model_hash(method, params)
    settings = dataclasses.replace(method.model, remat=True, dropout=0.5, dtype="bfloat16")
    trained = dataclasses.replace(method.objective, cross_entropy_weight=1.0)
    other = dataclasses.replace(method, model=settings, objective=trained)
    assert model_hash(other, params) == first


def test_parameters_of_another_model_are_refused():
    method, _ = method_and_params()
    _, params = method_and_params(branching=4)
    with numerics(fast=False), pytest.raises(ValueError, match="a run is of another model"):
        open_model(method, params, fast=False, name="a run")
