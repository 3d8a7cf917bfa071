"""What a task must say: how its rows become model inputs, which Auto class, which metrics.

A task does not know the mode, the output folder, `peft` or `Trainer`.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch

from hftl.assets import cache_dir


class Task(ABC):
    """One kind of prediction. Subclass, fill the attributes and the methods, add one line to `TASKS`."""

    name: str
    modality: str
    """`text` or `image`: which columns are looked for and which defaults apply."""
    auto_model: str
    """Name of the transformers Auto class."""
    peft_task_type: str | None = None
    """A `peft.TaskType` name, or None where peft has none."""

    @abstractmethod
    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        """Load the tokenizer or image processor.

        Args:
            source: Hub id, folder or bundled:NAME.
            revision: Hub revision.
            args: the `DataArguments`.
        """

    @abstractmethod
    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        """Turn canonical columns into model inputs once, cached under `fingerprint` and the preprocessing."""

    @abstractmethod
    def build_collator(
        self, processor: Any, args: Any, augmentation: str
    ) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
        """A function from prepared rows to a batch; rows with `augmentation_seed` are augmented."""

    def adjust_config(self, config: Any, processor: Any) -> None:  # noqa: B027 - optional
        """Changes that the processor asks of the model configuration (padding token, image size)."""


def map_cached(
    dataset: datasets.Dataset, function: Callable, key: dict[str, Any], *, batch_size: int = 1000, description: str
) -> datasets.Dataset:
    """`dataset.map` in batches, stored in our cache under a key of content and preprocessing.

    The library's own key pickles the function and the tokenizer, whose state changes with use, and is absent for
    data in memory. Ours is what decides the result: the rows, the processor, the settings and the library versions.

    Args:
        dataset: rows with canonical columns; only the columns that `function` returns are kept.
        function: batched function, columns -> columns.
        key: everything that changes the result.
        batch_size: rows a call.
        description: shown on the progress bar.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = Path(cache_dir()) / "prepared"
    folder.mkdir(parents=True, exist_ok=True)
    return dataset.map(
        function,
        batched=True,
        batch_size=batch_size,
        remove_columns=dataset.column_names,
        cache_file_name=str(folder / f"{digest}.arrow"),
        load_from_cache_file=True,
        new_fingerprint=digest,
        desc=description,
    )


def build_label_tensor(labels: list) -> torch.Tensor:
    """Class numbers -> int64 [B]; multi-hot rows or values -> float32 [B, C] or [B]."""
    return torch.tensor(labels, dtype=torch.long if isinstance(labels[0], int) else torch.float32)
