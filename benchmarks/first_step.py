"""Seconds from the start of this process to the first training step of an `hftl train`, or to stock imports.

    python benchmarks/first_step.py train --mode full --train_file ...   # what follows are the words of `hftl`
    python benchmarks/first_step.py imports

Prints the number as the last line and ends there.
"""

import os
import sys
import time


def print_age() -> None:
    """Print how old this process is, and end it without clean-up."""
    import psutil

    print(time.time() - psutil.Process().create_time(), flush=True)
    os._exit(0)


def import_stock() -> None:
    """What a script needs before it can train: torch, and from transformers the network, tokenizer and Trainer."""
    import torch  # noqa: F401
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments  # noqa: F401

    print_age()


def train(words: list[str]) -> None:
    """`hftl` with these words, up to its first optimizer step."""
    from hftl.cli import main
    from hftl.cli.words import prepare_libraries

    prepare_libraries()
    import transformers

    transformers.Trainer.training_step = lambda *args, **kwargs: print_age()
    sys.exit(main(words))


if __name__ == "__main__":
    import_stock() if sys.argv[1:] == ["imports"] else train(sys.argv[1:])
