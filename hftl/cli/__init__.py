"""The command line: `hftl VERB ...`. Heavy modules are imported inside the verb that needs them.

A verb is a function of its words: those that train (`training`), compare (`comparing`), look before (`previews`) or
use a trained model (`models`).
"""

import os
import sys
from collections.abc import Callable, Sequence

from hftl import __version__
from hftl.cli.comparing import compare, report
from hftl.cli.models import demo, evaluate, export, merge, predict, push
from hftl.cli.previews import adapters, audit, estimate
from hftl.cli.training import run_recipe, train, verify_resume
from hftl.errors import (
    Interrupted,
    OutOfResources,
    PublishError,
    ResumeDiffers,
    TrainingDiverged,
    UserError,
    unknown_name,
)

USAGE = f"""hftl {__version__}: fine-tune, adapt or train from scratch, and compare honestly.

usage: hftl VERB [CONFIG.yaml] [--flag value ...]

verbs:
  train    --mode full|peft|scratch|probe: train one model, evaluate it, leave a run folder; the baselines
           majority|prior|tfidf|knn are run in the same way
  compare  [EXPERIMENT.yaml]: run every arm on a ladder of label numbers and say which wins; without a file, an example
  report   FOLDER: write the report of a comparison again from what its folder holds
  verify-resume [CONFIG.yaml]: kill a short run of these settings, resume it, and compare it with one left alone
  estimate [CONFIG.yaml]: memory, operations, seconds and money of every mode, and what fits (--gpu h100)
  audit    find duplicates, leaks, contradicting labels and more in the data of a run; takes the data flags of train
  adapters list the methods of --mode peft
  predict  MODEL INPUT: answer rows of a file, a folder, a data set or the standard input
  evaluate MODEL DATA: the metrics of a trained model on data with labels, with intervals, beside those of its run
  demo     MODEL [MODEL2]: a page on this machine to try a model by hand, or two beside each other
  export   MODEL OUT: a text or image classifier as ONNX, checked against it on real rows; --quantize int8
  push     RUN --repo_id ORG/NAME: publish a run, after a fresh process has loaded it and found the same answers
  merge    RUN OUT: fold the adapter of a run into the weights, check that the answers stay, leave a plain checkpoint

examples:
  hftl train --mode peft
  hftl train --mode full --train_file train.csv --test_file test.csv --model_name_or_path bundled:minilm-l6
  hftl train my-run.yaml --mode peft --accelerate_config accelerate_configs/multi_gpu.yaml
  hftl compare
  hftl compare my-experiment.yaml --dry-run

`hftl train --help` lists every flag; every transformers.TrainingArguments flag works by its own name.
`hftl compare --help` lists those of a comparison."""

__all__ = ["compare", "guarded", "main", "run_recipe"]  # the recipes call them

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    0 ok, 1 a resumed run differs, 2 bad input, 3 diverged, 4 out of memory or disk, 5 not published,
    75 stopped and resumable.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # compiled code of the Hub, which `kernels` would fetch and run
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
    except (UserError, TrainingDiverged, OutOfResources, PublishError, Interrupted, ResumeDiffers) as error:
        if not isinstance(error, Interrupted) or os.environ.get("RANK", "0") == "0":  # which comes to all alike
            from hftl.runtime.files import redact

            print(redact(f"hftl: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hftl: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "compare": compare,
    "report": report,
    "verify-resume": verify_resume,
    "estimate": estimate,
    "audit": audit,
    "adapters": adapters,
    "predict": predict,
    "evaluate": evaluate,
    "demo": demo,
    "export": export,
    "merge": merge,
    "push": push,
}
