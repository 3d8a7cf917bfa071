"""Does a run of these settings, on this machine, survive a kill? It is run, killed, resumed and compared.

Three short runs in processes of their own: one that nothing disturbs, one that kills itself (SIGKILL) in the step
after a checkpoint, and one that goes on from there. Losses, gradient norms and weights must be those of the first, bit
by bit.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hftl.config import Arguments, parse_args
from hftl.errors import ResumeDiffers, UserError
from hftl.run_record import RunRecord
from hftl.training.checkpoints import find_newest
from hftl.training.resume_check import is_resumable
from hftl.training.run import run

NUM_STEPS, SAVED_STEP = 6, 3
# What the comparison needs; whatever else the run has stays as it is.
SETTINGS = ("--max_steps", str(NUM_STEPS), "--logging_strategy", "steps", "--logging_steps", "1", "--save_strategy",
            "steps", "--save_steps", str(SAVED_STEP), "--eval_strategy", "no", "--load_best_model_at_end", "false",
            "--evaluate_test", "false", "--disable_tqdm", "true")  # fmt: skip
COMPARED = ("loss", "grad_norm", "learning_rate")


class KillAfterSave(TrainerCallback):
    """Ends the process as a power cut would, in the step after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The work of this step is lost; it was done after the checkpoint."""
        if state.global_step > self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def verify_resume(words: Sequence[str], accelerate_config: str | None = None) -> str:
    """Run, kill, resume and compare.

    Args:
        words: `[CONFIG.yaml] [--flag value ...]` of `hftl train`.
        accelerate_config: start the runs by `accelerate launch` with this file.

    Returns:
        What was compared.

    Raises:
        UserError: the settings are wrong, or have nothing to resume.
        ResumeDiffers: names the first difference.
    """
    args = parse_args([*words, *SETTINGS])
    if not is_resumable(args):
        raise UserError("There is nothing to resume: it has no training steps, or its checkpoints cannot be loaded.")
    launch = [sys.executable]
    if accelerate_config is not None:
        launch += ["-m", "accelerate.commands.launch", "--config_file", accelerate_config]
    with tempfile.TemporaryDirectory(prefix="hftl-verify-") as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        _train([*launch, "-m", "hftl", "train", *words, *SETTINGS, "--output_dir", str(whole)])
        command = [*launch, "-m", "hftl.preview.verify_resume", *words, *SETTINGS, "--output_dir", str(killed)]
        _train(command, is_killed=True)
        newest, reasons = find_newest(killed)
        if newest is None or newest.name != f"checkpoint-{SAVED_STEP}":
            raise ResumeDiffers(f"The killed run left no checkpoint of step {SAVED_STEP}. {' '.join(reasons)}")
        resumed = [*words, *SETTINGS, "--output_dir", str(killed), "--resume_from_checkpoint", "true"]
        _train([*launch, "-m", "hftl", "train", *resumed])
        if difference := next(find_differences(whole, killed), None):
            raise ResumeDiffers(f"The resumed run is not the uninterrupted one: {difference}. {_explain(args)}")
    return (
        f"Killed after step {SAVED_STEP + 1} and resumed from the checkpoint of step {SAVED_STEP}: losses, gradient "
        f"norms and learning rates of {NUM_STEPS} steps and every final weight are those of the uninterrupted run, "
        "bit for bit."
    )


def find_differences(whole: Path, resumed: Path) -> Iterator[str]:
    """Where two run folders differ, in words: first the steps, then the weights."""
    histories = [
        {entry["step"]: entry for entry in RunRecord.read(folder).history if "loss" in entry}
        for folder in (whole, resumed)
    ]
    for step in sorted(histories[0].keys() | histories[1].keys()):
        for name in COMPARED:
            one, two = (history.get(step, {}).get(name) for history in histories)
            if one != two:
                yield f"{name} of step {step} is {one} in the uninterrupted run and {two} in the resumed one"
    files = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in (whole, resumed)]
    if files[0] != files[1]:
        yield f"the weights are in {files[0]} and {files[1]}"
    for name in files[0]:
        one, two = load_file(whole / name), load_file(resumed / name)
        for key in sorted(one.keys() | two.keys()):
            if key not in one or key not in two or not torch.equal(one[key], two[key]):
                yield f"the weight {key} differs"


def _train(command: list[str], *, is_killed: bool = False) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if is_killed:
        return
    if done.returncode:
        raise UserError(f"The run failed with exit code {done.returncode}: {done.stderr.strip()[-2000:]}")


def _explain(args: Arguments) -> str:
    if args.training.device.type == "cpu":
        return "On a CPU that is a bug of hftl or of a library: please report it."
    return "On a GPU some operations add in any order: try again with --full_determinism true."


if __name__ == "__main__":
    run(parse_args(sys.argv[1:]), callbacks=[KillAfterSave(SAVED_STEP)])
