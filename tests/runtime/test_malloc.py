"""Freed memory stays with the process where the C library can be told so, and nothing breaks where it cannot."""

import platform
import subprocess
import sys

import pytest

from hftl.runtime import malloc as allocator

# Page faults of forty allocations of 64 MB, each written to and freed.
PROGRAM = """
import resource, sys, torch
from hftl.runtime.malloc import keep_freed_memory
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_what_was_kept_can_be_given_back():
    program = """
import torch
from hftl.runtime.malloc import give_back_freed_memory, keep_freed_memory
from hftl.cost.memory import PeakMemory
keep_freed_memory()
blocks = [torch.ones(2**22) for _ in range(16)]  # 256 MB
last = torch.ones(2**10)  # above them, so that they cannot just be cut off
del blocks
with PeakMemory() as kept:
    pass
give_back_freed_memory()
with PeakMemory() as given_back:
    pass
print(kept.describe()["peak_memory_bytes"] - given_back.describe()["peak_memory_bytes"])
"""
    freed = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert freed > 200 * 2**20


def test_other_systems_and_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
    allocator.give_back_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
    allocator.give_back_freed_memory()
