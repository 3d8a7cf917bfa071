"""How much electricity did a stretch of work take: measured where the machine lets us, else estimated from power?

Measured is what the counters say of the whole processor packages, memory and GPUs, other programs and idling included.
Cooling, disks and power supplies are in neither figure. (CodeCarbon covers more machines; it is not needed here.)
It must not know what is run.
"""

import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

logger = logging.getLogger(__name__)

JOULES_PER_KWH = 3.6e6
# Beside a GPU most threads wait: the one that launches kernels and one that loads data are busy. Assumption.
CORES_BESIDE_GPU = 2
RAPL_ROOT = Path("/sys/class/powercap")
# A package's counter wraps at 262 kJ (max_energy_range_uj), after 15 minutes at 290 W; it must be read more often.
RAPL_SECONDS = 30.0
GPU_SECONDS = 1.0  # NVML's power is an average over up to a second


class Power(Protocol):
    """Watts while busy; `hftl.cost.prices.Prices` has them."""

    cpu_core_watts: float
    gpu_watts: Mapping[str, float]


class Energy(NamedTuple):
    """`kwh` is None when nothing is known of the device; `kind` is `measured` or `estimated`."""

    kwh: float | None
    kind: str


def find_by_device(table: Mapping[str, float], device: str) -> float | None:
    """The entry whose key is a whole word (or words) of the device's name, in any case; of several the longest.

    Whole words, because an L40S is no L4 and an A100 no A10.
    """
    keys = [key for key in table if re.search(rf"(?<![a-z0-9]){re.escape(key)}(?![a-z0-9])", device, re.IGNORECASE)]
    return table[max(keys, key=len)] if keys else None


@functools.lru_cache
def warn_once(device: str, what: str) -> None:
    """Say that `what` (a key of the prices) does not cover a device: once, not for each of a hundred cells."""
    logger.warning("The prices have no %s for %r, so it is left out. Add it under %s.", what, device, what)


def estimate_energy(seconds: float, device: str, num_threads: int, power: Power, *, num_devices: float = 1) -> Energy:
    """Seconds at the power of busy cores, and of GPUs where `device` is not `cpu`.

    Args:
        seconds: wall seconds of the work.
        device: `cpu` or the name of the GPU, as in a run's environment.
        num_threads: busy threads of the processor; beside a GPU two at most count.
        power: watts while busy.
        num_devices: GPUs used; a fraction of one that is shared.
    """
    if device == "cpu":
        return Energy(num_threads * power.cpu_core_watts * seconds / JOULES_PER_KWH, "estimated")
    gpu_watts = find_by_device(power.gpu_watts, device)
    if gpu_watts is None:
        warn_once(device, "gpu_watts")
        return Energy(None, "estimated")
    watts = min(num_threads, CORES_BESIDE_GPU) * power.cpu_core_watts + num_devices * gpu_watts
    return Energy(watts * seconds / JOULES_PER_KWH, "estimated")


class EnergyMeter:
    """Context manager; ask for `read()` after (or during) the block.

    The counters do not know whose work it is. So have the machine to yourself, and put one meter around cells that run
    side by side: one around each would count everything once for each of them.

    Args:
        device: `cpu` or the name of the GPU.
        num_threads: for the estimate.
        power: watts while busy, for the estimate.
        num_devices: GPUs used, for the estimate; measured are the first `num_devices` that are visible.
        rapl_root: where Linux shows the energy counters of Intel and AMD processors (root alone may read them on
            most machines).
        read_gpu_watts: device number -> watts now; default: NVML through torch, which needs the package nvidia-ml-py.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        device: str,
        num_threads: int,
        power: Power,
        *,
        num_devices: int = 1,
        rapl_root: Path = RAPL_ROOT,
        read_gpu_watts: Callable[[int], float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._work = {"device": device, "num_threads": num_threads, "power": power, "num_devices": num_devices}
        self._counters = _Counters(rapl_root)
        reader = read_gpu_watts or _read_nvml_watts
        self._gpus = None if device == "cpu" else _PowerIntegral(reader, num_devices, clock)
        self._clock = clock
        self._final: Energy | None = None

    def __enter__(self) -> "EnergyMeter":
        self._final = None
        self._started = self._clock()
        self._counters.start()
        self._threads = [_Repeat(self._counters.update, RAPL_SECONDS)]
        if self._gpus is not None:
            self._gpus.start()
            self._threads.append(_Repeat(self._gpus.update, GPU_SECONDS))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for thread in self._threads:
            thread.stop()
        self._final = self.read()

    def read(self) -> Energy:
        """Kilowatt-hours since the start of the block; `measured` only if every part of it was."""
        if self._final is not None:
            return self._final
        parts = [self._counters.update()] + ([] if self._gpus is None else [self._gpus.update()])
        if None in parts:
            return estimate_energy(self._clock() - self._started, **self._work)
        return Energy(sum(parts) / JOULES_PER_KWH, "measured")


class _Counters:
    """Joules of all processor packages and of memory, from RAPL's counters.

    Of the zones, `core` and `uncore` are parts of their package, `psys` is the whole board with the packages in it,
    and intel-rapl-mmio shows the packages a second time: counted are `package-N` and `dram`.
    """

    def __init__(self, root: Path) -> None:
        self._zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _is_counted(zone)]
        self._lock = threading.Lock()

    def start(self) -> None:
        self._joules: float | None = 0.0
        self._last = self._read()

    def update(self) -> float | None:
        """Joules since `start`; None when a counter cannot be read. Must be called before a counter wraps twice."""
        with self._lock:
            now = self._read()
            if not self._zones or None in (*now, *self._last):
                self._joules = None
            if self._joules is not None:
                pairs = zip(self._zones, self._last, now, strict=True)
                steps = [_advance(zone, before, after) for zone, before, after in pairs]
                self._joules = None if None in steps else self._joules + sum(steps) / 1e6
            self._last = now
            return self._joules

    def _read(self) -> list[int | None]:
        return [_read_number(zone / "energy_uj") for zone in self._zones]


def _is_counted(zone: Path) -> bool:
    try:
        name = (zone / "name").read_text().strip()
    except OSError:
        return False
    return name.startswith("package") or name == "dram"


def _advance(zone: Path, before: int, after: int) -> int | None:
    """Microjoules from one reading to the next, over the counter's end if it is smaller; None if that is not known."""
    if after >= before:
        return after - before
    end = _read_number(zone / "max_energy_range_uj")
    return None if end is None or end < before else after - before + end


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not permitted, not there, or a driver's empty answer
        return None


class _PowerIntegral:
    """Joules of GPUs: their power, summed over time by the trapezoidal rule."""

    def __init__(self, read_watts: Callable[[int], float], num_devices: int, clock: Callable[[], float]) -> None:
        self._read_watts, self._num_devices, self._clock = read_watts, num_devices, clock
        self._lock = threading.Lock()

    def start(self) -> None:
        self._joules: float | None = 0.0
        self._last = self._clock(), self._read()

    def update(self) -> float | None:
        """Joules since `start`; None when the power cannot be read."""
        with self._lock:
            (time_before, watts_before), (time_now, watts_now) = self._last, (self._clock(), self._read())
            if watts_before is None or watts_now is None:
                self._joules = None
            if self._joules is not None:
                self._joules += (watts_before + watts_now) / 2 * (time_now - time_before)
            self._last = time_now, watts_now
            return self._joules

    def _read(self) -> float | None:
        try:
            return sum(self._read_watts(index) for index in range(self._num_devices))
        except Exception as error:  # besides a missing package or driver: NVML's own errors share no base but this
            logger.debug("GPU power cannot be read: %s", error)
            return None


def _read_nvml_watts(index: int) -> float:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    return torch.cuda.power_draw(index) / 1000  # milliwatts


class _Repeat(threading.Thread):
    """Calls a function every so many seconds until it is stopped."""

    def __init__(self, function: Callable[[], object], seconds: float) -> None:
        super().__init__(name="hftl-energy", daemon=True)
        self._function, self._seconds, self._stopped = function, seconds, threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._function()

    def stop(self) -> None:
        self._stopped.set()
        self.join()
