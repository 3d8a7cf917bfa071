"""Milliseconds of a short training step, by stock Trainer and by ours, in turns: what do our hooks cost?

    python benchmarks/step_time.py

Two layers of MiniLM with few tokens to embed, float32, rows of 12 tokens, as many of them as make a stock step of
about 20 ms; the same rows, weights and arguments on both sides. Prints one JSON object: the steps of each side.
"""

import json
import os
import tempfile
import time
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `hftl train` sets it, for both sides: they share a process

import datasets
import numpy as np
import transformers

from hftl.assets import resolve_model
from hftl.cost.ledger import Ledger
from hftl.tasks import build_task
from hftl.training.trainer import FineTuningTrainer

STEP_SECONDS = 0.02
NUM_TURNS, NUM_STEPS, NUM_WARM = 8, 60, 10
WIDTH, VOCABULARY = 12, 1_000


class Clock(transformers.TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def build_network() -> transformers.PreTrainedModel:
    transformers.set_seed(0)
    config = transformers.AutoConfig.from_pretrained(
        resolve_model("bundled:minilm-l6"), num_labels=4, problem_type="single_label_classification"
    )
    config.vocab_size, config.num_hidden_layers = VOCABULARY, 2
    return transformers.AutoModelForSequenceClassification.from_config(config)


def build_rows(num_rows: int) -> datasets.Dataset:
    ids = np.random.default_rng(0).integers(VOCABULARY // 2, VOCABULARY, (num_rows, WIDTH))
    columns = {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}
    return datasets.Dataset.from_dict(columns | {"labels": (ids[:, 0] % 4).tolist()})


def time_steps(is_ours: bool, batch_size: int, folder: str) -> list[float]:
    """Seconds of each step after the first ones of one training."""
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=NUM_STEPS,
        per_device_train_batch_size=batch_size,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
    )
    clock, wiring = Clock(), {"model": build_network(), "args": arguments, "train_dataset": build_rows(4096)}
    wiring |= {"data_collator": transformers.default_data_collator}
    if is_ours:
        wiring |= {"task": build_task("text-classification"), "problem_type": "single_label_classification"}
        wiring |= {"head_names": ["classifier"], "head_learning_rate": 1e-3, "ledger": Ledger()}
    trainer = (FineTuningTrainer if is_ours else transformers.Trainer)(**wiring)
    trainer.add_callback(clock)
    trainer.train()
    return np.diff(clock.ends)[NUM_WARM:].tolist()


def find_batch_size(folder: str) -> int:
    """Rows in a stock step that takes about `STEP_SECONDS`."""
    size = 1
    while np.median(time_steps(False, size, folder)) < STEP_SECONDS:
        size += 1
    return size


def main() -> None:
    steps: dict[str, list[float]] = {"stock": [], "hftl": []}
    with tempfile.TemporaryDirectory() as folder:
        size = find_batch_size(folder)
        for turn in range(2 * NUM_TURNS):
            side = "hftl" if turn % 2 else "stock"
            steps[side] += time_steps(side == "hftl", size, folder)
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
