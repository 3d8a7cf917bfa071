"""What a task must say: how its rows become model inputs, which Auto class, which metrics.

A task does not know the mode, the output folder, `peft` or `Trainer`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import numpy as np
import torch

from hftl.errors import UserError
from hftl.metrics.base import Score

FILL = -100
"""What stands where a row of kept values is shorter than the longest; the stock evaluation loop fills with it too."""


@dataclass(frozen=True)
class AnswerOptions:
    """What the answers to rows without labels look like.

    Attributes:
        top_k: classes named for each row, the most probable first.
        threshold: probability from which on a row has a label, where it may have several.
        max_new_tokens: of a text that is written.
    """

    top_k: int = 1
    threshold: float = 0.5
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for name in ("top_k", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; give 1 or more.")
        if not 0 < self.threshold < 1:
            raise UserError(f"--threshold is {self.threshold}; give a probability between 0 and 1.")


class Task(ABC):
    """One kind of prediction. Subclass, fill the attributes and the methods, add one line to `TASKS`.

    A task whose rows have labels (classes, several classes, a number) derives from `tasks.labelled.LabelledTask`.
    docs/tasks.md is the guide.
    """

    name: str
    modality: str
    """`text`, `image`, or `language` for text that is itself what is predicted: which defaults apply."""
    auto_model: str
    """Name of the transformers Auto class."""
    peft_task_type: str | None = None
    """A `peft.TaskType` name, or None where peft has none."""
    refused_adapters: ClassVar[Mapping[str, str]] = {}
    """Adapters that do not work with this task, whatever the network, and why."""
    modes: tuple[str, ...] = ("full", "peft", "scratch", "probe")
    """The modes that make sense."""
    flags: tuple[str, ...] = ()
    """Data flags that only this task reads; with any other they are refused."""
    pipeline_tag: str
    """Name of the transformers pipeline and of the Hub's task."""
    processor_class: str = "AutoTokenizer"
    """Name of the Auto class that loads what `load_processor` gives."""
    scores: ClassVar[Mapping[str, Score]] = {}
    """What `compute_metrics` returns; the first one leads. Of a task whose `LabelInfo.problem_type` is its own name;
    for the problem types of `hftl.metrics` it is told there."""
    scores_by_problem: ClassVar[Mapping[str, Mapping[str, Score]]] = {}
    """Other problem types that the task's `LabelInfo` may have, each with its scores."""
    targets: tuple[str, ...] = ("label",)
    """Canonical columns that are to be predicted, and so no inputs."""
    outputs: tuple[str, ...] = ("logits",)
    """Fields of the network's output that `reduce` gets, one tensor or a tuple; the push gate compares them."""
    num_canary_rows: int = 8
    """Rows whose answers a run keeps, so that the push gate can compare; see `canary_row`."""
    is_answer_last: bool = False
    """Whether of these answers the last position alone is kept, as of a language model."""
    fits_head: bool = False
    """Whether a linear head can be fitted on one vector of features a row, which is also all that mode `probe` is."""
    has_baselines: bool = False
    """Whether the baselines (majority, prior, tfidf, knn) can answer: a row has one label or one set of labels."""
    snippet: str = ""
    """Code of the model card that asks `model` one question; `{example}` is an input, `{answer}` reads the logits."""
    has_new_head: bool = True
    """Whether the part outside the pretrained body is made for the user's labels, so that every mode trains it."""
    eval_batch_size: int = 64
    """Default of `--per_device_eval_batch_size`; a CPU may take fewer (`hftl.settings`)."""
    class_weights: torch.Tensor | None = None
    """What each class counts in the loss, float32 [C]; None: all alike. `hftl.class_weights` sets it."""

    @abstractmethod
    def read(self, raw: datasets.DatasetDict, args: Any) -> tuple[datasets.DatasetDict, Any]:
        """Raw splits -> splits in canonical columns, `row_id` among them, and the `LabelInfo`.

        Args:
            raw: as loaded.
            args: the `DataArguments`.
        """

    @abstractmethod
    def read_known(self, rows: datasets.Dataset, args: Any, info: Any) -> datasets.Dataset:
        """Raw rows with labels that a trained network knows -> canonical columns, the labels as its numbers.

        Raises:
            UserError: a label is missing, or is not one of `info`.
        """

    @abstractmethod
    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        """Load the tokenizer or image processor.

        Args:
            source: Hub id, folder or bundled:NAME.
            revision: Hub revision.
            args: the `DataArguments`.
        """

    def fit_processor(self, processor: Any, rows: datasets.Dataset, args: Any) -> Any:
        """A processor made from the train rows, where the arguments ask for one."""
        return processor

    @abstractmethod
    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        """Turn canonical columns into model inputs once, cached under `fingerprint` and the preprocessing."""

    def describe_rows(self, rows: dict[str, datasets.Dataset], processor: Any, args: Any) -> dict[str, Any]:
        """What the `data` part of the run record should say of the prepared splits."""
        return {}

    @abstractmethod
    def build_collator(
        self, processor: Any, args: Any, augmentation: str
    ) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
        """A function from prepared rows to a batch; rows with `augmentation_seed` are augmented."""

    def adapt_collator(self, collator: Callable, network: torch.nn.Module) -> Callable:
        """The collator for training, once the network is there to be asked what it can take."""
        return collator

    def adjust_config(self, config: Any, processor: Any, info: Any) -> None:  # noqa: B027 - optional
        """Changes that the processor and the labels ask of the model configuration."""

    def adapt_network(self, network: torch.nn.Module) -> None:  # noqa: B027 - optional
        """Let the output of a network that is to be trained carry what `sum_loss` needs and its class leaves out."""

    @abstractmethod
    def sum_loss(self, outputs: Any, labels: torch.Tensor, problem_type: str, smoothing: float) -> torch.Tensor:
        """The loss summed over every label that is not -100; the trainer divides by their number.

        Args:
            outputs: of the network.
            labels: as the collator made them.
            problem_type: of the `LabelInfo`.
            smoothing: of labels, 0 for none.
        """

    @abstractmethod
    def reduce(self, logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
        """What evaluation keeps of a batch, [B, K]; all else is forgotten, so that memory does not grow with it.

        K may be anything that says enough: class numbers, sums over tokens, counts of a confusion matrix. It may
        differ between batches: shorter rows are filled with `FILL`. Values must be exact in float32.

        Args:
            logits: the outputs named by `outputs`; in training other ones may follow them.
            labels: as the collator made them; None where rows have none.
        """

    @abstractmethod
    def compute_metrics(self, kept: np.ndarray, rows: datasets.Dataset, info: Any) -> dict[str, float]:
        """Every score of a split from what `reduce` kept, [N, K] in the order of `rows`."""

    def write(self, network: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """What the network writes for rows with labels, [B, T], kept behind what `reduce` keeps; None: nothing.

        Only in the evaluation after training, and of new data: writing takes a pass for each token.
        """
        return None

    def read_outputs(self, outputs: Any) -> torch.Tensor | tuple:
        """What `reduce` gets of the network's output."""
        found = tuple(outputs[name] for name in self.outputs)
        return found[0] if len(found) == 1 else found

    def compute_report(self, kept: np.ndarray, rows: datasets.Dataset, info: Any) -> dict[str, Any]:
        """The scores and the tables for `run.json`."""
        return self.compute_metrics(kept, rows, info)

    @abstractmethod
    def describe_predictions(self, kept: np.ndarray, rows: datasets.Dataset, info: Any) -> dict[str, Any]:
        """The columns of `predictions.parquet`, `row_id` first."""

    # Rows without labels: `hftl predict`.

    @abstractmethod
    def choose_inputs(self, features: datasets.Features, args: Any) -> dict[str, str]:
        """The columns that a prediction reads: their names -> canonical names. No label is needed.

        Args:
            features: of the rows.
            args: the `DataArguments`.
        """

    def find_unanswerable(self, rows: dict[str, list], processor: Any, args: Any) -> list[str | None]:
        """Why rows that could be read cannot become model inputs; None for a good one."""
        return [None] * len(next(iter(rows.values())))

    @abstractmethod
    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        """Canonical input columns of some rows -> model inputs and what `decode` has to know of them."""

    def answer(
        self, network: Any, batch: dict[str, torch.Tensor], processor: Any, options: AnswerOptions
    ) -> torch.Tensor:
        """What is kept of the network's answer to a batch without labels, [B, ...]."""
        return self.reduce(self.read_outputs(network(**batch)), None)

    @abstractmethod
    def decode(
        self, kept: list[np.ndarray], rows: dict[str, list], processor: Any, info: Any, options: AnswerOptions
    ) -> dict[str, list]:
        """The columns that a user reads, one value a row, in the user's words.

        Args:
            kept: row by row what `answer` kept, in the order of `rows`; there may be none.
            rows: what `encode` made of them.
            processor: tokenizer or image processor.
            info: the `LabelInfo`.
            options: what is asked for.
        """

    # What the rest of hftl asks of a task.

    @abstractmethod
    def read_labels(self, config: Any) -> Any:
        """The `LabelInfo` of a checkpoint that no run of ours left, from its configuration."""

    def count_outputs(self, info: Any) -> int | None:
        """How many numbers the network answers a row with; None where that depends on the row."""
        return None

    def count_classes(self, rows: datasets.Dataset, info: Any) -> np.ndarray | None:
        """Labels of each class in prepared rows, [C]; None where a label is no class."""
        return None

    def weights_on(self, device: torch.device) -> torch.Tensor | None:
        """`class_weights` where the labels are."""
        if self.class_weights is not None and self.class_weights.device != device:
            self.class_weights = self.class_weights.to(device)
        return self.class_weights

    def find_faults(self, rows: datasets.Dataset, info: Any) -> Iterable[str | None]:
        """Why rows in canonical columns cannot be used besides empty texts and broken images; None for a good row."""
        return [None] * len(rows)

    def canary_row(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """What a user would have of one row in canonical columns, as `hub.load_check.build_inputs` reads it."""
        return {name: row[name] for name in ("text", "text_pair", "words") if name in row}

    def sample(self, network: Any, processor: Any, rows: datasets.Dataset) -> list[dict[str, str]]:
        """A few answers of a network that writes text, for the run record; `rows` are in canonical columns."""
        return []


def stack_kept(kept: Sequence[np.ndarray]) -> np.ndarray:
    """What was kept of each row, [N, K]; shorter rows are filled with `FILL`."""
    if len({len(row) for row in kept}) <= 1:
        return np.stack(kept)
    width = max(len(row) for row in kept)
    filled = np.full((len(kept), width, *kept[0].shape[1:]), FILL, kept[0].dtype)
    for place, row in zip(filled, kept, strict=True):
        place[: len(row)] = row
    return filled


def build_label_tensor(labels: list) -> torch.Tensor:
    """Class numbers -> int64 [B]; multi-hot rows or values -> float32 [B, C] or [B]."""
    return torch.tensor(labels, dtype=torch.long if isinstance(labels[0], int) else torch.float32)
