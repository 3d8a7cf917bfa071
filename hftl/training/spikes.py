"""Did the loss jump? A warning that names the step, the loss and its usual size; a run is never stopped by it.

A batch that the network gets wrong when it has nearly learnt the rest is no spike, however small the losses around it
are: a spike is far outside of the last losses and, besides, of the size that losses had at the start of training.
"""

import logging
from collections import deque
from statistics import median
from typing import Any

import torch
from accelerate.utils import gather
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

logger = logging.getLogger(__name__)

WINDOW = 50  # steps that say what is usual
MIN_STEPS = 10
FACTOR = 5.0  # times the median; batches of one task differ by less
DEVIATIONS = 10.0  # times the median distance from the median, scaled to a standard deviation
NORMAL_SCALE = 1.4826
START_SHARE = 0.5  # of the median of the first losses


class SpikeDetector:
    """Knows the last losses; a spike does not become one of them, or the next would look usual."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.first: list[float] = []

    def check(self, loss: float) -> float | None:
        """The usual loss, where this one is a spike; otherwise None."""
        if len(self.recent) >= MIN_STEPS:
            usual = median(self.recent)
            spread = NORMAL_SCALE * median(abs(value - usual) for value in self.recent)
            if loss > max(FACTOR * usual, usual + DEVIATIONS * spread, START_SHARE * median(self.first)):
                return usual
        if len(self.first) < MIN_STEPS:
            self.first.append(loss)
        self.recent.append(loss)
        return None


class WarnOfSpikes(TrainerCallback, ExportableState):
    """Looks at the loss of every step: on a CPU at once, on an accelerator when something is logged anyway.

    Args:
        parts: the losses of the micro-batches of the current step, in this process; emptied after each step.

    Attributes:
        seen: what a resumed run must know to call the same losses spikes; travels in a checkpoint.
    """

    def __init__(self, parts: list[torch.Tensor]) -> None:
        self.parts = parts
        self.detector = SpikeDetector()
        self._pending: list[torch.Tensor] = []
        self._quiet_until = 0
        self._is_alone = True

    def state(self) -> dict[str, Any]:
        """Plain numbers, in the form that Trainer writes and `Progress` restores."""
        return {"args": {}, "attributes": {"seen": self.seen}}

    @property
    def seen(self) -> dict[str, Any]:
        detector = self.detector
        return {"recent": list(detector.recent), "first": detector.first, "quiet_until": self._quiet_until}

    @seen.setter
    def seen(self, stored: dict[str, Any]) -> None:
        self.detector.recent.extend(stored["recent"])
        self.detector.first = list(stored["first"])
        self._quiet_until = stored["quiet_until"]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collect the step, and look at what was collected when that makes nobody wait."""
        if self.parts:
            self._pending.append(torch.stack(self.parts).sum())
            self.parts.clear()
        is_due = control.should_log or control.should_training_stop or (args.device.type == "cpu" and self._is_alone)
        if not self._pending or not is_due:
            return
        losses = gather(torch.stack(self._pending).unsqueeze(0)).sum(dim=0).tolist()  # [processes, steps] -> [steps]
        self._pending.clear()
        for offset, loss in enumerate(losses, start=state.global_step - len(losses) + 1):
            usual = self.detector.check(loss)
            if usual is not None and offset > self._quiet_until:
                self._quiet_until = offset + WINDOW
                self._warn(offset, loss, usual, args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Several processes exchange their parts, which is not done for every step."""
        self._is_alone = args.world_size == 1

    def _warn(self, step: int, loss: float, usual: float, args: TrainingArguments) -> None:
        if args.process_index == 0:
            logger.warning(
                "The loss jumped to %.4g at step %s; before, it was usually %.4g (median of up to %s steps). Training "
                "goes on. If it does not come down again: lower --learning_rate (%.2g), add --warmup_steps 0.1, or "
                "give a smaller --max_grad_norm (%s).",
                *(loss, step, usual, WINDOW, args.learning_rate, args.max_grad_norm),
            )
