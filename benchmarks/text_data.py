"""The same rows for both sides of a text pair, as csv files: text, label (a number), name (of the label)."""

import csv
from pathlib import Path

from hftl.config import parse_args
from hftl.tasks import build_task
from hftl.training_data import load_examples

CONFIG = Path(__file__).parent.parent / "recipes" / "configs" / "wordnet.yaml"


def write_text_data(folder: Path, num_train_examples: int) -> dict[str, Path]:
    """WordNet definitions: train, validation (250 rows) and test (1,000 rows) of seed 0."""
    words = [str(CONFIG), "--num_train_examples", str(num_train_examples), "--output_dir", str(folder / "none")]
    args = parse_args(words, mode="full")
    examples = load_examples(args.data, build_task(args.data.task), seed=0)
    names, files = examples.labels.names, {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in examples.splits.items():
        files[split] = folder / f"{split}.csv"
        with files[split].open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label", "name"])
            writer.writerows((row["text"], row["label"], names[row["label"]]) for row in rows)
    return files
