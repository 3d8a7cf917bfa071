"""hftl from Python: `train` and `load`, the same as the verbs of the command line, and what these call.

The flags of a verb are the keywords of its function. Nothing is printed.
"""

import time
from pathlib import Path
from typing import Any

from hftl.config import Arguments, parse_args
from hftl.config.yaml_file import as_flag
from hftl.inference.predictor import load
from hftl.run_record import RunRecord

__all__ = ["load", "train", "train_parsed"]


def train(config: str | Path | None = None, **flags: Any) -> RunRecord:
    """Train one model: `hftl train [CONFIG.yaml] [--flag value ...]`.

    Example: `hftl.train(mode="peft", train_file="train.csv", model_name_or_path="bundled:minilm-l6", max_steps=100)`

    Args:
        config: a YAML file with more flags; the keywords win.
        flags: of `hftl train`, by name; lists for those that take several values. None stands for the default.

    Returns:
        What was written to `run.json`; its `folder` is the run folder.

    Raises:
        UserError: an unknown flag or a wrong value, or data or a checkpoint that cannot be used.
        TrainingDiverged: the loss stopped being finite.
        OutOfResources: memory or disk ran out.
    """
    started = time.time()
    words = [str(config)] if config is not None else []
    for name, value in flags.items():
        if value is not None:
            words += as_flag(name, list(value) if isinstance(value, tuple) else value)
    return train_parsed(parse_args(words), started=started)


def train_parsed(args: Arguments, *, started: float | None = None, ends_on_signal: bool = False) -> RunRecord:
    """The run, or the baseline, that the mode names.

    Args:
        args: what was asked for.
        started: when the process started, so that imports count as start-up.
        ends_on_signal: end training with a checkpoint after SIGTERM or SIGINT; else signals are left alone.
    """
    from hftl.baselines import BASELINES, run_baseline
    from hftl.training.run import run
    from hftl.training.settings import warn_of_unread
    from hftl.training.signals import StopOnSignal

    warn_of_unread(args)
    if args.model.mode in BASELINES:
        return run_baseline(args, started=started)
    return run(args, started=started, stop=StopOnSignal() if ends_on_signal else None)
