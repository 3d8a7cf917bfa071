"""What a task must say: how its rows become model inputs, which Auto class, which metrics.

A task does not know the mode, the output folder, `peft` or `Trainer`.
"""

import errno
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hftl.assets import cache_dir, is_bundled, resolve_model
from hftl.errors import UserError

FILL = -100
"""What stands where a row of kept values is shorter than the longest; the stock evaluation loop fills with it too."""

# What the Hub's client says -> what to do. Gated and missing revisions are special cases of a missing repository.
HUB_FAILURES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((hub.GatedRepoError,), "is gated. Ask for access on its page and log in with `hf auth login`."),
    ((hub.RevisionNotFoundError,), "has no such revision. Correct --model_revision."),
    (
        (hub.RepositoryNotFoundError, hub.HFValidationError),
        "is neither a folder here nor a public model of the Hub. Check the spelling; a private one also needs "
        "`hf auth login`.",
    ),
    (
        (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError),
        "is not a folder, and as a Hub id it is not in the cache and cannot be downloaded: there is no network, or "
        "HF_HUB_OFFLINE is set. Load it once with a network, or name a folder or bundled:minilm-l6.",
    ),
)


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


@dataclass(frozen=True)
class Score:
    """One number that a task's `compute_metrics` returns.

    Attributes:
        greater_is_better: the direction in which a model improves.
        by_row: what each row adds to it, [N] from the columns of `predictions.parquet`: values whose mean is the score
            and whose spread is that of the score over new rows. None: it has no interval in a comparison.
        is_written: it is of what `Task.write` gives, so that it is not known while training.
    """

    greater_is_better: bool = True
    by_row: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None
    is_written: bool = False


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
    """Default of `--per_device_eval_batch_size`."""
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


def train_tokenizer(tokenizer: Any, texts: Iterable[str], vocab_size: int, num_texts: int) -> Any:
    """A tokenizer of the same kind made from texts, which cuts them where the other one does."""
    trained = tokenizer.train_new_from_iterator(texts, vocab_size, length=num_texts)
    trained.model_max_length = tokenizer.model_max_length
    return trained


def describe_windows(rows: dict[str, datasets.Dataset]) -> dict[str, Any]:
    """What the run record says of rows that are read in windows, so that none is cut."""
    counts = {
        split: {"num_rows": len(part), "num_tokens": sum(part["length"][:]), "num_cut": 0}
        for split, part in rows.items()
    }
    return {"tokens": counts}


def count_tokens(processor: Any) -> int | None:
    """How many rows an embedding needs for every number that a tokenizer can write; None for image processors."""
    if not isinstance(processor, PreTrainedTokenizerBase):
        return None
    return 1 + max(processor.get_vocab().values())  # not len(): numbers may have gaps


def widen_vocabulary(config: Any, tokenizer: Any) -> None:
    """Let a configuration ask for a row for each token; a checkpoint that has more, as filling, keeps them."""
    text = config.get_text_config()
    if getattr(text, "vocab_size", None) is not None:
        text.vocab_size = max(text.vocab_size, count_tokens(tokenizer))


@contextmanager
def explained_loading(name: str) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint's files are loaded into an error that says what to do.

    Args:
        name: Hub id, folder or bundled:NAME.
    """
    path = Path(name)
    is_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.is_file()
    if is_local and not is_bundled(name) and not path.is_dir():
        raise UserError(f"There is no checkpoint folder {name} (working folder: {Path.cwd()}).")
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(_explain_loading(name, error)) from error


def load_tokenizer(
    source: str, revision: str, max_length: int | None, *, default_length: int, context: int | None = None
) -> Any:
    """A tokenizer that can pad, and cuts a text after `max_length` tokens.

    Args:
        source: Hub id, folder or bundled:NAME.
        revision: Hub revision.
        max_length: as asked for; None: `default_length`, or less where the network reads less.
        default_length: tokens.
        context: tokens that the network reads, where it says more about that than its tokenizer does.

    Raises:
        UserError: there is none, or `max_length` is more than the network reads.
    """
    with explained_loading(source):
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(source), revision=revision, trust_remote_code=False)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers 5.23 makes of missing files
        raise UserError(f"{source} has no tokenizer files, so every text would read the same. Add them to it.")
    if tokenizer.pad_token is None:  # GPT-2, Llama: padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    limit = min(tokenizer.model_max_length, context or tokenizer.model_max_length)
    if max_length and max_length > limit:
        raise UserError(f"--max_length is {max_length}, but {source} reads at most {limit} tokens.")
    tokenizer.model_max_length = max_length or min(limit, default_length)
    return tokenizer


def _explain_loading(name: str, error: BaseException) -> str:
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for kinds, advice in HUB_FAILURES:
        if any(isinstance(link, kinds) for link in chain):
            return f"The model {name!r} {advice}"
    if "file named model.safetensors" in str(error):
        return (
            f"{name} has no model.safetensors. Weights in pickle files (pytorch_model.bin) can run code when they are "
            "loaded, so hftl does not: convert them once, with `save_pretrained` of the loaded model."
        )
    if "trust_remote_code" in str(error):
        return f"{name} needs code of its own, which hftl never runs. Name a checkpoint that transformers knows."
    return f"Cannot load {name}: {error}"


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
