"""FLOPs of classifiers and probes, by the convention of nn/flops.py."""

from darl_jax.nn.flops import linear


def probe_flops(*, kind: str, width: int, num_heads: int, patches: int, num_classes: int) -> int:
    """FLOPs of one probe's forward pass on an image.

    Args:
        kind: "linear", or "attentive": for each patch a score and a share of each head's mean, then
            the value of that mean; the query meets the key's matrix once for a batch.
        width: of the features.
        num_heads: of an attentive probe.
        patches: of an image.
        num_classes: of the linear classifier.
    """
    classifier = linear(width, num_classes)
    if kind == "linear":
        return classifier
    return patches * 2 * linear(width, num_heads) + linear(width, width) + classifier
