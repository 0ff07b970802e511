"""Several processes as one run."""

from darl_jax.runtime.cluster.agreement import check_alike, check_shared
from darl_jax.runtime.cluster.membership import (
    agree_on,
    fail_together,
    failing_together,
    gather,
    leave_together,
    member,
)

__all__ = [
    "agree_on",
    "check_alike",
    "check_shared",
    "fail_together",
    "failing_together",
    "gather",
    "leave_together",
    "member",
]
