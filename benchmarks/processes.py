"""How long does a command take, and when did it first say that it had reached something?

A side of a pair is a whole process: started, timed to its end, with caches of its own that are empty at first, so that
neither side finds what the other one left.
"""

import ast
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
# One line that Trainer prints for an evaluation, in the middle of whatever else is printed.
METRICS = re.compile(r"\{[^{}]*'eval_loss'[^{}]*\}")


@dataclass
class Finished:
    """A process that ended well.

    Attributes:
        seconds: from its start to its end.
        evaluations: seconds since the start, metrics, of each evaluation that it printed.
        output: everything it printed.
    """

    seconds: float
    evaluations: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    output: str = ""

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds until an evaluation reached this accuracy; None if none did."""
        return next((at for at, metrics in self.evaluations if metrics["eval_accuracy"] >= accuracy), None)


def hftl(*words: str) -> list[str]:
    """A command line of this checkout."""
    return [sys.executable, "-m", "hftl", *words]


def build_environment(caches: Path, threads: int | None = None) -> dict[str, str]:
    """The environment of a side: no network, its own caches and threads, this checkout first on the path."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(caches / "datasets"),
        "HF_MODULES_CACHE": str(caches / "modules"),
        "HFTL_CACHE": str(caches / "hftl"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT"):
        environment.pop(name, None)
    return environment | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def run_timed(command: list[str], folder: Path, environment: dict[str, str]) -> Finished:
    """Run a command in a folder.

    Raises:
        RuntimeError: it failed; the message ends with the end of what it printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start, lines, evaluations = time.perf_counter(), [], []
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines.append(line)
            for found in METRICS.findall(line):
                metrics = {name: float(value) for name, value in ast.literal_eval(found).items()}
                evaluations.append((time.perf_counter() - start, metrics))
    output = "".join(lines)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-3000:]}")
    return Finished(time.perf_counter() - start, evaluations, output)
