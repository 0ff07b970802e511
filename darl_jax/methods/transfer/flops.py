"""FLOPs of classifiers and probes, by the convention of nn/flops.py."""

from darl_jax.nn.flops import linear


def probe_flops(*, kind: str, width: int, num_heads: int, patches: int, num_classes: int) -> int:
    """FLOPs of the forward pass of one probe, "linear" or "attentive", on an image."""
    classifier = linear(width, num_classes)
    if kind == "linear":
        return classifier
    # Each patch has a score and a weight for each head, and each head's mean is projected to a
    # value; the query's product with the key's matrix is computed once for a batch.
    return patches * 2 * linear(width, num_heads) + linear(width, width) + classifier
