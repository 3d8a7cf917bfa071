"""What do train, audit, predict and evaluate read of one source? Each in its own words, in this process.

All of hftl is real up to the tokenizer and the network: where texts would be encoded they are noted instead.
"""

import copy
import dataclasses
import functools
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import datasets
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings

from hftl.config import DataArguments, parse_args
from hftl.errors import UserError
from hftl.inference import predict as predicting
from hftl.inference.evaluation import evaluate, prepare_rows
from hftl.inference.predictor import Predictor, load
from hftl.inference.source import LoadedSource, ModelSource
from hftl.preview.audit import audit_data
from hftl.tasks import build_task
from hftl.tasks.base import AnswerOptions
from hftl.training.run import run
from hftl.training_data import load_examples, load_rows


def fuzz(examples: int, *, always_the_same: bool = True) -> settings:
    """Settings: `examples` draws, the same each time; or new ones, as many as HFTL_FUZZ_EXAMPLES says."""
    number = examples if always_the_same else int(os.environ.get("HFTL_FUZZ_EXAMPLES", str(examples)))
    return settings(
        max_examples=number,
        derandomize=always_the_same,
        database=None,
        phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


VERBS = ("audit", "evaluate", "predict")  # besides train, which reads every example
HEADED = ("text-classification", "image-classification")


class Refused(Exception):
    """One sentence to the user, and who said it."""


def ask(who: str, function: Callable, *args: Any) -> Any:
    """The answer of a function; its one sentence becomes `Refused`, and any other exception is a fault."""
    try:
        return function(*args)
    except UserError as error:
        message = str(error)
        assert message.strip() and len(message) <= 2000 and "Traceback" not in message, message
        raise Refused(f"{who}: {message}") from error


@contextmanager
def own_caches(folder: Path):
    """Caches of data in a folder that is emptied behind each example."""
    with (
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", folder / "datasets"),
        mock.patch.dict(os.environ, {"HFTL_CACHE": str(folder / "hftl")}),
    ):
        yield
    shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass
class Reader:
    """One source of data in the eyes of each verb.

    Attributes:
        words: flags of `hftl train`, among them those that name the data.
        read: canonical columns of a split -> what is compared, a value a row.
        label: canonical column of labels, which `name` turns into the words of the user.
        decode: in place of the task's own, where that needs more than the class of a row.
        checkpoint: whose tokenizer or image processor encodes rows; without one they are noted as they are.
    """

    words: Sequence[str]
    task: str = "text-classification"
    read: Callable[[dict[str, list]], list] = lambda columns: columns["text"]
    label: str = "label"
    name: Callable[[Any, Any], Any] | None = None
    decode: Callable | None = None
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        words = [*map(str, self.words), "--task", self.task, "--output_dir", "out", "--use_cpu"]
        self.args = parse_args(words, mode="full")

    def train(self) -> dict[str, list[tuple[Any, Any]]]:
        """Split -> input and label of each row, and what is known of the model that this would make."""
        splits, labels = ask("train", load_rows, self.args.data)
        self.labels, self.has_validation = labels, "validation" in splits
        return {split: self._pair(rows) for split, rows in splits.items()}

    @functools.cached_property
    def examples(self) -> Any:
        """What the run itself would train on and hold out."""
        return ask("train", load_examples, self.args.data, build_task(self.task), 0)

    def audit(self) -> dict[str, Any]:
        """The report; counts by split as the run itself would use them are compared with it."""
        report, examples = ask("audit", audit_data, self.args), self.examples
        assert report["num_rows"] == {split: len(rows) for split, rows in examples.splits.items()}
        assert report["num_classes"] == examples.labels.num_labels
        assert report["label_counts"] == examples.audit.label_counts
        return report

    def predict(self, source: str | Path) -> list[Any]:
        """The input of each row that is answered, in the order of the answers."""
        answers, noted = io.StringIO(), []
        model = self._model(noted)
        request = predicting.PredictRequest("model", str(source))
        with (
            mock.patch.object(predicting, "find_source", lambda *_: model.source),
            mock.patch.object(predicting, "load_network", lambda _: model),
        ):
            ask("predict", lambda: predicting.predict(request, lines=(), stream=answers))
        self.answers = [json.loads(line) for line in answers.getvalue().splitlines()]
        assert [row["row_id"] for row in self.answers] == list(range(len(noted)))
        return noted

    @functools.cached_property
    def processor(self) -> Any:
        """That of the checkpoint, as the run would keep it."""
        if self.checkpoint is None:
            return None
        task = build_task(self.task)
        processor = copy.deepcopy(_load_processor(self.task, self.checkpoint, self.args.data.max_length))
        return ask("train", task.fit_processor, processor, self.examples.splits["train"], self.args.data)

    def prepare(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Split, with what a run holds out of train still in train -> row_id -> what the network is given."""
        task, prepared = build_task(self.task), {}
        held_out = "validation" if self.args.data.validation_file is None and not self.has_validation else None
        for split, rows in self.examples.splits.items():
            fingerprint = self.examples.fingerprints[split]
            table = ask("train", task.prepare, rows, self.processor, self.args.data, fingerprint)
            named = prepared.setdefault("train" if split == held_out else split, {})
            named.update((row["row_id"], row) for row in table.with_format(None))
        return prepared

    def evaluate(self, source: str | Path) -> list[tuple[Any, Any]]:
        """Input and label of each row that is scored."""
        model = self._model([])
        model.source.task.prepare = lambda rows, *_: rows
        return self._pair(ask("evaluate", prepare_rows, Predictor(model), str(source)))

    def evaluate_prepared(self, source: str | Path) -> list[dict[str, Any]]:
        """What the network is given of each row that is scored."""
        return list(ask("evaluate", prepare_rows, Predictor(self._model([])), str(source)).with_format(None))

    def train_for_real(self, checkpoint: Path, folder: Path, number: int, source: tuple[Any, Any, int]) -> None:
        """One step of a tiny network; then it answers and is scored.

        Args:
            checkpoint: where it starts.
            folder: of the run.
            number: of rows in all splits.
            source: what predict is given, what evaluate is given, and how many rows both have.
        """
        words = [*map(str, self.words), "--model_name_or_path", str(checkpoint), "--output_dir", str(folder)]
        words += ["--max_steps", "1", "--per_device_train_batch_size", "2", "--head_init", "random", "--use_cpu"]
        words = [word for word in words if self.task in HEADED or word not in ("--head_init", "random")]
        record = ask("train", run, parse_args([*words, "--task", self.task], mode="full"))
        counts = [count for name, count in record.data.items() if re.fullmatch("num_.*_examples", name)]
        assert sum(counts) == number
        assert tuple(record.data["label_names"]) == self.labels.names
        answers, (asked, scored, count) = io.StringIO(), source
        request = predicting.PredictRequest(str(folder), str(asked), options=AnswerOptions(max_new_tokens=2))
        report = ask("predict", lambda: predicting.predict(request, lines=(), stream=answers))
        assert report.num_rows == len(answers.getvalue().splitlines()) == count
        assert ask("evaluate", evaluate, load(folder), str(scored)).num_rows == count

    def _pair(self, rows: datasets.Dataset) -> list[tuple[Any, Any]]:
        columns = _columns(rows)
        name = self.name or _name_label
        marks = [name(value, self.labels) for value in columns.get(self.label, [])] or [None] * len(rows)
        return list(zip(self.read(columns), marks, strict=True))

    def _model(self, noted: list) -> LoadedSource:
        """A network that knows the labels of train and answers nothing; what it is asked is noted."""
        task, info = build_task(self.task), self.labels
        task.encode = lambda columns, *_: self._note(columns, noted)
        task.build_collator = lambda *_: lambda rows: {"place": torch.tensor([row["place"] for row in rows])}
        task.answer = lambda network, batch, *_: torch.zeros(len(batch["place"]), max(1, info.num_labels))
        task.decode = self.decode or task.decode
        record = SimpleNamespace(data=self.examples.describe("source"), metrics={})
        columns = {"columns": tuple(record.data["columns"])} if "columns" in record.data else {}
        source = ModelSource("model", task, info, self.args.model, self.args.data, record=record, **columns)
        return LoadedSource(source, torch.nn.Identity(), self.processor)

    def _note(self, columns: dict[str, list], noted: list) -> dict[str, list]:
        """Model inputs, or where there is no processor what was read, are noted; the network gets their numbers."""
        if self.checkpoint is None:
            found = self.read(columns)
        else:
            table = build_task(self.task).encode(columns, self.processor, self.args.data)
            found = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        noted.extend(found)
        return {"place": list(range(len(found)))}


@functools.lru_cache(maxsize=8)
def _load_processor(task: str, checkpoint: Path, max_length: int | None) -> Any:
    args = DataArguments(task=task, max_length=max_length)
    return build_task(task).load_processor(str(checkpoint), "main", args)


def _columns(rows: datasets.Dataset) -> dict[str, list]:
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return {name: rows.with_format(None)[name][:] for name in rows.column_names}


def _name_label(value: Any, labels: Any) -> Any:
    """The class of a row; a set of them; a number."""
    if labels.problem_type == "regression":
        return float(value)
    if labels.problem_type == "multi_label_classification":
        return frozenset(name for name, bit in zip(labels.names, value, strict=True) if bit)
    return labels.names[value]


def same(found: Sequence[Any], meant: Sequence[Any]) -> bool:
    return len(found) == len(meant) and all(_equal(a, b) for a, b in zip(found, meant, strict=True))


def _equal(found: Any, meant: Any) -> bool:
    if isinstance(meant, np.ndarray):
        return found.shape == meant.shape and bool((found == meant).all())
    return found == meant
