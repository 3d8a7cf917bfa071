"""Where did the wall time go? A stopwatch whose buckets add up to it exactly.

It must not know what it times: the caller names the bucket.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

BUCKETS = ("startup", "train", "evaluation", "save", "other")


class Ledger:
    """Every second since the start belongs to exactly one bucket: the innermost open one, or else `other`.

    Args:
        started: When the process started, in seconds since the epoch, such as `psutil.Process().create_time()`; the
            time from then until now counts as `startup`. Without it the clock starts now.
        clock: Monotonic seconds.
        wall_clock: Seconds since the epoch; compared with `started` once.
    """

    def __init__(
        self,
        started: float | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._seconds = dict.fromkeys(BUCKETS, 0.0)
        if started is not None:
            self._seconds["startup"] = max(0.0, wall_clock() - started)  # the wall clock may have been set back
        self._open = ["other"]
        self._charged_until = clock()

    @contextmanager
    def bucket(self, name: str) -> Iterator[None]:
        """Charge the time inside to `name`. A bucket opened inside another one pauses it."""
        if name not in BUCKETS:
            raise KeyError(f"{name!r} is not one of {BUCKETS}")
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def seconds(self) -> dict[str, float]:
        """`wall_seconds` until now, and one entry for each bucket (`train_seconds`, ...); these add up to it."""
        self._charge()
        wall = {"wall_seconds": sum(self._seconds.values())}
        return wall | {f"{name}_seconds": value for name, value in self._seconds.items()}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Charge what an earlier process spent on the same work, as `seconds` returned it."""
        for name in BUCKETS:
            self._seconds[name] += seconds.get(f"{name}_seconds", 0.0)

    def _charge(self) -> None:
        now = self._clock()
        self._seconds[self._open[-1]] += now - self._charged_until
        self._charged_until = now
