"""Freed memory stays with the process where the C library can be told so, and nothing breaks where it cannot."""

import platform
import subprocess
import sys

import pytest

from hftl import allocator

# Page faults of forty allocations of 64 MB, each written to and freed.
PROGRAM = """
import resource, sys, torch
from hftl.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_freed_tensor_is_used_again_without_asking_the_kernel():
    faults = {
        choice: int(subprocess.run([sys.executable, "-c", PROGRAM, choice], capture_output=True, check=True).stdout)
        for choice in ("default", "keep")
    }
    assert faults["default"] > 3 * faults["keep"]


def test_other_systems_and_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
