"""Training examples a second, against a stock Trainer on the same machine in the same call.

    python benchmarks/throughput.py text     # MiniLM on WordNet glosses, batch 32, 3 epochs of 1,000
    python benchmarks/throughput.py image    # EfficientNet-Lite0 at 224 px, batch 32, 1 epoch of 320

The two sides run in turn, three times each with seeds 0, 1, 2, each in a process of its own: same checkpoint, rows,
batch, rate, schedule and random start of the head, no augmentation. Stock: `transformers.Trainer` with dynamic padding
for text; for images a transform that decodes and processes each image when it is loaded. Ours: `hftl.train`. The clock
runs from `train()` to its return; what is prepared before (ours: resized images) is reported beside it. Writes
`benchmarks/results/throughput-KIND.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import Trainer, TrainingArguments

from hftl.assets import resolve_model
from hftl.config import Arguments, parse_args
from hftl.run_record import describe_environment
from hftl.runtime.cpu import SPIN_COUNT
from hftl.tasks import build_task
from hftl.training.run import run
from hftl.training_data import load_examples

RESULTS = Path(__file__).parent / "results"
COMMON = "--head_init random --lr_scheduler_type linear --weight_decay 0 --warmup_steps 0 --disable_tqdm true"
SETTINGS = {
    "text": "recipes/configs/wordnet.yaml --learning_rate 2e-4 --num_train_epochs 3 --num_test_examples 4000",
    "image": "recipes/configs/fashion-mnist.yaml --learning_rate 1e-3 --num_train_epochs 1 --image_size 224"
    " --augmentation none --num_train_examples_per_class 32 --num_validation_examples 50 --num_test_examples 500",
}


def parse(kind: str, seed: int, folder: str) -> Arguments:
    """The settings of both sides."""
    words = [*SETTINGS[kind].split(), *COMMON.split(), "--seed", str(seed), "--output_dir", folder]
    return parse_args(words, mode="full")


def time_ours(kind: str, seed: int, folder: str) -> dict[str, float]:
    """One `hftl.training.run`."""
    record = run(parse(kind, seed, folder))
    seconds = record.cost["train_seconds"]
    return {
        "examples_per_second": record.cost["num_examples_seen"] / seconds,
        "train_seconds": seconds,
        "prepare_seconds": record.cost["startup_seconds"],
        "accuracy": record.metrics["test"]["accuracy"],
        "padding_fraction": record.cost["padding_fraction"],
    }


def time_stock(kind: str, seed: int, folder: str) -> dict[str, float]:
    """The same training by a stock Trainer."""
    args = parse(kind, seed, folder)
    transformers.set_seed(seed)
    start = time.perf_counter()
    task = build_task(args.data.task)
    examples = load_examples(args.data, task, seed)
    source = resolve_model(args.model.model_name_or_path)
    processor = task.load_processor(args.model.model_name_or_path, "main", args.data)
    train, test = (_stock_rows(kind, examples.splits[split], processor) for split in ("train", "test"))
    model = getattr(transformers, task.auto_model).from_pretrained(
        source, num_labels=examples.labels.num_labels, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            learning_rate=args.training.learning_rate,
            num_train_epochs=args.training.num_train_epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            remove_unused_columns=False,
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=train,
        data_collator=transformers.DataCollatorWithPadding(processor) if kind == "text" else _stack,
    )
    prepared = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - prepared
    logits = trainer.predict(test).predictions
    return {
        "examples_per_second": args.training.num_train_epochs * len(train) / seconds,
        "train_seconds": seconds,
        "prepare_seconds": prepared - start,
        "accuracy": float(np.mean(logits.argmax(-1) == np.asarray(examples.splits["test"]["label"]))),
    }


def _stock_rows(kind: str, rows, processor):
    if kind == "text":
        rows = rows.map(lambda batch: processor(batch["text"], truncation=True), batched=True)
        return rows.rename_column("label", "labels").select_columns(["input_ids", "attention_mask", "labels"])

    def transform(batch: dict) -> dict:
        images = [image.convert("RGB") for image in batch["image"]]
        return {"pixel_values": list(processor(images, return_tensors="pt")["pixel_values"]), "labels": batch["label"]}

    return rows.with_transform(transform)


def _stack(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


SIDES = {"stock": time_stock, "ours": time_ours}


def time_alone(side: str, kind: str, seed: int) -> dict[str, float]:
    """One side in a process of its own: neither finds the memory, caches or settings that the other one left."""
    command = [sys.executable, __file__, kind, "--side", side, "--seed", str(seed)]
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"GOMP_SPINCOUNT": SPIN_COUNT} if side == "ours" else {}  # as `hftl train` sets it
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Run the pairs and write every figure with its ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SETTINGS)
    parser.add_argument("--side", choices=SIDES, help="time this side alone, write nothing")
    parser.add_argument("--seed", type=int, default=0, help="with --side")
    options = parser.parse_args()
    kind = options.kind
    transformers.utils.logging.set_verbosity_error()
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(SIDES[options.side](kind, options.seed, folder + "/run")))
        return
    pairs = []
    for seed in (0, 1, 2):
        pair = {"seed": seed} | {side: time_alone(side, kind, seed) for side in SIDES}
        pair["ratio"] = pair["ours"]["examples_per_second"] / pair["stock"]["examples_per_second"]
        print(json.dumps(pair), flush=True)
        pairs.append(pair)
    accuracy = {side: statistics.mean(pair[side]["accuracy"] for pair in pairs) for side in ("stock", "ours")}
    content = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/throughput.py {kind}",
        "median_ratio": statistics.median(pair["ratio"] for pair in pairs),
        "mean_accuracy": accuracy,
        "pairs": pairs,
        "environment": describe_environment(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"throughput-{kind}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"median ratio {content['median_ratio']:.2f}, accuracy {accuracy}")


if __name__ == "__main__":
    main()
