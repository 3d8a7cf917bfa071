"""Memory that really runs out: the process has a limit of its own, and the system refuses what is above it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import transformers

from hftl.config import parse_args
from hftl.run_record import RunRecord
from hftl.training.checkpoints import find_newest
from hftl.training.run import run
from tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts there")]
ROOT = Path(__file__).parents[2]
LENGTH = 512  # tokens
# So many MB more than all imports take: the limit does not depend on the build of torch.
LIMITED = """
import resource, sys
import evaluate, hftl.training.run, psutil, scipy.stats, sklearn.metrics
from hftl import cli
limit = psutil.Process().memory_info().data + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(cli.main(["train", *sys.argv[2:]]))
"""
RESULTS = ("loss", "grad_norm", "learning_rate")


def write_network(folder):
    """Two million weights, and 70 MB of activations for each row of 512 tokens: batches are what takes memory."""
    tiny.write_tiny_bert(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = LENGTH
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=4096,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,  # which is drawn for each micro-batch
        attention_probs_dropout_prob=0.0,
    )
    transformers.BertModel(config).save_pretrained(folder)


def write_rows(path, lengths):
    """Texts of so many words, two classes in turn."""
    rng, words = np.random.default_rng(0), [word for group in tiny.CLASS_WORDS for word in group]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([" ".join(rng.choice(words, length)), "ab"[row % 2]] for row, length in enumerate(lengths))


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of a run of three steps: two of short rows, which fit, and one of eight long ones."""
    folder = tmp_path_factory.mktemp("memory")
    write_network(folder / "bert")
    write_rows(folder / "train.csv", [20] * 16 + [LENGTH - 2] * 8)
    write_rows(folder / "validation.csv", [LENGTH - 2] * 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(folder / "cache"))
        words = [f"--train_file={folder}/train.csv", f"--validation_file={folder}/validation.csv", "--mode=full"]
        words += [f"--model_name_or_path={folder}/bert", f"--max_length={LENGTH}", "--head_init=random", "--use_cpu"]
        words += ["--optim=sgd", "--learning_rate=0.02", "--max_steps=3", "--logging_steps=1", "--disable_tqdm=true"]
        words += ["--train_sampling_strategy=sequential", "--per_device_train_batch_size=8"]
        yield [*words, "--per_device_eval_batch_size=2", "--save_strategy=steps", "--save_steps=1"]


def train_within(megabytes, flags, folder, *more):
    """`hftl train` in a process that may take so much more."""
    command = [sys.executable, "-c", LIMITED, str(megabytes), *flags, f"--output_dir={folder}", *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def train_freely(flags, folder, *more):
    return run(parse_args([*flags, f"--output_dir={folder}", *more]))


def read_results(record):
    return np.array([[entry[name] for name in RESULTS] for entry in record.history if "loss" in entry])


def test_what_does_not_fit_is_divided_and_the_run_is_the_one_divided_by_hand(flags, tmp_path):
    done = train_within(400, flags, tmp_path / "fitted", "--auto_batch=true")
    assert done.returncode == 0, done.stderr
    fitted = RunRecord.read(tmp_path / "fitted")
    found = fitted.environment["auto_batch"]
    size, parts = found["micro_batch"], found["gradient_accumulation_steps"]
    assert 1 <= size < 8 and size * parts == 8
    assert found["memory_limit_bytes"] - found["peak_memory_bytes"] < 2**30  # that of the process, not of the machine

    by_hand = train_freely(
        flags,
        tmp_path / "by-hand",
        f"--per_device_train_batch_size={size}",
        f"--gradient_accumulation_steps={parts}",
    )
    np.testing.assert_array_equal(read_results(fitted), read_results(by_hand))
    assert fitted.metrics["validation"] == by_hand.metrics["validation"]


def test_memory_that_runs_out_in_training_ends_with_code_4_and_the_advice_goes_on(flags, tmp_path):
    whole = train_freely(flags, tmp_path / "whole")
    done = train_within(400, flags, tmp_path / "run")
    assert done.returncode == 4, done.stderr
    assert "Out of memory: " in done.stderr and "Give --auto_batch true" in done.stderr
    assert "Checkpoints saved before are intact" in done.stderr and "Traceback" not in done.stderr
    newest, reasons = find_newest(tmp_path / "run")
    assert (newest.name, reasons) == ("checkpoint-2", [])
    assert RunRecord.read(tmp_path / "run").status == "failed"

    again = train_within(400, flags, tmp_path / "run", "--auto_batch=true", "--resume_from_checkpoint=true")
    assert again.returncode == 0, again.stderr
    assert "The run took 8 rows at once before" in again.stderr
    record = RunRecord.read(tmp_path / "run")
    assert record.environment["auto_batch"]["micro_batch"] < 8
    losses, norms, rates = np.stack([read_results(record), read_results(whole)]).T  # [3, steps, 2]
    for values in (losses, rates):
        np.testing.assert_allclose(values[:, 0], values[:, 1], atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(norms[:, 0], norms[:, 1], rtol=1e-5)


def test_memory_that_runs_out_in_evaluation_halves_its_batch_and_changes_no_result(flags, tmp_path):
    small = ("--max_steps=2", "--save_strategy=no")  # the short rows
    train_freely(flags, tmp_path / "whole", *small)
    done = train_within(400, flags, tmp_path / "run", *small, "--per_device_eval_batch_size=32")
    assert done.returncode == 0, done.stderr
    assert "Evaluation ran out of memory: again with batches of " in done.stderr
    found, expected = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("run", "whole"))
    assert len(found) == 32
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-6)


def test_where_not_even_one_row_fits_the_run_ends_with_code_4_and_writes_nothing(flags, tmp_path):
    done = train_within(60, flags, tmp_path / "run", "--auto_batch=true")
    assert done.returncode == 4, done.stderr
    assert "Out of memory: not even one row of the longest fits" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
