"""What do a few real steps take, beside what was predicted? They are made by an ordinary run in a temporary folder."""

import dataclasses
import statistics
import tempfile
import time
from typing import Any

import transformers

from hftl.config import Arguments, parse_args
from hftl.cost.memory import PeakMemory
from hftl.training.run import run

NUM_STEPS = 5  # the first is counted in FLOPs, the others are timed
NUM_TEST_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Probe:
    """Measured.

    Attributes:
        seconds: of a step, median.
        memory: bytes at the peak beside what the process had before; on a GPU those that torch allocated.
    """

    seconds: float
    memory: int


class _Clock(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


def probe(words: list[str], args: Arguments) -> Probe:
    """Make `NUM_STEPS` steps of the run that these words describe.

    Args:
        words: of `hftl train`.
        args: what they mean.
    """
    clock = _Clock()
    with PeakMemory() as held:
        pass
    before = held.describe()["peak_memory_bytes"]
    with tempfile.TemporaryDirectory() as folder:
        short = ["--max_steps", str(NUM_STEPS), "--output_dir", folder, "--disable_tqdm", "true"]
        if args.data.num_test_examples is None:
            short += ["--num_test_examples", str(NUM_TEST_ROWS)]
        record = run(parse_args([*words, *short]), callbacks=[clock])
    gaps = [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)]
    peak = record.cost["peak_memory_bytes"]
    return Probe(statistics.median(gaps), peak if args.training.device.type == "cuda" else max(0, peak - before))
