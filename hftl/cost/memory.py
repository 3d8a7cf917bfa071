"""How much memory did a stretch of work need at its peak?

On CUDA: what torch's allocator held on the current device. Elsewhere: the resident set of this process, which
includes the interpreter, the libraries and the data. The two cannot be compared, so the kind is given with the number.
"""

import threading
from pathlib import Path

import psutil
import torch

_SAMPLE_SECONDS = 0.05
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Context manager; ask for `describe()` after (or during) the block. One at a time: they share the counters.

    On Linux the kernel's own high-water mark is reset at the start (proc_pid_clear_refs(5)), which is exact. Where
    that is not permitted, a thread looks every 50 ms and can miss a shorter peak.
    """

    def __enter__(self) -> "PeakMemory":
        self._sampler = None
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._kind = "cuda_allocated"
        elif _reset_high_water_mark():
            self._kind = "resident_set"
        else:
            self._kind = "resident_set_sampled"
            self._sampler = _Sampler()
            self._sampler.start()
        self._final = None
        return self

    def __exit__(self, *exception: object) -> None:
        self._final = self._read_bytes()
        if self._sampler is not None:
            self._sampler.stop()

    def describe(self) -> dict[str, int | str]:
        """`peak_memory_bytes` since the start of the block, and `peak_memory_kind`."""
        peak = self._read_bytes() if self._final is None else self._final
        return {"peak_memory_bytes": peak, "peak_memory_kind": self._kind}

    def _read_bytes(self) -> int:
        if self._kind == "cuda_allocated":
            return torch.cuda.max_memory_allocated()
        if self._sampler is not None:
            return self._sampler.sample()
        return _read_high_water_mark()


class _Sampler(threading.Thread):
    """Keeps the largest resident set that it has seen, in bytes."""

    def __init__(self) -> None:
        super().__init__(name="hftl-peak-memory", daemon=True)
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self._largest = 0

    def sample(self) -> int:
        self._largest = max(self._largest, self._process.memory_info().rss)
        return self._largest

    def run(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            self.sample()

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _reset_high_water_mark() -> bool:
    """Whether the kernel keeps one for this process and let us reset it."""
    try:
        _CLEAR_REFS.write_text("5")
        return _read_high_water_mark() > 0
    except OSError:  # not Linux, or a sandbox
        return False


def _read_high_water_mark() -> int:
    """VmHWM in bytes; 0 where the kernel has no such line."""
    lines = _STATUS.read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
