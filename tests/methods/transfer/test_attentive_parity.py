"""AIM's attentive probe in float64 against PyTorch: logits, loss, gradients, running statistics."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.methods.transfer.probe_model import Probes, ProbesConfig
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.state import parameters

torch = pytest.importorskip("torch")

BATCH, GRID, HEADS, CLASSES = 6, (3, 3), 4, 5
VIT = ViTConfig(width=16, depth=4, num_heads=HEADS, mlp_dim=24, patch_size=2)
LABELS = np.array([3, 0, 1, 4, 2, 0])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


class AttentiveProbe(torch.nn.Module):
    """Keys and values of every token; queries are a parameter and have no projection."""

    def __init__(self, params: dict[str, Any]):
        super().__init__()
        tensor = lambda *path: torch.tensor(np.array(_at(params, *path)))  # noqa: E731
        width = VIT.width
        self.bn = torch.nn.BatchNorm1d(width, affine=False, eps=1e-6, momentum=0.1)
        self.cls_token = torch.nn.Parameter(tensor("query").reshape(1, 1, width))
        self.k, self.v = (torch.nn.Linear(width, width, bias=False) for _ in range(2))
        self.linear = torch.nn.Linear(width, CLASSES, bias="bias" in params["classifier"])
        self.double()
        with torch.no_grad():
            self.bn.running_mean.copy_(tensor("norm", "running_mean"))
            self.bn.running_var.copy_(tensor("norm", "running_var"))
            self.k.weight.copy_(tensor("key", "kernel").T)
            self.v.weight.copy_(tensor("value", "kernel").T)
            self.linear.weight.copy_(tensor("classifier", "kernel").T)
            if self.linear.bias is not None:
                self.linear.bias.copy_(tensor("classifier", "bias"))

    def forward(self, x: Any) -> Any:
        x = self.bn(x.transpose(1, 2)).transpose(1, 2)
        heads = lambda y: y.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = heads(self.cls_token.expand(len(x), -1, -1)), heads(self.k(x)), heads(self.v(x))
        weights = (q @ k.transpose(-2, -1) * (VIT.width // HEADS) ** -0.5).softmax(-1)
        return self.linear((weights @ v).transpose(1, 2).flatten(1))


def _at(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree[name]
    return tree


@pytest.mark.parametrize("bias", [False, True])
def test_logits_gradients_and_statistics_equal_pytorch_in_float64(bias: bool) -> None:
    config = ProbesConfig(
        kind="attentive", blocks=(3, 4), average_blocks=3, mask="full", classifier_bias=bias
    )
    vit = ViTConfig(**vars(VIT) | {"dtype": "float64"})
    make = lambda: Probes(  # noqa: E731
        vit, config, num_classes=CLASSES, grid=GRID, channels=1, rngs=nnx.Rngs(0)
    )
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.5, leaf.shape), nnx.to_pure_dict(shapes))
    norm = params["probes"]["norm"]
    norm["running_var"] = 0.5 + norm["running_var"] ** 2
    patches = rng.normal(size=(BATCH, 9, 4))

    def logits_and_term(probes: Any, counts: Any) -> Any:
        model = nnx.merge(graphdef, params | {"probes": probes})
        return model(jnp.asarray(patches), mask="full", grid=GRID, counts=counts)

    @jax.jit
    def loss(probes: Any) -> Any:
        logits, term = logits_and_term(probes, jnp.ones(BATCH, bool))
        return -jnp.sum(jax.nn.log_softmax(logits)[:, np.arange(BATCH), LABELS]) / BATCH + term

    value, gradient = jax.value_and_grad(loss)(params["probes"])
    held_out = jax.jit(lambda probes: logits_and_term(probes, None)[0])(params["probes"])
    blocks = jax.jit(
        lambda backbone: (
            nnx.merge(graphdef, params | {"backbone": backbone})
            .backbone(jnp.asarray(patches), mask="full", grid=GRID)
            .blocks
        )
    )(params["backbone"])
    total = 0.0
    for i, first in enumerate((0, 1)):
        probe = AttentiveProbe(jax.tree.map(lambda leaf, i=i: leaf[i], params["probes"]))
        x = torch.tensor(np.mean(blocks[first : first + 3], axis=0)[:, 1:])
        found = probe.eval()(x).detach().numpy()
        np.testing.assert_allclose(held_out[i], found, rtol=0, atol=1e-12)
        one = torch.nn.functional.cross_entropy(probe.train()(x), torch.tensor(LABELS))
        one.backward()
        total += one.item()
        expected = {
            "query": probe.cls_token.grad.flatten(),
            "key": {"kernel": probe.k.weight.grad.T},
            "value": {"kernel": probe.v.weight.grad.T},
            "classifier": {"kernel": probe.linear.weight.grad.T}
            | ({"bias": probe.linear.bias.grad} if bias else {}),
        }
        ours = jax.tree.map(lambda leaf, i=i: leaf[i], gradient)
        of_norm = ours.pop("norm")
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=1e-12),
            ours,
            expected,
        )
        for name, slope in of_norm.items():
            after = getattr(probe.bn, name).numpy()
            np.testing.assert_allclose(norm[name][i] - 0.1 * slope, after, rtol=0, atol=1e-12)
    np.testing.assert_allclose(value, total, rtol=1e-12)


def test_a_probe_has_two_squares_of_the_width_a_query_and_the_classes() -> None:
    config = ProbesConfig(kind="attentive", blocks=(4,), classifier_bias=False)
    make = lambda: Probes(  # noqa: E731
        VIT, config, num_classes=CLASSES, grid=GRID, channels=1, rngs=nnx.Rngs(0)
    )
    probe = parameters(jax.jit(make)())["probes"]
    del probe["norm"]
    assert sum(leaf.size for leaf in jax.tree.leaves(probe)) == 2 * 16**2 + 16 + CLASSES * 16
