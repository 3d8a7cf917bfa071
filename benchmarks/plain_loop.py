"""A plain PyTorch loop as a textbook has it: SGD with momentum, one process, float32, rows prepared when read.

    python benchmarks/plain_loop.py text TRAIN.csv TEST.csv CHECKPOINT    # texts padded to 128 tokens
    python benchmarks/plain_loop.py image TRAIN/ TEST/ CHECKPOINT         # one subfolder a class, resized to 224 px

One epoch in batches of 32, then the test rows; the last line printed is the accuracy. The other side of the claims
`plain-text` and `plain-image`; it imports nothing of hftl.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

BATCH_SIZE = 32
RATES = {"text": 0.01, "image": 0.01}
MEAN, SPREAD = 127.0, 128.0  # of a pixel, as the checkpoint was trained


class Texts(Dataset):
    """Rows of a table with `text` and a number as `label`."""

    def __init__(self, path: str, checkpoint: str) -> None:
        self.rows = pd.read_csv(path)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
        row = self.rows.iloc[index]
        encoded = self.tokenizer(row["text"], padding="max_length", truncation=True, max_length=128)
        inputs = {name: torch.tensor(encoded[name]) for name in ("input_ids", "attention_mask")}
        return inputs, int(row["label"])


class Images(Dataset):
    """Files in a folder for each class."""

    def __init__(self, folder: str, checkpoint: str) -> None:
        self.names = sorted(path.name for path in Path(folder).iterdir())
        self.files = [(path, self.names.index(path.parent.name)) for path in sorted(Path(folder).glob("*/*"))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
        path, label = self.files[index]
        image = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy((np.asarray(image, dtype=np.float32) - MEAN) / SPREAD).permute(2, 0, 1)
        return {"pixel_values": pixels.contiguous()}, label


SETS = {
    "text": (Texts, transformers.AutoModelForSequenceClassification),
    "image": (Images, transformers.AutoModelForImageClassification),
}


def train(network: nn.Module, rows: Dataset, rate: float) -> None:
    """One epoch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    network.train()
    for inputs, labels in DataLoader(rows, BATCH_SIZE, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(network(**inputs).logits, labels).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(network: nn.Module, rows: Dataset) -> float:
    """Accuracy."""
    network.eval()
    hits = [(network(**inputs).logits.argmax(-1) == labels) for inputs, labels in DataLoader(rows, BATCH_SIZE)]
    return torch.cat(hits).float().mean().item()


def main() -> None:
    kind, train_path, test_path, checkpoint = sys.argv[1:]
    torch.manual_seed(0)
    dataset, auto = SETS[kind]
    rows, test = dataset(train_path, checkpoint), dataset(test_path, checkpoint)
    num_labels = 1 + max(rows.rows["label"]) if kind == "text" else len(rows.names)
    network = auto.from_pretrained(checkpoint, num_labels=num_labels, ignore_mismatched_sizes=True)
    train(network, rows, RATES[kind])
    print(evaluate(network, test))


if __name__ == "__main__":
    main()
