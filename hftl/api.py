"""hftl from Python: `train`, `compare` and `load`, the same as the verbs of the command line, and what these call.

The flags of a verb are the keywords of its function. Nothing is printed.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hftl.config import Arguments, parse_args
from hftl.errors import UserError
from hftl.inference.predictor import load
from hftl.records import RunRecord
from hftl.yaml_file import as_flag

__all__ = ["compare", "load", "train", "train_parsed"]


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
    from hftl.resuming.signals import StopOnSignal
    from hftl.run import run
    from hftl.settings import warn_of_unread

    warn_of_unread(args)
    if args.model.mode in BASELINES:
        return run_baseline(args, started=started)
    return run(args, started=started, stop=StopOnSignal() if ends_on_signal else None)


def compare(file: str | Path, output_dir: str | Path | None = None, **options: Any) -> Mapping[str, Any]:
    """Run what is missing of an experiment and write its report: `hftl compare EXPERIMENT.yaml`.

    Args:
        file: the experiment.
        output_dir: campaign folder; default: runs/NAME.
        options: jobs, engine, keep_models, accelerate_config, as on the command line.

    Returns:
        The content of `results.json`, the verdict among it; the report is `report.html` in the folder.

    Raises:
        UserError: the experiment or its data are wrong, or the folder is that of another experiment.
    """
    from hftl.compare import study
    from hftl.report.html import write_report

    folder = Path(output_dir or Path("runs") / Path(file).stem)
    try:
        chosen = study.StudyOptions(Path(file), folder, **options)
    except TypeError as error:
        raise UserError(f"hftl.compare takes jobs, engine, keep_models and accelerate_config: {error}.") from error
    results = study.run_study(study.open_study(chosen), chosen.command)
    write_report(folder)
    return results
