"""How much more memory may this process take?

On CUDA what the card has free, and what torch holds unused. Elsewhere the least of what the machine has available and
what the control group of a container or a batch job still allows, shared among the processes of a launch, and of what
`ulimit -v` and `ulimit -d` leave to this process.
"""

import math
import os
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# limit, usage, statistics, what of them counts as free: cgroup v2 and v1
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def measure_headroom(device: torch.device) -> int:
    """Bytes that can still be allocated on the device, or, for a CPU, by this process."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [psutil.virtual_memory().available, *(_read_rest(folder) for folder in _list_groups())]
    shared = min(limit for limit in limits if limit is not None) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(shared, *_list_own_rests())


def _list_own_rests() -> list[float]:
    """What the limits of the process itself leave, which batch systems set; infinite where there is none.

    They count what is mapped, resident or not: past them an allocation fails with an error, and nobody is killed.
    """
    if not psutil.LINUX:
        return [math.inf]
    process = psutil.Process()
    used = process.memory_info()
    taken = {psutil.RLIMIT_AS: used.vms, psutil.RLIMIT_DATA: used.data}
    limits = {kind: process.rlimit(kind)[0] for kind in taken}
    return [math.inf if limits[kind] == psutil.RLIM_INFINITY else max(0, limits[kind] - taken[kind]) for kind in taken]


def _list_groups() -> list[Path]:
    """The control groups of this process from the root down: each may have a limit."""
    groups = [CGROUPS, CGROUPS / "memory"]
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            group = CGROUPS / controllers / path.strip("/")
            groups += [group, *(parent for parent in group.parents if CGROUPS in parent.parents)]
    return list(dict.fromkeys(groups))


def _read_rest(group: Path) -> int | None:
    """What the group may still take; None where it has no limit."""
    for limit_name, usage_name, cached_name in FILES:
        try:
            limit = (group / limit_name).read_text().strip()
            usage = int((group / usage_name).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if limit != "max":
            return max(0, int(limit) - usage + int(statistics.get(cached_name, 0)))
    return None
