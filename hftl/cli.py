"""The command line: `hftl VERB ...`. Heavy modules are imported inside the verb that needs them."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hftl import __version__
from hftl.errors import OutOfResources, TrainingDiverged, UserError, unknown_name

USAGE = f"""hftl {__version__}: fine-tune, adapt or train from scratch, and compare honestly.

usage: hftl VERB [CONFIG.yaml] [--flag value ...]

verbs:
  train    --mode full|peft|scratch|probe: train one model, evaluate it, leave a run folder

examples:
  hftl train --mode peft
  hftl train --mode full --train_file train.csv --test_file test.csv --model_name_or_path bundled:minilm-l6
  hftl train --mode peft --accelerate_config accelerate_configs/multi_gpu.yaml my.yaml

`hftl train --help` lists every flag; every transformers.TrainingArguments flag works by its own name."""

if TYPE_CHECKING:
    from hftl.records import RunRecord

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 ok, 2 bad input, 3 diverged, 4 out of memory or disk."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    verb, *rest = words
    if verb not in VERBS:
        return guarded(_raise_unknown_verb, verb)
    return guarded(VERBS[verb], rest)


def _raise_unknown_verb(verb: str) -> None:
    raise unknown_name("verb", verb, VERBS)


def guarded(function: Callable, *args: object) -> int:
    """Call `function`; a user's mistake becomes one message and an exit code instead of a traceback."""
    try:
        function(*args)
    except (UserError, TrainingDiverged, OutOfResources) as error:
        print(f"hftl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hftl: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def train(argv: list[str]) -> None:
    """`hftl train`: the recipes' work, with the mode as a flag."""
    argv, accelerate_config = _take_flag(argv, "--accelerate_config")
    if accelerate_config is not None:
        _launch(accelerate_config, argv)
    run_recipe(argv=argv)


def _take_flag(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in (flag, flag.replace("_", "-")):
            if equals:
                return argv[:index] + argv[index + 1 :], value
            if index + 1 == len(argv):
                raise UserError(f"{flag} needs a file.")
            return argv[:index] + argv[index + 2 :], argv[index + 1]
    return argv, None


def _launch(config: str, argv: list[str]) -> None:
    """Replace this process by `accelerate launch` running the same command on the hardware of `config`."""
    if not Path(config).is_file():
        raise UserError(f"There is no accelerate configuration {config!r}. See accelerate_configs/.")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        config,
        "-m",
        "hftl",
        "train",
        *argv,
    ]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def run_recipe(argv: Sequence[str] | None = None, *, mode: str | None = None) -> None:
    """Parse, run, report: what `hftl train` and every recipe of a single run do."""
    started = _process_start()
    os.environ.setdefault("GOMP_SPINCOUNT", "0")  # before torch: spinning threads are up to 13x slower on a busy CPU
    _configure_logging()
    from hftl.config import parse_args

    args = parse_args(argv, default_config=default_config("wordnet.yaml"), mode=mode)
    from hftl.run import run

    _quiet_libraries()
    record = run(args, started=started)
    if args.training.process_index == 0:
        print(_summarize(record, args.training.output_dir))


def _summarize(record: "RunRecord", folder: str) -> str:
    split = "test" if "test" in record.metrics else "validation"
    scores = {name: value for name, value in record.metrics[split].items() if isinstance(value, float)}
    model, cost = record.model, record.cost
    share = model["num_trainable_parameters"] / model["num_parameters"]
    lines = [
        f"{record.task}, mode {record.mode}, {record.data['num_train_examples']:,} training examples",
        f"trained {model['num_trainable_parameters']:,} of {model['num_parameters']:,} parameters ({share:.2%})",
        f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()),
        f"{cost['wall_seconds']:.0f} s in all: start-up {cost['startup_seconds']:.0f}, "
        f"training {cost['train_seconds']:.0f}, evaluation {cost['evaluation_seconds']:.0f}, "
        f"saving {cost['save_seconds']:.0f}",
        f"saved in {folder}",
    ]
    return "\n".join(lines)


def default_config(name: str) -> Path:
    """A shipped configuration, in the wheel or in a checkout."""
    inside = Path(__file__).parent / "recipes" / "configs" / name
    return inside if inside.is_file() else Path(__file__).parent.parent / "recipes" / "configs" / name


def _process_start() -> float:
    import psutil

    return min(time.time(), psutil.Process().create_time())


def _configure_logging() -> None:
    """Our own messages in full; of the libraries, errors only, and progress bars where somebody watches."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("hftl").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of kernels that only 4-bit weights would use
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def _quiet_libraries() -> None:
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


VERBS: dict[str, Callable[[list[str]], None]] = {"train": train}
