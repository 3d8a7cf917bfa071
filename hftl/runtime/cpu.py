"""What is the processor of this machine, which instructions has it, and how do threads wait on it?"""

import functools
import os
import platform
from pathlib import Path

# Turns of a loop in which a thread of libgomp waits for work before it sleeps. It has to be there before torch is.
# 100 steps of MiniLM take, on two cores (AMD EPYC, torch 2.13, 2026-11-27), with 0, 500, 2,000, 10,000 and the default
# of 300,000: alone 15.1, 12.9, 11.4, 11.5 and 11.1 s; beside a second such run 17.8, 19.8, 26, 59 and 184 s.
SPIN_COUNT = "2000"


def describe_processor() -> str:
    """Its name."""
    return _read_cpuinfo().get("model name") or platform.processor() or platform.machine()


def has_instructions(*names: str) -> bool:
    """Whether it has one of these, in the words of Linux; elsewhere nothing is known, and the answer is no."""
    return not set(names).isdisjoint(_read_cpuinfo().get("flags", "").split())


def is_made_by(vendor: str) -> bool:
    """Whether its vendor is, say, `AuthenticAMD`; not known outside Linux."""
    return _read_cpuinfo().get("vendor_id") == vendor


def limit_spinning() -> None:
    """Let threads wait awake for as long as an idle machine gains by and a busy one can bear, unless the user says."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


@functools.cache
def _read_cpuinfo() -> dict[str, str]:
    """What Linux tells of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
