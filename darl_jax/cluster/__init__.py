"""Several processes as one run."""

from darl_jax.cluster.membership import (
    agree_on,
    fail_together,
    failing_together,
    gather,
    leave_together,
    member,
)

__all__ = ["agree_on", "fail_together", "failing_together", "gather", "leave_together", "member"]
