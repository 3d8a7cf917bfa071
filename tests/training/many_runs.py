"""Several runs in one start of `accelerate launch`: FILE.json holds the words of each.

With `--end NAME STEP` the process of rank 1 ends itself at that step of the last run: by SIGTERM, or by SIGKILL.
"""

import json
import os
import signal
import sys
from pathlib import Path

from hftl import cli
from hftl.training.signals import StopOnSignal


def end_at(number: int, step: int) -> None:
    hear = StopOnSignal.on_step_end

    def end(self, args, state, control, **kwargs):
        if state.global_step == step and args.process_index == 1:
            os.kill(os.getpid(), number)
        return hear(self, args, state, control, **kwargs)

    StopOnSignal.on_step_end = end


if __name__ == "__main__":
    file, *end = sys.argv[1:]
    runs = json.loads(Path(file).read_text())
    for position, words in enumerate(runs):
        if end and position == len(runs) - 1:
            end_at(getattr(signal, end[1]), int(end[2]))
        if code := cli.main(["train", *words]):
            sys.exit(code)
