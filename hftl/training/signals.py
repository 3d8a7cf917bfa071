"""How does a run end when it is told to? It finishes its step, saves once, and says how to go on.

The first SIGTERM or SIGINT is noted; at the end of the step all processes agree, save the same checkpoint and stop.
A second signal ends the process at once: what was committed before stays whole.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftl.errors import Interrupted
from hftl.training.progress import is_epoch_end

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# One order may arrive twice: `timeout` and a terminal signal the whole group, and torchrun passes on to its processes
# what they have received already.
SAME_ORDER_SECONDS = 1.0
SAME_ORDER_SECONDS_LAUNCHED = 10.0


class StopOnSignal(TrainerCallback):
    """Ends training with a checkpoint after a signal.

    Several processes may not stop after different steps: each would wait for the others. They compare notes on the
    CPU, over a group of their own, while the next step is computed: a device is never waited for.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._noted_at = 0.0
        self._is_leaving = False
        self._group: Any = None
        self._answer: tuple[Any, torch.Tensor] | None = None

    def note(self, number: int, frame: Any) -> None:
        """The signal handler. A second order ends the process as if nothing handled it."""
        is_launched = "TORCHELASTIC_RUN_ID" in os.environ
        window = SAME_ORDER_SECONDS_LAUNCHED if is_launched else SAME_ORDER_SECONDS
        if self.received is None:
            self.received, self._noted_at = number, time.monotonic()
        elif time.monotonic() - self._noted_at > window:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Several processes make their group once."""
        if args.world_size > 1 and dist.is_initialized() and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save now, or at the end of the epoch that this step ends."""
        if self._is_leaving or self._is_agreed():
            self._is_leaving = True
            control.should_save = control.should_save or not is_epoch_end(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What is due at the end of an epoch is done before the save, or the resumed run would lack it."""
        control.should_save = control.should_save or self._is_leaving

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint is committed: leave. Signals no longer matter, and would cut the record of the run short."""
        if self._is_leaving:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            raise Interrupted(f"Stopped after step {state.global_step} of {state.max_steps}; a checkpoint is saved.")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What is left of the last exchange; a signal from here on lets the run finish."""
        if self._answer is not None:
            self._answer[0].wait()
            self._answer = None

    def _is_agreed(self) -> bool:
        """Whether any process had a signal; of several, one step late, when the answer has long arrived."""
        if self._group is None:
            return self.received is not None
        is_agreed = False
        if self._answer is not None:
            work, answer = self._answer
            work.wait()
            is_agreed = bool(answer)
        mine = torch.tensor(int(self.received is not None))
        self._answer = dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True), mine
        return is_agreed


@contextmanager
def handled(stop: StopOnSignal | None) -> Iterator[None]:
    """Let `stop` hear the signals, where it can: Python hands them to the main thread alone.

    After an interrupt they stay ignored: the process ends, and a launcher tells all others to once one has gone.
    """
    if stop is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        yield
    except Interrupted:
        before = {}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
