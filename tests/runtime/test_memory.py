"""Memory that a step frees is not cleared by the kernel for the next one."""

import platform

import pytest

from tests.programs import finish, start

PROGRAM = """
import resource, sys
from darl_jax.runtime.memory import keep_freed_pages

if sys.argv[1] == "kept":
    keep_freed_pages()
for step in range(20):
    buffers = [bytearray(2**24) for _ in range(4)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems keep their allocator")
def test_pages_of_freed_buffers_are_used_again():
    faults = {mode: int(finish(start("-c", PROGRAM, mode))[0]) for mode in ("default", "kept")}
    pages = 4 * 2**24 // 4096
    assert faults["default"] > 15 * pages
    assert faults["kept"] < 2.5 * pages
