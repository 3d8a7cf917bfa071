"""What of a run is neither weights nor optimizer, and must survive all the same: it travels in `trainer_state.json`.

The work and the seconds so far, the loss summed since it was logged last, whether training was over, and what
callbacks have counted. transformers 5.23 keeps none of it, but for the callbacks' counts under an option that builds
the callbacks anew.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy

STATE_FILE = "trainer_state.json"


class Progress(TrainerCallback, ExportableState):
    """Hands what the trainer has counted to each checkpoint, and takes it back when training goes on.

    Args:
        trainer: a `FineTuningTrainer`, whose `meter` and `ledger` are filled again.

    Attributes:
        pending_loss: the sum of losses since the last log, mean over processes; set before a save.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.pending_loss = 0.0
        self._must_save = False

    def state(self) -> dict[str, Any]:
        """Plain numbers, in the form that Trainer writes."""
        trainer = self.trainer
        state, ended = trainer.state, trainer.control.should_training_stop
        content = {
            "meter": trainer.meter.state(trainer.args.world_size),
            "seconds": trainer.ledger.seconds(),
            "pending_loss": self.pending_loss,
            "last_logged_step": getattr(trainer, "_globalstep_last_logged", 0),  # set when training begins
            "has_stopped_early": bool(ended and state.global_step < state.max_steps),
        }
        return {"args": {}, "attributes": content}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take everything back that the checkpoint holds."""
        callbacks = [c for c in [*self.trainer.callback_handler.callbacks, control] if isinstance(c, ExportableState)]
        if self.trainer.resumed is not None:
            state.best_model_checkpoint = self.trainer.resumed.best_model_checkpoint
            for callback in callbacks:
                stored = state.stateful_callbacks.get(type(callback).__name__)
                if isinstance(stored, dict) and callback is not control:
                    self._restore(callback, stored["attributes"])
        for callback in callbacks:  # Trainer expects an entry for each, which another program's checkpoint may lack
            state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())

    def _restore(self, callback: TrainerCallback, stored: Mapping[str, Any]) -> None:
        if callback is not self:
            for name, value in stored.items():
                setattr(callback, name, value)
            return
        trainer = self.trainer
        trainer.meter.restore(stored["meter"], trainer.args.world_size)
        trainer.ledger.add(stored["seconds"])
        trainer._tr_loss += stored["pending_loss"]
        trainer._globalstep_last_logged = stored["last_logged_step"]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the last step of an epoch, save when what is due at its end is done: going on would skip that."""
        is_due_then = IntervalStrategy.EPOCH in (args.eval_strategy, args.logging_strategy)
        if control.should_save and is_due_then and is_epoch_end(state, control):
            control.should_save, self._must_save = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save what was put off."""
        control.should_save |= self._must_save
        self._must_save = False


def is_epoch_end(state: TrainerState, control: TrainerControl) -> bool:
    """Whether Trainer leaves the epoch after this step."""
    return state.epoch == int(state.epoch) or control.should_training_stop or control.should_epoch_stop


def has_ended(resumed: TrainerState, max_steps: int) -> bool:
    """Whether a checkpoint is that of the last step, by number or because training had stopped early."""
    stored = resumed.stateful_callbacks.get(Progress.__name__) or {"attributes": {}}
    return resumed.global_step >= max_steps or stored["attributes"].get("has_stopped_early", False)


def read_state(checkpoint: str | Path) -> TrainerState:
    """The state that Trainer wrote into a checkpoint, with the best checkpoint where it lies now.

    Trainer writes its absolute path, and forgets the best one when the folder was moved.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint, STATE_FILE)))
    beside = Path(checkpoint).parent / f"checkpoint-{state.best_global_step}"
    if state.best_model_checkpoint is not None and beside.is_dir():
        state.best_model_checkpoint = str(beside)
    return state
