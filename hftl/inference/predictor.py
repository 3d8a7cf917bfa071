"""A trained network that answers rows without labels: `hftl.load(...)`, and what `hftl predict` asks window by window.

Must not know files: rows come as columns and answers leave as columns.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import PeftModel
from PIL import Image

from hftl.config import DataArguments
from hftl.data.arrays import read_array
from hftl.data.images import strict_pillow
from hftl.data.paths import IMAGE_PATH_NAMES, resolve_path
from hftl.data.pixels import Range, kept_range, read_rgb
from hftl.data.stream import infer_features
from hftl.errors import UserError, quote_names, unknown_name
from hftl.inference.merge import TOLERANCE, fold_adapter
from hftl.inference.source import LoadedSource, ModelSource, find_source, load_network
from hftl.models.linear import linear_by_onednn
from hftl.models.quantization import is_quantized
from hftl.tasks.base import AnswerOptions

logger = logging.getLogger(__name__)

NO_NAMES: dict[str, None] = dict.fromkeys(("text_columns", "image_column", "source_column"))  # flags that name inputs
DATA_SETTINGS = DataArguments.__dataclass_fields__.keys()
ON_BAD_ROWS = ("error", "skip")
CANONICAL = {"text", "text_pair", "image", "prompt", "messages", "words"}
WINDOW = {"image": 256}  # rows sorted by length together; an image of 224 px is 150 kB, a text next to nothing
WINDOW_DEFAULT = 2048
# On a CPU 32 was the fastest of 1 to 128 (docs/predict.md). A GPU starts here and halves when its memory runs out.
BATCH_SIZES = {"cpu": {"text": 32, "image": 32, "language": 8}, "cuda": {"text": 256, "image": 256, "language": 32}}


class Predictor:
    """A network with all that is needed to ask it.

    Attributes:
        source: what it is, among it the task, the labels and the record of its run.
    """

    def __init__(self, loaded: LoadedSource, *, batch_size: int | None = None) -> None:
        """Args:
        loaded: network and processor.
        batch_size: rows a pass; None: chosen, and halved where a GPU's memory runs out.
        """
        self.source = loaded.source
        self.processor = loaded.processor
        self.network = loaded.network
        self.task = loaded.source.task
        self.device = _find_device()
        if not is_quantized(self.network):  # which is where it belongs already
            self.network.to(self.device)
        kind = self.device.type if self.device.type in BATCH_SIZES else "cpu"
        if batch_size is not None and batch_size < 1:
            raise UserError(f"--batch_size is {batch_size}; give 1 or more, or auto.")
        self.batch_size = batch_size or BATCH_SIZES[kind][self.task.modality]
        self._collate = self.task.build_collator(self.processor, self.source.data, "none")
        self._may_merge = isinstance(self.network, PeftModel)
        self.pixel_range = kept_range(self.processor) if self.task.modality == "image" else None

    @property
    def window_size(self) -> int:
        """Rows that `answer` is best given at a time."""
        return WINDOW.get(self.task.modality, WINDOW_DEFAULT)

    def predict(
        self,
        rows: Sequence[Any],
        *,
        top_k: int = 1,
        threshold: float = 0.5,
        max_new_tokens: int = 64,
        on_bad_rows: str = "error",
    ) -> list[dict[str, Any]]:
        """Answer rows, in their order: what `hftl predict` writes.

        Args:
            rows: texts, pairs of texts, images (PIL, arrays, paths or files as bytes), chats, or dictionaries of
                columns.
            top_k: classes named for each row: `label`, `probability`, then `label_2`, `probability_2`, ...
            threshold: probability from which on a row has a label, where it may have several.
            max_new_tokens: of what a language model writes.
            on_bad_rows: `error`, or `skip` for an answer of None.

        Returns:
            A dictionary a row: `row_id` (its place), and `label` and `probability`, or `labels` and
            `probabilities`, or `value`, or `completion`.

        Raises:
            UserError: rows of another kind, or empty or unreadable ones.
        """
        if on_bad_rows not in ON_BAD_ROWS:
            raise unknown_name("value of on_bad_rows:", str(on_bad_rows), ON_BAD_ROWS)
        options = AnswerOptions(top_k, threshold, max_new_tokens)
        columns, answers = self._as_columns(rows), []
        for start in range(0, len(rows), self.window_size):
            window = {name: values[start : start + self.window_size] for name, values in columns.items()}
            found = self.answer(window, options, on_bad_rows=on_bad_rows, first=start)
            answers += [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        return answers

    def answer(
        self,
        columns: dict[str, list],
        options: AnswerOptions,
        *,
        on_bad_rows: str = "error",
        first: int = 0,
        folder: Path | None = None,
    ) -> dict[str, list]:
        """Answer one window.

        Args:
            columns: canonical input columns.
            options: what is asked for.
            on_bad_rows: `error`, or `skip` for an answer of None.
            first: `row_id` of the first row.
            folder: which paths of images are relative to; None: they are the caller's own words.

        Returns:
            `row_id` and the columns of the task, in the order of the rows.

        Raises:
            UserError: a row is bad, and `on_bad_rows` says that it is an error.
        """
        columns, faults = self._check(columns, folder)
        bad = [index for index, fault in enumerate(faults) if fault]
        if bad and on_bad_rows == "error":
            more = f", and {len(bad) - 1} more near it" if len(bad) > 1 else ""
            raise UserError(
                f"Row {first + bad[0]} cannot be answered: {faults[bad[0]].rstrip('.')}{more}. Repair it, or give "
                "--on_bad_rows skip, which leaves its answer empty."
            )
        good = [index for index, fault in enumerate(faults) if not fault]
        kept, encoded = self._ask({n: [v[i] for i in good] for n, v in columns.items()}, options) if good else ([], {})
        found = self.task.decode(kept, encoded, self.processor, self.source.labels, options)
        answers: dict[str, list] = {"row_id": list(range(first, first + len(faults)))}
        for name, values in found.items():
            spread: list = [None] * len(faults)
            for index, value in zip(good, values, strict=True):
                spread[index] = value
            answers[name] = spread
        return answers

    def _check(self, columns: dict[str, list], folder: Path) -> tuple[dict[str, list], list[str | None]]:
        """The rows as they are read, and why some of them cannot be answered."""
        if self.task.modality == "language":  # whose rows the task reads itself: a prompt may be in several columns
            faults: list[str | None] = [None] * len(next(iter(columns.values())))
        else:
            columns, faults = check_window(columns, folder, self.pixel_range)
        good = [index for index, fault in enumerate(faults) if not fault]
        if good:
            rows = {name: [values[index] for index in good] for name, values in columns.items()}
            found = self.task.find_unanswerable(rows, self.processor, self.source.data)
            for index, fault in zip(good, found, strict=True):
                faults[index] = fault
        return columns, faults

    def _ask(self, columns: dict[str, list], options: AnswerOptions) -> tuple[list[np.ndarray], dict[str, list]]:
        """What is kept of each row's answer, and what was read of it."""
        encoded = self.task.encode(columns, self.processor, self.source.data)
        num_rows = len(next(iter(encoded.values())))
        rows = [{name: values[index] for name, values in encoded.items()} for index in range(num_rows)]
        self.merge(rows[: self.batch_size])

        def ask(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.task.answer(self.network, batch, self.processor, options)

        return self.run_batches(rows, ask), encoded

    @torch.inference_mode()
    def run_batches(
        self, rows: Sequence[dict[str, Any]], ask: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    ) -> list[np.ndarray]:
        """What `ask` gives for each row, in their order; asked from long to short."""
        order = sorted(range(len(rows)), key=lambda index: -rows[index].get("length", 0))
        kept: list[Any] = [None] * len(rows)
        start = 0
        while start < len(order):
            chosen = order[start : start + self.batch_size]
            try:
                batch = self.build_batch([rows[index] for index in chosen])
                with linear_by_onednn(self.device):
                    values = ask(batch)
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                logger.info("Out of memory: from here on %d rows a batch.", self.batch_size)
                continue
            values = (values if values.dtype == torch.int64 else values.float()).cpu().numpy()
            for index, value in zip(chosen, values, strict=True):
                kept[index] = value
            start += len(chosen)
        return kept

    def build_batch(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Model inputs of some rows, where the network is."""
        return {name: tensor.to(self.device) for name, tensor in self._collate(rows).items()}

    @torch.inference_mode()
    def merge(self, rows: list[dict[str, Any]]) -> None:
        """Fold the adapter, if there is one, into the weights, if these model inputs get the same logits from both."""
        if not self._may_merge:
            return
        self._may_merge = False
        if self.network.active_peft_config.is_prompt_learning or is_quantized(self.network):
            return  # virtual tokens are no weights, and rounded weights cannot take up an adapter
        batch = {name: tensor for name, tensor in self.build_batch(rows).items() if name != "labels"}
        expected = self.network(**batch).logits.float()
        try:
            merged = fold_adapter(self.network).eval()
            gap, spread = (merged(**batch).logits.float() - expected).abs().max().item(), expected.std().item()
            if gap <= TOLERANCE * max(spread, 1e-6):
                self.network = merged
                return
            reason = f"a logit differs by {gap:.2g}, and they spread by {spread:.2g}"
        except (ValueError, NotImplementedError, AttributeError, TypeError) as error:  # methods that cannot
            reason = str(error).splitlines()[0]
        logger.warning("The adapter is not merged, which would be faster: %s.", reason)
        self.network = load_network(self.source).network.to(self.device)

    def _as_columns(self, rows: Sequence[Any]) -> dict[str, list]:
        """Rows of a Python caller as canonical columns."""
        if isinstance(rows, (str, bytes, dict, Path, Image.Image)) or not isinstance(rows, Sequence):
            raise UserError(f"Give a list of rows; found a {type(rows).__name__}.")
        kinds = {type(row) for row in rows}
        if not kinds:
            return {}
        if kinds == {dict}:
            names = dict.fromkeys(name for row in rows for name in row)
            table = {name: [row.get(name) for row in rows] for name in names}
            return self.rename(table, infer_features(table))
        name = {"image": "image", "language": "prompt"}.get(self.task.modality, "text")
        if self.task.modality == "text" and kinds <= {tuple, list}:
            if any(len(row) != 2 for row in rows):
                raise UserError("A pair is two texts; found one of another length.")
            self._check_inputs(["text", "text_pair"])
            return {"text": [row[0] for row in rows], "text_pair": [row[1] for row in rows]}
        self._check_inputs([name])
        return {"messages" if self.task.modality == "language" and kinds == {list} else name: list(rows)}

    def choose_columns(self, features: datasets.Features, *, is_table: bool = True) -> dict[str, str]:
        """The columns that are read of such rows -> their canonical names.

        Args:
            features: names and types.
            is_table: whether the names are the user's own; those of training are then looked for.

        Raises:
            UserError: none or several could be meant, those of training are not there, or the network was trained on
                pairs and these are none.
        """
        data = recall_columns(self.source, features) if is_table else replace(self.source.data, **NO_NAMES)
        if is_table and self.task.modality == "language" and self.source.columns and data.text_columns is None:
            features = datasets.Features({name: features[name] for name in self.source.columns})
        chosen = self.task.choose_inputs(features, data)
        self._check_inputs(list(chosen))
        return chosen

    def _check_inputs(self, found: list[str]) -> None:
        wanted = self.source.num_inputs
        if self.task.modality == "text" and wanted not in (None, len(found)):
            names = "a text and its pair" if wanted == 2 else "one text"
            raise UserError(f"{self.source.name} reads {names} a row; found {', '.join(found)}. Name the columns.")

    def rename(self, table: dict[str, list], features: datasets.Features) -> dict[str, list]:
        """The chosen columns of a table under their canonical names."""
        is_table = bool(set(self.source.columns) & set(features)) or not CANONICAL & set(features)
        chosen = self.choose_columns(features, is_table=is_table)
        return {canonical: table[name] for name, canonical in chosen.items()}


def load(
    model: Any,
    *,
    revision: str = "main",
    batch_size: int | None = None,
    **data: Any,
) -> Predictor:
    """Load a trained network to ask it.

    Args:
        model: run folder, checkpoint or adapter folder, Hub id, bundled:NAME, or the `RunRecord` of a run.
        revision: of a Hub model.
        batch_size: rows a pass; None: chosen.
        data: columns and lengths that differ from those of training: `text_columns`, `image_column`, `label_column`,
            `max_length`, `dataset_config`, as in `hftl train`.

    Raises:
        UserError: it cannot be found or loaded, or answers no task of hftl.
    """
    name = str(getattr(model, "folder", None) or model)
    source = find_source(name, revision)
    return Predictor(load_network(change_data(source, data)), batch_size=batch_size)


def change_data(source: ModelSource, changes: dict[str, Any]) -> ModelSource:
    """The source with other columns or lengths; what is None stays."""
    given = {name: value for name, value in changes.items() if value is not None}
    for name in given.keys() - DATA_SETTINGS:
        raise unknown_name("setting", name, DATA_SETTINGS)
    if not isinstance(given.get("max_length", 1), int):
        raise UserError(f"max_length is {given['max_length']!r}; give a whole number of tokens.")
    columns = () if NO_NAMES.keys() & given.keys() else source.columns
    return replace(source, data=replace(source.data, **given), columns=columns)


def recall_columns(source: ModelSource, features: datasets.Features) -> DataArguments:
    """The settings of the run with the columns that it read, which a table has to have unless flags name others.

    Raises:
        UserError: it has not.
    """
    if not source.columns or any(isinstance(feature, datasets.Image) for feature in features.values()):
        return source.data  # images are found by their type
    flag, is_language = _column_flag(source), source.task.modality == "language"
    needed = source.columns[:1] if is_language else source.columns  # beside a prompt or chat columns may be missing
    if missing := [name for name in needed if name not in features]:
        if source.task.modality == "image" and set(missing) <= set(IMAGE_PATH_NAMES):
            return source.data  # found by their usual names: `image` of folders, `file_name` of metadata
        raise UserError(
            f"{source.name} reads the column {missing[0]!r}, as in training; found {quote_names(features)}. Name "
            f"the column to read with `--{flag} X`."
        )
    if is_language:
        return _recall_prompt(source, features)
    return replace(source.data, **{flag: list(source.columns) if flag == "text_columns" else source.columns[0]})


def _recall_prompt(source: ModelSource, features: datasets.Features) -> DataArguments:
    """What is read with the prompt or chat is chosen as in training; of several that could be it, the run tells."""
    with contextlib.suppress(UserError):
        if next(iter(source.task.choose_inputs(features, source.data))) == source.columns[0]:
            return source.data
    return replace(source.data, text_columns=[source.columns[0]])


def _column_flag(source: ModelSource) -> str:
    if source.task.modality == "image":
        return "image_column"
    return "source_column" if "source_column" in source.task.flags else "text_columns"


def check_window(
    columns: dict[str, list], folder: Path | None, pixel_range: Range | None = None
) -> tuple[dict[str, list], list[str | None]]:
    """Texts as texts, images decoded to RGB; and what is wrong with each row."""
    readers: dict[str, Callable[[Any], Any]] = {
        "image": lambda value: read_rgb(_find_image(value, folder), pixel_range),
        "words": _read_words,
    }
    read = {name: list(_read_all(values, readers.get(name, _read_text), name)) for name, values in columns.items()}
    faults = [
        next((str(v) for v in row if isinstance(v, Exception)), None) for row in zip(*read.values(), strict=True)
    ]
    return read, faults


def _read_all(values: list, read: Callable[[Any], Any], name: str) -> Iterable[Any]:
    """What `read` makes of each value, or the error that it raised."""

    def attempt(value: Any) -> Any:
        try:
            return read(value)
        except Exception as error:  # each format of Pillow fails in its own way
            return error if isinstance(error, UserError) else UserError(f"{type(error).__name__}: {error}")

    if name != "image":
        return map(attempt, values)
    with strict_pillow(), ThreadPoolExecutor() as pool:  # decoding leaves the interpreter free
        return list(pool.map(attempt, values))


def _read_text(value: Any) -> str:
    """The text that a value is; numbers are read as they are written."""
    if isinstance(value, (bytes, bytearray)):
        raise UserError("bytes, which are no text before they are decoded")
    is_missing = value is None or (isinstance(value, (float, np.floating)) and np.isnan(value))
    text = "" if is_missing else str(value)
    if not text.split():
        raise UserError("empty text")
    if not text.isascii() and text.encode("utf-8", "ignore").decode("utf-8") != text:
        raise UserError("half of a surrogate pair, which is no text")
    return text


def _read_words(value: Any) -> list[str]:
    words = [value] if isinstance(value, str) else [str(word) for word in value or []]
    if not words or not all(word.split() for word in words):
        raise UserError("empty word" if words else "no words")
    return words


def _find_image(value: Any, folder: Path | None) -> Any:
    """What `read_rgb` reads; a path in data lies below their folder, one of a caller is a path like any other."""
    if isinstance(value, (np.ndarray, list)):
        return read_array(value)
    fields = value if isinstance(value, dict) else {"path": value} if isinstance(value, (str, Path)) else None
    if fields and fields.get("bytes") is None and fields.get("path"):
        path = str(fields["path"])
        return Path(path).expanduser() if folder is None else resolve_path(path, folder)
    if isinstance(value, bytes):  # as tables store files
        return {"bytes": value, "path": None}
    if value is not None and not isinstance(value, (dict, Image.Image)):
        raise UserError(f"a {type(value).__name__}; give a PIL image, an array of numpy or the path of a file")
    return value


def _find_device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
