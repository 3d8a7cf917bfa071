import mmap
import threading
import time

import numpy as np
import pytest
import torch

from hftl.cost import memory
from hftl.cost.memory import PeakMemory

MIB = 2**20
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="measures the resident set, which is used without CUDA")


def _has_high_water_mark():
    return memory._reset_high_water_mark()


@pytest.fixture(params=["resident_set", "resident_set_sampled"])
def kind(request, monkeypatch):
    if request.param == "resident_set_sampled":
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    elif not _has_high_water_mark():
        pytest.skip("the kernel does not let this process reset its high-water mark")
    return request.param


def _hold(num_mib, seconds=0.0):
    block = mmap.mmap(-1, num_mib * MIB)  # from the kernel and back, whatever the allocator keeps by now
    np.frombuffer(block, dtype=np.uint8)[:: mmap.PAGESIZE] = 1
    time.sleep(seconds)
    return block


@on_cpu
def test_memory_that_was_given_back_inside_the_block_counts(kind):
    with PeakMemory() as nothing:
        time.sleep(0.12)
    with PeakMemory() as peak:
        _hold(200, seconds=0.12)
    extra = peak.describe()["peak_memory_bytes"] - nothing.describe()["peak_memory_bytes"]
    assert 195 * MIB < extra < 215 * MIB
    assert peak.describe()["peak_memory_kind"] == kind


@on_cpu
def test_memory_given_back_before_the_block_does_not_count(kind):
    with PeakMemory() as before:
        _hold(200, seconds=0.12)
    with PeakMemory() as after:
        time.sleep(0.12)
    assert before.describe()["peak_memory_bytes"] - after.describe()["peak_memory_bytes"] > 190 * MIB


@on_cpu
def test_memory_used_after_the_block_does_not_count(kind):
    with PeakMemory() as peak:
        pass
    inside = peak.describe()
    block = _hold(100)
    assert peak.describe() == inside
    del block


@on_cpu
def test_a_peak_shorter_than_a_sample_is_seen_where_the_kernel_keeps_a_mark():
    if not _has_high_water_mark():
        pytest.skip("the kernel does not let this process reset its high-water mark")
    with PeakMemory() as nothing:
        pass
    with PeakMemory() as peak:
        _hold(200)
    assert peak.describe()["peak_memory_bytes"] - nothing.describe()["peak_memory_bytes"] > 190 * MIB


@on_cpu
def test_the_figure_can_be_read_inside_the_block(kind):
    with PeakMemory() as peak:
        assert peak.describe()["peak_memory_bytes"] > 10 * MIB


@on_cpu
def test_no_sampling_thread_stays_behind(kind):
    with PeakMemory():
        pass
    assert [thread.name for thread in threading.enumerate() if thread.name == "hftl-peak-memory"] == []


@on_cpu
@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError])
def test_where_the_mark_cannot_be_reset_a_thread_samples(monkeypatch, error, tmp_path):
    class Refused:
        def write_text(self, _):
            raise error

    monkeypatch.setattr(memory, "_CLEAR_REFS", Refused())
    with PeakMemory() as peak:
        pass
    assert peak.describe()["peak_memory_kind"] == "resident_set_sampled"
    assert peak.describe()["peak_memory_bytes"] > 10 * MIB


@on_cpu
def test_a_kernel_without_the_line_is_sampled(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 5 kB\n")
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "clear_refs")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    with PeakMemory() as peak:
        pass
    assert peak.describe()["peak_memory_kind"] == "resident_set_sampled"


@pytest.mark.gpu
def test_on_cuda_the_allocator_is_asked():
    with PeakMemory() as peak:
        block = torch.ones(64 * MIB, dtype=torch.uint8, device="cuda")
        del block
    assert peak.describe()["peak_memory_kind"] == "cuda_allocated"
    assert 64 * MIB <= peak.describe()["peak_memory_bytes"] < 10_000 * MIB
